"""Counts as relative frequencies: what predictors learn from, whoever counted."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Real = TypeVar("Real", np.float32, np.float64)


def normalise(grid_LE: npt.NDArray[Real]) -> npt.NDArray[Real]:
    """Rows of the last axis sum to one, in the numbers' own precision; a row of zeros (a dense layer) stays."""
    sums = grid_LE.sum(axis=-1, keepdims=True)
    shares: npt.NDArray[Real] = np.divide(grid_LE, sums, out=np.zeros_like(grid_LE), where=sums > 0)
    return shares
