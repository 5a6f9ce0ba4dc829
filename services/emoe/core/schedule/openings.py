"""Where `ontime` may let a request in at one moment, and whom of what runs there it would make late.

Most of what waits cannot be let in: what is the same for all of it is looked up once a moment, so that a candidate that
has no chance costs a few comparisons. While all are busy there is one opening at a time, and no vectors are needed.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from emoe.core.schedule.cluster import BoolArray, Cluster
from emoe.core.schedule.placement import Place, Placement
from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.table import FloatArray

URGENT_RATIO = 0.6
"""Of a request's time to its first token: when no more than that is left, it waits no longer for answers that might be
short ones; those as long as foretold must still be able to take the delay."""
PACE_RATIO = 0.65
"""Of the tightest target a token, what a step of the sequences alone may take: the rest is for the prompts between."""


class Openings:
    """Workers with a free sequence that are nearly done with the prompts that they have."""

    def __init__(self, cluster: Cluster, now_seconds: float) -> None:
        self._cluster = cluster
        self._now = now_seconds
        self._rows: BoolArray = cluster.table.ready <= now_seconds
        self.num = int(np.count_nonzero(self._rows))
        self._only = int(np.argmax(self._rows)) if self.num == 1 else None
        self._bounds: _Bounds | None = None

    def fitting(self, request: QueuedRequest) -> BoolArray:
        if request.num_kv_tokens <= self._cluster.limits[0]:
            return self._rows
        return self._rows & (self._cluster.table.limit >= request.num_kv_tokens)

    def harmless(self, request: QueuedRequest, delay_seconds: FloatArray) -> BoolArray:
        """Where it fits and no running request would lose its targets by it."""
        table = self._cluster.table
        step = table.context_seconds * float(request.num_prompt_tokens)
        step += table.next_step
        pace = np.minimum(table.tpot, request.tpot_seconds or math.inf)
        pace *= PACE_RATIO
        harmless: BoolArray = step <= pace
        harmless &= table.slack >= delay_seconds
        harmless &= self.fitting(request)
        return harmless

    def find(self, request: QueuedRequest, due_seconds: float, placement: Placement) -> Place | None:
        """Where it is in time and harmless, to short answers too while it can still wait for their end."""
        if self._only is not None:
            return self._find_at(self._only, request, due_seconds)
        if self._is_hopeless(request, due_seconds):
            return None
        left = due_seconds - self._now
        wait = self._cluster.predict_wait_seconds(request, self._now)
        delay = self._cluster.delay_seconds(request)
        may: BoolArray = wait > left - _urgent_seconds(request, due_seconds)
        may |= self._cluster.table.young_slack >= delay
        may &= wait <= left
        may &= self.harmless(request, delay)
        if np.count_nonzero(may):
            return placement.place(request, self._cluster, may, self._now, wait_seconds=wait)
        if self._bounds is None:
            self._bounds = _bounds(self._cluster, np.flatnonzero(self._rows), self._now)
        return None

    def is_late(self, request: QueuedRequest, due_seconds: float) -> bool:
        """Wherever it went."""
        left = due_seconds - self._now
        if self._only is not None and self._cluster.wait_seconds_on(self._only, request, self._now) <= left:
            return False
        return bool(self._cluster.predict_wait_seconds(request, self._now).min() > left)

    def _find_at(self, row: int, request: QueuedRequest, due_seconds: float) -> Place | None:
        """The same where there is nothing to choose."""
        table, left = self._cluster.table, due_seconds - self._now
        wait = self._cluster.wait_seconds_on(row, request, self._now)
        if wait > left or request.num_kv_tokens > table.limit[row]:
            return None
        delay = self._cluster.delay_seconds_on(row, request)
        if delay > table.slack[row]:
            return None
        if delay > table.young_slack[row] and wait <= left - _urgent_seconds(request, due_seconds):
            return None
        step = table.next_step[row] + table.context_seconds[row] * request.num_prompt_tokens
        if step > PACE_RATIO * min(table.tpot[row], request.tpot_seconds or math.inf):
            return None
        return Place(row=row, wait_seconds=wait)

    def _is_hopeless(self, request: QueuedRequest, due_seconds: float) -> bool:
        """Certainly in time, and certainly harmful wherever it went; false where that takes a closer look."""
        bounds = self._bounds
        if bounds is None:
            return False
        num_tokens, left = request.num_prompt_tokens, due_seconds - self._now
        wait = bounds.backlog_seconds + bounds.token_seconds * num_tokens
        wait += math.ceil(num_tokens / bounds.room_tokens) * bounds.step_seconds
        if wait > left:
            return False
        delay = bounds.delay_token_seconds * num_tokens
        if delay > bounds.slack_seconds:
            return True
        return delay > bounds.young_slack_seconds and wait <= left - _urgent_seconds(request, due_seconds)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Bounds:
    """The best slack of some workers and the worst of all else, known once a first candidate was turned down."""

    slack_seconds: float
    young_slack_seconds: float
    delay_token_seconds: float
    """The least that a prompt's token delays others."""
    backlog_seconds: float
    step_seconds: float
    room_tokens: float
    token_seconds: float


def _bounds(cluster: Cluster, rows: npt.NDArray[np.intp], now_seconds: float) -> _Bounds:
    least, most = cluster.table.extremes(rows)
    return _Bounds(
        slack_seconds=most["slack"],
        young_slack_seconds=most["young_slack"],
        delay_token_seconds=least["prompt_seconds"],
        backlog_seconds=max(0.0, most["clear"] - now_seconds),
        step_seconds=most["step"],
        room_tokens=least["room"],
        token_seconds=most["prompt_seconds"] + most["missed_seconds"],
    )


def _urgent_seconds(request: QueuedRequest, due_seconds: float) -> float:
    """How long before its first token is due it becomes urgent."""
    return URGENT_RATIO * (due_seconds - request.arrived_seconds)
