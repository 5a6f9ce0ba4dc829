"""Where `ontime` may let a request in at one moment, and whom of what runs there it would make late.

Most of what waits cannot be let in: what is the same for all of it is looked up once a moment, so that a candidate that
has no chance costs a few comparisons. While all are busy there is one opening at a time, and no vectors are needed.
"""

from __future__ import annotations

import dataclasses
import enum
import math

import numpy as np

from emoe.core.schedule.cluster import BoolArray, Cluster, RowArray
from emoe.core.schedule.placement import Place, Placement
from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.table import FloatArray

URGENT_RATIO = 0.6
"""Of a request's time to its first token: when no more than that is left, it waits no longer for answers that might be
short ones; those as long as foretold must still be able to take the delay."""
PACE_RATIO = 0.65
"""Of the tightest target a token, what a step of the sequences alone may take: the rest is for the prompts between."""


class TurnedDown(enum.Enum):
    """Why a candidate is let in nowhere: it would be late wherever it went, or something may change for it."""

    LATE = "late"
    HELD = "held"


class Openings:
    """Workers with a free sequence that are nearly done with the prompts that they have."""

    def __init__(self, cluster: Cluster, now_seconds: float) -> None:
        self._cluster = cluster
        self._now = now_seconds
        self._may: BoolArray = cluster.table.ready <= now_seconds
        self._rows = self._may.nonzero()[0]
        self.num = len(self._rows)
        self._only = int(self._rows[0]) if self.num == 1 else None
        self._bounds: _Bounds | None = None

    def fitting(self, request: QueuedRequest) -> BoolArray:
        if request.num_kv_tokens <= self._cluster.limits[0]:
            return self._may
        return self._may & (self._cluster.table.limit >= request.num_kv_tokens)

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

    def find(self, request: QueuedRequest, due_seconds: float, placement: Placement) -> Place | TurnedDown:
        """Where it is in time and harmless, to short answers too while it can still wait for their end."""
        if self._only is not None:
            return self._find_at(self._only, request, due_seconds)
        if self._is_held(request, due_seconds):
            return TurnedDown.HELD
        left = due_seconds - self._now
        wait, delay = self._cluster.forecast(request, self._now)
        may: BoolArray = wait > left - _urgent_seconds(request, due_seconds)
        may |= self._cluster.table.young_slack >= delay
        may &= wait <= left
        may &= self.harmless(request, delay)
        rows = may.nonzero()[0]
        if len(rows):
            return placement.place(request, self._cluster, rows, self._now, wait_seconds=wait)
        if self._bounds is None:
            self._bounds = _bounds(self._cluster, self._rows, self._now)
        return TurnedDown.LATE if wait[wait.argmin()] > left else TurnedDown.HELD

    def _find_at(self, row: int, request: QueuedRequest, due_seconds: float) -> Place | TurnedDown:
        """The same where there is nothing to choose."""
        table, left = self._cluster.table, due_seconds - self._now
        wait = self._cluster.wait_seconds_on(row, request, self._now)
        if wait > left:
            anywhere = self._cluster.predict_wait_seconds(request, self._now)
            return TurnedDown.LATE if anywhere[anywhere.argmin()] > left else TurnedDown.HELD
        if request.num_kv_tokens > table.limit[row]:
            return TurnedDown.HELD
        delay = self._cluster.delay_seconds_on(row, request)
        if delay > table.slack[row]:
            return TurnedDown.HELD
        if delay > table.young_slack[row] and wait <= left - _urgent_seconds(request, due_seconds):
            return TurnedDown.HELD
        step = table.next_step[row] + table.context_seconds[row] * request.num_prompt_tokens
        if step > PACE_RATIO * min(table.tpot[row], request.tpot_seconds or math.inf):
            return TurnedDown.HELD
        return Place(row=row, wait_seconds=wait)

    def _is_held(self, request: QueuedRequest, due_seconds: float) -> bool:
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


def _bounds(cluster: Cluster, rows: RowArray, now_seconds: float) -> _Bounds:
    table = cluster.table
    least_prompt_seconds, most_prompt_seconds = _ends(table.prompt_seconds[rows])
    return _Bounds(
        slack_seconds=_ends(table.slack[rows])[1],
        young_slack_seconds=_ends(table.young_slack[rows])[1],
        delay_token_seconds=least_prompt_seconds,
        backlog_seconds=max(0.0, _ends(table.clear[rows])[1] - now_seconds),
        step_seconds=_ends(table.step[rows])[1],
        room_tokens=_ends(table.room[rows])[0],
        token_seconds=most_prompt_seconds + _ends(table.missed_seconds[rows])[1],
    )


def _ends(figures: FloatArray) -> tuple[float, float]:
    """The least and the most: by place, which numpy finds sooner than the figure."""
    return float(figures[figures.argmin()]), float(figures[figures.argmax()])


def _urgent_seconds(request: QueuedRequest, due_seconds: float) -> float:
    """How long before its first token is due it becomes urgent."""
    return URGENT_RATIO * (due_seconds - request.arrived_seconds)
