"""A request as scheduling sees it: what it is expected to take, and until when its targets can still be met."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class QueuedRequest:
    """Times are seconds on the caller's one clock; targets are seconds from arrival, None where there is none."""

    request_id: str
    task: str
    tenant: str = ""
    arrived_seconds: float
    num_prompt_tokens: int
    num_expected_tokens: int
    """Of the answer, as foretold (W_o of eMoE's equation 1)."""
    max_tokens: int
    """The longest answer: with the prompt, what it may take of a worker's KV."""
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    end_to_end_seconds: float | None = None
    size_bytes: int = 0
    expected_rest: Callable[[int], float] | None = dataclasses.field(default=None, compare=False, repr=False)
    """Tokens still to come of an answer that has so many and goes on; None where nothing is known but the mean."""

    @property
    def num_kv_tokens(self) -> int:
        return self.num_prompt_tokens + self.max_tokens

    @property
    def first_token_due_seconds(self) -> float:
        """The latest first token with which every target can hold, infinity without targets.

        An end-to-end target leaves room for the expected answer at its per-token target, if it has one."""
        due = math.inf if self.ttft_seconds is None else self.arrived_seconds + self.ttft_seconds
        if self.end_to_end_seconds is not None:
            rest = max(0, self.num_expected_tokens - 1) * (self.tpot_seconds or 0.0)
            due = min(due, self.arrived_seconds + max(0.0, self.end_to_end_seconds - rest))
        return due
