"""What a model routes by task, counted on training rows: the frequencies that strategies plan from.

Also the moments of those rows, each with what was routed until then and next: what a request's own routing foretells is
learnt from these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from emoe.core.experts import CountGrid, FloatGrid
from emoe.core.own_routing import SPAN_TOKENS, Array, normalise
from emoe.core.tasks import UNKNOWN
from emoe.eval.streams import Running


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnSamples:
    """N moments: `spans` [N, S, L, E] and `futures` [N, L, E] are frequencies, `num_tokens` [N] those of the future."""

    spans: Array
    futures: Array
    num_tokens: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingProfile:
    """`frequencies` [L, E] of each task's answers, rows summing to one."""

    frequencies: Mapping[str, FloatGrid]
    samples: OwnSamples

    def of(self, task: str) -> FloatGrid:
        """The mean of all for a task that was not profiled."""
        return self.frequencies[task] if task in self.frequencies else self.mean()

    def mean(self) -> FloatGrid:
        """Each task alike."""
        return np.asarray(np.mean(list(self.frequencies.values()), axis=0))


def build_profile(requests: Iterable[Running], *, top_k: int, seed: int = 0) -> RoutingProfile:
    """From requests that ran to their end with all experts resident."""
    counts: dict[str, list[FloatGrid]] = {}
    moments: list[tuple[Array, Array, int]] = []
    for request in requests:
        if request.task != UNKNOWN:
            answer = np.sum(request.phases[1:] or request.phases, axis=0)
            counts.setdefault(request.task, []).append(frequency(answer).astype(np.float64))
        moments += _moments(request, top_k)
    order = np.random.default_rng(seed).permutation(len(moments))
    spans, futures, lengths = zip(*(moments[place] for place in order), strict=True)
    return RoutingProfile(
        frequencies={task: np.asarray(np.mean(grids, axis=0)) for task, grids in counts.items()},
        samples=OwnSamples(spans=np.stack(spans), futures=np.stack(futures), num_tokens=np.array(lengths)),
    )


def frequency(counts_LE: CountGrid) -> Array:
    return normalise(counts_LE.astype(np.float32))


def _moments(request: Running, top_k: int) -> Iterable[tuple[Array, Array, int]]:
    """One at each phase's beginning but the first's."""
    so_far: CountGrid = np.zeros_like(request.wanted)
    for before, after in zip(request.phases[:-1], request.phases[1:], strict=True):
        so_far = so_far + before
        recent = frequency(before)
        spans = np.stack([frequency(so_far), *[recent] * (len(SPAN_TOKENS) - 1)])
        yield spans, frequency(after), int(after.sum(axis=1).max()) // top_k
