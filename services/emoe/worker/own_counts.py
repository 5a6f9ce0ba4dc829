"""What each running sequence routed so far, and when its coming routing should be foretold anew.

The engine hands every step's ids over, one small copy a sequence; counting waits for a whole window of them, or for
whoever forecasts (`running_demand`), who counts on a thread of his own. Knows neither regression nor loader.
L layers that route, T tokens, K choices a token, W tokens of a window, E experts, S spans.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from emoe.core.experts import CountGrid
from emoe.core.frequencies import normalise
from emoe.core.own_routing import SPAN_TOKENS, Array

WINDOW_TOKENS = max(span for span in SPAN_TOKENS if span is not None)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OwnRouting:
    """A copy of what a sequence routed until now: counts of all but the window's tokens, and the ids of these."""

    layers: npt.NDArray[np.int64]
    counted: CountGrid
    """[all layers, E]"""
    window: npt.NDArray[np.uint16]
    """[W, L, K], oldest first."""
    num_uncounted: int
    """The latest of the window, which `counted` lacks."""

    def spans(self) -> Array:
        """[S, all layers, E]: frequencies over SPAN_TOKENS, in its order; rows of layers that route sum to one."""
        grids = []
        for span in SPAN_TOKENS:
            latest = self.num_uncounted if span is None else min(span, len(self.window))
            counts = count(self.window[len(self.window) - latest :], self.layers, self.counted.shape)
            grids.append(self.counted + counts if span is None else counts)
        return normalise(np.stack(grids).astype(np.float32))


class OwnCounts:
    """One sequence's. `layers` are those that route, `shape` is the model's grid."""

    def __init__(self, layers: npt.NDArray[np.int64], shape: tuple[int, int]) -> None:
        self._layers = layers
        self._counted: CountGrid = np.zeros(shape, dtype=np.int64)
        self._ring_WLK: npt.NDArray[np.uint16] | None = None
        self._num_counted = 0
        self.num_tokens = 0
        self.foretold_at_tokens = 0
        """How many tokens were known when it was last looked at."""
        self.is_due = False
        """Whether it is time to look: set by the engine, and unset by whoever looks."""

    @property
    def num_new_tokens(self) -> int:
        return self.num_tokens - self.foretold_at_tokens

    def add(self, ids_LTK: npt.NDArray[np.int64]) -> None:
        """The choices of the sequence's next tokens, resident or not."""
        num_layers, num_added, num_choices = ids_LTK.shape
        if self._ring_WLK is None:
            self._ring_WLK = np.zeros((WINDOW_TOKENS, num_layers, num_choices), dtype=np.uint16)
        if num_added == 1:
            self._ring_WLK[self.num_tokens % WINDOW_TOKENS] = ids_LTK[:, 0]
            self.num_tokens += 1
            if self.num_tokens - self._num_counted == WINDOW_TOKENS:
                self._count_window()
            return
        self._count_window()
        self._counted += count(ids_LTK.transpose(1, 0, 2), self._layers, self._counted.shape)
        kept = min(num_added, WINDOW_TOKENS)
        self.num_tokens += num_added
        self._num_counted = self.num_tokens
        places = np.arange(self.num_tokens - kept, self.num_tokens) % WINDOW_TOKENS
        self._ring_WLK[places] = ids_LTK[:, num_added - kept :].transpose(1, 0, 2)

    def look(self) -> OwnRouting:
        """A copy, to be counted elsewhere."""
        assert self._ring_WLK is not None, "nothing was routed yet"
        self.foretold_at_tokens, self.is_due = self.num_tokens, False
        latest = np.arange(max(0, self.num_tokens - WINDOW_TOKENS), self.num_tokens) % WINDOW_TOKENS
        return OwnRouting(
            layers=self._layers,
            counted=self._counted.copy(),
            window=self._ring_WLK[latest],
            num_uncounted=self.num_tokens - self._num_counted,
        )

    def _count_window(self) -> None:
        if self._ring_WLK is None or self._num_counted == self.num_tokens:
            return
        places = np.arange(self._num_counted, self.num_tokens) % WINDOW_TOKENS
        self._counted += count(self._ring_WLK[places], self._layers, self._counted.shape)
        self._num_counted = self.num_tokens


def count(ids_TLK: npt.NDArray[np.integer], layers: npt.NDArray[np.int64], shape: tuple[int, ...]) -> CountGrid:
    """How often each expert was chosen: [all layers, E]."""
    cells = ids_TLK + (layers * shape[1])[:, None]
    return np.bincount(cells.reshape(-1), minlength=shape[0] * shape[1]).reshape(shape)
