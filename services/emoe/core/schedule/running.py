"""A request that runs on a worker: how far its answer is, how much is expected to come, and how long it can be delayed.

The expected rest is eMoE's G_i (section 4.4): it starts at the foretold length and falls with each token. When the
answer is longer than foretold, its task's longer answers say how it goes on; where none are known, a small share of
the foretold length, as in the paper.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from emoe.core.schedule.request import QueuedRequest

if TYPE_CHECKING:
    from emoe.core.schedule.load import WorkerLoad

SOONEST_RATIO = 0.02
"""Of the expected length: as short as that an answer may well be."""
RENEWED_RATIO = 0.05
"""Of the foretold length: what is expected still of an answer that is already longer (eMoE, section 4.4)."""


class Running:
    __slots__ = ("expected_tokens", "first_token_seconds", "num_tokens", "request", "worker")

    def __init__(self, request: QueuedRequest, worker: WorkerLoad) -> None:
        self.request = request
        self.worker = worker
        self.num_tokens = 0
        """Of the answer, so far."""
        self.first_token_seconds: float | None = None
        self.expected_tokens = max(1, request.num_expected_tokens)
        """Of the whole answer, corrected as it grows."""

    def progressed(self, num_tokens: int) -> int:
        """How many tokens came since it was last told."""
        grown = num_tokens - self.num_tokens
        self.num_tokens = num_tokens
        if num_tokens >= self.expected_tokens:
            more = max(1, round(self._rest(num_tokens)))
            self.expected_tokens = max(num_tokens, min(num_tokens + more, self.request.max_tokens))
        return grown

    def _rest(self, num_tokens: int) -> float:
        request = self.request
        if request.expected_rest is not None:
            return request.expected_rest(num_tokens)
        return RENEWED_RATIO * request.num_expected_tokens

    @property
    def num_left(self) -> int:
        return self.expected_tokens - self.num_tokens

    def slack_seconds(self, now_seconds: float, step_seconds: float, first_token_seconds: float) -> tuple[float, float]:
        """By which the rest of the answer can be delayed if each further token takes a step; negative: too late.

        The second is for its pace if the answer turns out much shorter than foretold: a short one has no time to make
        up for a delay at its beginning. `first_token_seconds`: when that came, or is expected."""
        request, expected = self.request, self.expected_tokens
        slack = young = math.inf
        now = now_seconds if now_seconds > first_token_seconds else first_token_seconds
        if request.end_to_end_seconds is not None:
            slack = request.arrived_seconds + request.end_to_end_seconds - now - step_seconds * self.num_left
        if request.tpot_seconds is not None and expected > 1:
            begin = first_token_seconds - request.tpot_seconds - now + step_seconds * self.num_tokens
            gain = request.tpot_seconds - step_seconds
            soonest = max(self.num_tokens + 1, math.ceil(SOONEST_RATIO * expected), 2)
            slack = min(slack, begin + gain * expected)
            young = begin + gain * soonest
        return slack, young
