"""Requests that run at once and share residents, advanced as a worker would: prompts first, then some tokens a time.

A stream has so many requests under way; when one ends, the next comes in. Before each of its turns a strategy is asked
who stays: a turn is a prompt, for a newcomer, or up to `refresh_tokens` tokens of an answer. The strategy knows the
tasks, the prompts and what was routed so far, never what comes (the oracle, which is told, excepted).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from emoe.core.experts import BoolGrid, CountGrid
from emoe.core.own_routing import Array
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
    embedding: Array = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """[D]: the mean of the prompt's token embeddings."""
    first_gate: Array = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """[E]: frequencies in the first MoE layer of the prompt. They hang on no resident: nothing is rerouted before."""
    num_done: int = 0
    wanted: CountGrid = dataclasses.field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    """[L, E]: what it routed so far, resident or not."""
    ids: list[npt.NDArray[np.int64]] = dataclasses.field(default_factory=list)
    """[T, M, K] of each phase: the same token by token, of the M layers that have experts."""
    phases: list[CountGrid] = dataclasses.field(default_factory=list)
    nll: float = 0.0
    num_judged: int = 0
    is_exact: bool = True
    num_hits: int = 0
    """Of the choices of the tokens that ran to predict the answer, those that were resident."""
    num_choices: int = 0
    num_hits_everywhere: int = 0
    """Of all choices, the prompt's too: as a worker's counters have them."""
    state_sum: Array = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """[D]: of the last hidden states that the answer's tokens were predicted from."""

    @property
    def num_choices_everywhere(self) -> int:
        return int(self.wanted.sum())

    @property
    def is_finished(self) -> bool:
        return self.num_done >= len(self.row.token_ids) - 1


@dataclasses.dataclass(kw_only=True, eq=False)
class Stream:
    """Requests that share residents, `num_together` at once (all, where None), and what keeping these cost.

    A worker predicts an answer's first token in the prefill, with the prompt's residents; `first_token_waits` for the
    next plan instead: the prompt's last token is held back.
    """

    requests: list[Running]
    num_together: int | None = None
    first_token_waits: bool = False
    num_begun: int = 0
    first_resident: BoolGrid | None = None
    resident: BoolGrid | None = None
    """After its last plan."""
    num_loaded: int = 0
    """By its later plans."""
    num_plans: int = 0
    plan_seconds: float = 0.0
    loads: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """Of each later plan: how many requests had begun, how many experts it brought in."""

    @property
    def num_rows(self) -> int:
        """The most requests at once."""
        return min(self.num_together or len(self.requests), len(self.requests))

    @property
    def is_finished(self) -> bool:
        return self.num_begun == len(self.requests) and all(request.is_finished for request in self.requests)

    def advance(self) -> list[Running]:
        """Those under way, newcomers among them."""
        running = [request for request in self.requests[: self.num_begun] if not request.is_finished]
        num_new = min(self.num_rows - len(running), len(self.requests) - self.num_begun)
        newcomers = self.requests[self.num_begun : self.num_begun + num_new]
        self.num_begun += num_new
        return running + newcomers


class ResidencyStrategy(Protocol):
    def plan(self, running: Sequence[Running]) -> BoolGrid | None:
        """[L, E]: who stays while these advance; None: everybody."""
        ...


def run_streams(
    model: ScoringModel, streams: Sequence[Stream], strategy: ResidencyStrategy, *, refresh_tokens: int
) -> Iterator[Running]:
    """Advances every stream to its end; yields each request that ends. As many side by side as there are KV rows."""
    yield from run_with([(stream, strategy) for stream in streams], model, refresh_tokens=refresh_tokens)


def run_with(
    streams: Sequence[tuple[Stream, ResidencyStrategy]], model: ScoringModel, *, refresh_tokens: int
) -> Iterator[Running]:
    """The same, with a strategy for each, for those that learn from what they see."""
    waiting, active, rows = list(streams)[::-1], list[tuple[Stream, ResidencyStrategy]](), _KvRows(model.num_rows)
    while waiting or active:
        while waiting and sum(stream.num_rows for stream, _ in (*active, waiting[-1])) <= model.num_rows:
            active.append(waiting.pop())
        if not active:
            raise ValueError(f"{waiting[-1][0].num_rows} requests at once need more than {model.num_rows} KV rows")
        work = [each for stream, strategy in active for each in _take_turn(stream, strategy, rows, refresh_tokens)]
        yield from _run(model, work, rows)
        active = [(stream, strategy) for stream, strategy in active if not stream.is_finished]


def _run(model: ScoringModel, work: Sequence[tuple[Running, Piece]], rows: _KvRows) -> Iterator[Running]:
    for part in _steps(work, model.step_tokens):
        for (request, piece), score in zip(part, model.score([piece for _, piece in part]), strict=True):
            _account(request, piece, score)
            if request.is_finished:
                rows.free(request)
                yield request


class _KvRows:
    """Which row each request under way has."""

    def __init__(self, num_rows: int) -> None:
        self._free = list(range(num_rows))[::-1]
        self._row_of: dict[Running, int] = {}

    def of(self, request: Running) -> int:
        if request not in self._row_of:
            self._row_of[request] = self._free.pop()
        return self._row_of[request]

    def free(self, request: Running) -> None:
        self._free.append(self._row_of.pop(request))


def _take_turn(
    stream: Stream, strategy: ResidencyStrategy, rows: _KvRows, refresh_tokens: int
) -> list[tuple[Running, Piece]]:
    running = stream.advance()
    _replan(stream, running, strategy)
    return [(request, _next_piece(request, rows.of(request), stream, refresh_tokens)) for request in running]


def _replan(stream: Stream, running: Sequence[Running], strategy: ResidencyStrategy) -> None:
    began = time.perf_counter()
    resident = strategy.plan(running)
    stream.plan_seconds += time.perf_counter() - began
    stream.num_plans += 1
    if stream.num_plans == 1:
        stream.first_resident = resident
    num_loaded = count_loaded(stream.resident, resident)
    stream.num_loaded += num_loaded
    stream.loads.append((stream.num_begun, num_loaded))
    stream.resident = resident


def count_loaded(before: BoolGrid | None, after: BoolGrid | None) -> int:
    """Experts that a change of plan brings in; none where there was no plan before or is none now."""
    return 0 if before is None or after is None else int((after & ~before).sum())


def _next_piece(request: Running, row: int, stream: Stream, refresh_tokens: int) -> Piece:
    """The prompt; then answers, each token predicted by the one before it."""
    ids, num_prompt_tokens = request.row.token_ids, request.row.num_prompt_tokens
    prefill_end = max(1, num_prompt_tokens - 1) if stream.first_token_waits else num_prompt_tokens
    end = prefill_end if request.num_done < prefill_end else request.num_done + refresh_tokens
    return Piece(
        row=row,
        token_ids=ids,
        begin=request.num_done,
        end=min(end, len(ids) - 1),
        judged_from=num_prompt_tokens,
        resident=stream.resident,
    )


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
    request.ids.append(score.wanted_ids)
    request.wanted = score.wanted if request.wanted.size == 0 else request.wanted + score.wanted
    request.num_hits += _hits(score.wanted_judged, piece.resident)
    request.num_choices += int(score.wanted_judged.sum())
    request.num_hits_everywhere += _hits(score.wanted, piece.resident)
    states = score.mean_state * len(score.nll)
    request.state_sum = states if request.state_sum.size == 0 else request.state_sum + states


def _hits(wanted: CountGrid, resident: BoolGrid | None) -> int:
    counted: npt.NDArray[np.int64] = wanted if resident is None else wanted[resident]
    return int(counted.sum())
