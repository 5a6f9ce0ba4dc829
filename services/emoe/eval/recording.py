"""What each token of given rows routes with all experts resident: profiles and predictors are made from this.

Whole rows in few steps, prompt and answer at once, so that a model that is paged is read through as seldom as can be.
Knows neither strategies nor files. T tokens that ran, M layers with experts, K choices a token, L layers, E experts, S
spans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from emoe.core.experts import CountGrid, ExpertGrid
from emoe.core.frequencies import normalise
from emoe.core.own_routing import SPAN_TOKENS, Array
from emoe.eval.rows import EncodedRow
from emoe.eval.scoring import Piece, ScoringModel

Item = TypeVar("Item")

NARROW_EXPERTS = 256
"""So many are told apart by a byte."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RowRouting:
    """`ids` [T, M, K]: of the prompt's tokens, then of the answer's but its last, which never runs."""

    task: str
    num_prompt_tokens: int
    num_response_tokens: int
    ids: npt.NDArray[np.integer]

    def count(self, grid: ExpertGrid, begin: int = 0, end: int | None = None) -> CountGrid:
        """[L, E]: of the tokens [begin, end)."""
        return count_ids(self.ids[begin:end], grid)

    def spans(self, grid: ExpertGrid, place: int) -> Array:
        """[S, L, E]: frequencies over SPAN_TOKENS of the tokens before `place`."""
        return spans_of(self.ids[:place], grid)


def spans_of(ids_TMK: npt.NDArray[np.integer], grid: ExpertGrid) -> Array:
    """[S, L, E]: frequencies over SPAN_TOKENS of a request's tokens so far, rows that route summing to one."""
    latest = [ids_TMK if span is None else ids_TMK[-span:] for span in SPAN_TOKENS]
    return np.stack([frequency(count_ids(ids, grid)) for ids in latest])


def count_ids(ids_TMK: npt.NDArray[np.integer], grid: ExpertGrid) -> CountGrid:
    """[L, E]"""
    num_layers, num_experts = grid.shape
    cells = ids_TMK.astype(np.int64) + np.array(grid.moe_layers)[:, None] * num_experts
    return np.bincount(cells.reshape(-1), minlength=num_layers * num_experts).reshape(grid.shape)


def frequency(counts_LE: CountGrid) -> Array:
    """Rows sum to one; a row without counts stays."""
    return normalise(counts_LE.astype(np.float32))


def record_routing(model: ScoringModel, rows: Sequence[EncodedRow]) -> Iterator[list[RowRouting]]:
    """A step's rows at a time, in the order given."""
    for part in pack_steps(rows, cost=num_run, max_items=model.num_rows, max_cost=model.step_tokens):
        # Judged from behind their end: no token's likelihood is computed, only what routes.
        pieces = [
            Piece(row=place, token_ids=row.token_ids, begin=0, end=num_run(row), judged_from=len(row.token_ids) + 1)
            for place, row in enumerate(part)
        ]
        dtype = np.uint8 if model.grid.rule.num_experts <= NARROW_EXPERTS else np.int32
        yield [
            RowRouting(
                task=row.task,
                num_prompt_tokens=row.num_prompt_tokens,
                num_response_tokens=row.num_response_tokens,
                ids=score.wanted_ids.astype(dtype),
            )
            for row, score in zip(part, model.score(pieces), strict=True)
        ]


def num_run(row: EncodedRow) -> int:
    """Tokens of it that a worker runs: all but the last."""
    return len(row.token_ids) - 1


def pack_steps(
    items: Iterable[Item], *, cost: Callable[[Item], int], max_items: int, max_cost: int
) -> Iterator[list[Item]]:
    """In their order, as many a step as may be; an item that costs more alone is a step of its own."""
    part: list[Item] = []
    total = 0
    for item in items:
        if part and (len(part) == max_items or total + cost(item) > max_cost):
            yield part
            part, total = [], 0
        part.append(item)
        total += cost(item)
    if part:
        yield part
