"""Answers that do not depend on what else a worker computes in the same step, and the check of others against them.

Exact mode gives everyone the same experts, but a bfloat16 product is rounded by how many rows it has: where two tokens
are nearly tied, a busy worker may rightly pick the other one. So only answers whose every token leads clearly are
references, and a different token in one of those is a fault. Knows neither who asked nor how.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

MIN_LEAD_NATS = 0.5
"""What the best token must lead the second by, at every step.

Measured with the shipped model on a CPU, 816 answers in full batches of eight beside the same alone: leads below one
nat moved by 0.25 at most, those of references by at most 14 % of themselves. Tokens that changed (864 answers to other
prompts) had led by 0.03 or less.
"""
MIN_REFERENCES = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A whole answer, computed alone. `leads_nats`: each token's log-probability less that of the best other token."""

    prompt: str
    token_ids: tuple[int, ...]
    leads_nats: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.token_ids or len(self.token_ids) != len(self.leads_nats):
            raise ValueError(f"{len(self.token_ids)} tokens, {len(self.leads_nats)} leads for {self.prompt!r}")


class Answer(Protocol):
    @property
    def prompt(self) -> str: ...

    @property
    def token_ids(self) -> tuple[int, ...]: ...

    @property
    def is_ok(self) -> bool: ...


AnswerT = TypeVar("AnswerT", bound=Answer)


class References:
    """What each prompt is answered with, whoever answers it."""

    def __init__(self, right_answers: Mapping[str, tuple[int, ...]]) -> None:
        self._right_answers = dict(right_answers)

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(self._right_answers)

    @property
    def num_tokens(self) -> int:
        return sum(len(token_ids) for token_ids in self._right_answers.values())

    def wrong(self, answers: Iterable[AnswerT]) -> list[AnswerT]:
        """A whole answer has to be the reference, a broken one its beginning."""
        return [answer for answer in answers if not self._is_right(answer)]

    def _is_right(self, answer: Answer) -> bool:
        right = self._right_answers[answer.prompt]
        return answer.token_ids == (right if answer.is_ok else right[: len(answer.token_ids)])


def choose_references(candidates: Sequence[Candidate]) -> References:
    """The clear ones; of two with the same answer the first, or an exchange of the two would go unseen."""
    chosen: dict[str, tuple[int, ...]] = {}
    for candidate in candidates:
        if min(candidate.leads_nats) >= MIN_LEAD_NATS and candidate.token_ids not in chosen.values():
            chosen[candidate.prompt] = candidate.token_ids
    if len(chosen) < MIN_REFERENCES:
        leads = sorted((round(min(one.leads_nats), 2) for one in candidates), reverse=True)
        raise AssertionError(
            f"{len(chosen)} of {len(candidates)} prompts have an answer of their own whose every token leads by"
            f" {MIN_LEAD_NATS} nats, {MIN_REFERENCES} are needed; add clearer ones (least leads: {leads})"
        )
    return References(chosen)
