"""How long prompts and answers of a task are: eMoE's W_o, and what a queue may expect of a request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emoe.store.profile import Lengths

DECIMALS = 2


def measure_lengths(num_tokens: Sequence[int]) -> Lengths:
    """ValueError when there is none."""
    if not num_tokens:
        raise ValueError("no length to measure")
    p50, p90, p99 = (round(float(value), DECIMALS) for value in np.percentile(num_tokens, (50, 90, 99)))
    return Lengths(mean=round(float(np.mean(num_tokens)), DECIMALS), p50=p50, p90=p90, p99=p99)
