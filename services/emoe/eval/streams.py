"""Requests that run at once and share residents, advanced as a worker would: prompts first, then some tokens a time.

A strategy is asked who stays before the prompts run, and again before every `refresh_tokens` tokens of the answers; it
knows the tasks and what the requests routed so far, never what comes (the oracle, which is told, excepted).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from emoe.core.experts import BoolGrid, CountGrid
from emoe.eval.rows import EncodedRow
from emoe.eval.scoring import Piece, PieceScore, ScoringModel


@dataclasses.dataclass(kw_only=True, eq=False)
class Running:
    """A request under way: what a strategy may know of it, and what the harness counts."""

    row: EncodedRow
    task: str
    """As it was named to the system: in some evaluations not the row's own."""
    future: Sequence[CountGrid] = ()
    """What each phase will route, with all experts resident: for the oracle alone."""
    num_done: int = 0
    wanted: CountGrid = dataclasses.field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    """[L, E]: what it routed so far, resident or not."""
    recent: CountGrid = dataclasses.field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    """[L, E]: of that, the last phase's."""
    phases: list[CountGrid] = dataclasses.field(default_factory=list)
    nll: float = 0.0
    num_judged: int = 0
    is_exact: bool = True
    num_hits: int = 0
    num_choices: int = 0

    @property
    def is_finished(self) -> bool:
        return self.num_done >= len(self.row.token_ids) - 1


@dataclasses.dataclass(kw_only=True, eq=False)
class Stream:
    """Requests that share residents, and what keeping these cost."""

    requests: list[Running]
    first_resident: BoolGrid | None = None
    resident: BoolGrid | None = None
    """After its last plan."""
    num_loaded: int = 0
    """By its later plans."""
    num_plans: int = 0
    plan_seconds: float = 0.0


class ResidencyStrategy(Protocol):
    def plan(self, running: Sequence[Running]) -> BoolGrid | None:
        """[L, E]: who stays while these advance; None: everybody."""
        ...


def run_streams(
    model: ScoringModel, streams: Sequence[Stream], strategy: ResidencyStrategy, *, refresh_tokens: int
) -> Iterator[Stream]:
    """Advances every stream to its end; yields each as it gets there. As many at once as there are KV rows."""
    waiting = list(streams)
    while waiting:
        group, rows = [], 0
        while waiting and rows + len(waiting[0].requests) <= model.num_rows:
            rows += len(waiting[0].requests)
            group.append(waiting.pop(0))
        if not group:
            raise ValueError(f"{len(waiting[0].requests)} requests at once need more than {model.num_rows} KV rows")
        _run_group(model, group, strategy, refresh_tokens=refresh_tokens)
        yield from group


def _run_group(
    model: ScoringModel, group: Sequence[Stream], strategy: ResidencyStrategy, *, refresh_tokens: int
) -> None:
    row_of = {request: row for row, request in enumerate(r for stream in group for r in stream.requests)}
    while any(not request.is_finished for request in row_of):
        work: list[tuple[Running, Piece]] = []
        for stream in group:
            running = [request for request in stream.requests if not request.is_finished]
            if running:
                _replan(stream, running, strategy)
                work += [
                    (request, _next_piece(request, row_of[request], stream.resident, refresh_tokens))
                    for request in running
                ]
        for part in _steps(work, model.step_tokens):
            for (request, piece), score in zip(part, model.score([piece for _, piece in part]), strict=True):
                _account(request, piece, score)


def _replan(stream: Stream, running: Sequence[Running], strategy: ResidencyStrategy) -> None:
    began = time.perf_counter()
    resident = strategy.plan(running)
    stream.plan_seconds += time.perf_counter() - began
    stream.num_plans += 1
    if stream.num_plans == 1:
        stream.first_resident = resident
    stream.num_loaded += count_loaded(stream.resident, resident)
    stream.resident = resident


def count_loaded(before: BoolGrid | None, after: BoolGrid | None) -> int:
    """Experts that a change of plan brings in; none where there was no plan before or is none now."""
    return 0 if before is None or after is None else int((after & ~before).sum())


def _next_piece(request: Running, row: int, resident: BoolGrid | None, refresh_tokens: int) -> Piece:
    """The prompt but its last token; then answers, each token predicted by the one before it."""
    ids, prompt = request.row.token_ids, request.row.num_prompt_tokens
    last = len(ids) - 1
    end = prompt - 1 if request.num_done < prompt - 1 else min(request.num_done + refresh_tokens, last)
    return Piece(row=row, token_ids=ids, begin=request.num_done, end=end, judged_from=prompt, resident=resident)


def _steps(work: Sequence[tuple[Running, Piece]], step_tokens: int) -> Iterator[list[tuple[Running, Piece]]]:
    part: list[tuple[Running, Piece]] = []
    size = 0
    for request, piece in work:
        length = piece.end - piece.begin
        if part and size + length > step_tokens:
            yield part
            part, size = [], 0
        part.append((request, piece))
        size += length
    if part:
        yield part


def _account(request: Running, piece: Piece, score: PieceScore) -> None:
    request.num_done = piece.end
    request.nll += float(score.nll.sum())
    request.num_judged += len(score.nll)
    request.is_exact = request.is_exact and bool(score.is_best.all())
    request.phases.append(score.wanted)
    request.recent = score.wanted
    request.wanted = score.wanted if request.wanted.size == 0 else request.wanted + score.wanted
    request.num_hits += _hits(score.wanted_judged, piece.resident)
    request.num_choices += int(score.wanted_judged.sum())


def _hits(wanted: CountGrid, resident: BoolGrid | None) -> int:
    counted: npt.NDArray[np.int64] = wanted if resident is None else wanted[resident]
    return int(counted.sum())
