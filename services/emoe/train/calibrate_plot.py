"""The loss of a calibration's training as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from emoe.core.errors import InvalidRequestError

SMOOTHED_STEPS = 20


def check_plotting() -> None:
    """InvalidRequestError before hours of training, not after."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise InvalidRequestError("a plot needs matplotlib: pip install 'emoe[eval]', or ask for none") from error


def plot_loss(log: Path, target: Path, *, title: str) -> None:
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    tokens = np.array([line["num_tokens"] for line in lines]) / 1e6
    loss = np.array([line["loss"] for line in lines])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(tokens, loss, color="0.8", linewidth=0.8, label="each batch")
    width = min(SMOOTHED_STEPS, len(loss))
    if width:
        smooth = np.convolve(loss, np.full(width, 1 / width), mode="valid")
        axes.plot(tokens[width - 1 :], smooth, linewidth=1.6, label=f"mean of {width}")
    axes.set(xlabel="million tokens", ylabel="divergence from the whole model, nats a token", title=title)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(target, dpi=150)
