"""One request inside the engine: its tokens, where they are in the KV cache, and what it has cost so far."""

from __future__ import annotations

import dataclasses

from emoe.core.generation import Sampling
from emoe.worker.own_counts import OwnCounts


@dataclasses.dataclass(kw_only=True, eq=False)
class Sequence:
    sequence_id: str
    task: str
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: Sampling
    seed: int
    row: int = -1
    num_in_kv: int = 0
    num_expert_hits: int = 0
    num_expert_choices: int = 0
    started_seconds: float | None = None
    """When its first step began, on the monotonic clock."""
    own_counts: OwnCounts | None = None
    """What it routed so far, where the engine keeps that."""

    @property
    def num_pending(self) -> int:
        """Tokens that the model has not seen."""
        return len(self.token_ids) - self.num_in_kv

    @property
    def is_decoding(self) -> bool:
        return self.num_pending == 1 and self.num_completion_tokens > 0

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """One new token of a sequence, or its failure; a failed sequence has left the engine."""

    sequence: Sequence
    token_id: int | None = None
    logprobs: tuple[tuple[int, float], ...] = ()
    finished: bool = False
    error: str = ""
    is_for_want: bool = False
    """Failed for want of a neighbour: the same request may succeed later, or elsewhere."""

    @property
    def is_edge(self) -> bool:
        """A first or a last one."""
        return self.finished or self.sequence.num_completion_tokens <= 1
