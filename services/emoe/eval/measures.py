"""The figures of a run: rows by task, their mean, what share of a gap a strategy closes, what task labels are worth."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from emoe.core.own_routing import Array
from emoe.eval.rows import EncodedRow
from emoe.eval.strategies import GLOBAL, ORACLE, SHUFFLED
from emoe.eval.streams import Running, Stream, count_loaded

MEAN = "mean"
NOTHING = 0.005
"""A smaller change of perplexity ratio or coverage is none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityRow:
    """`task` "mean": of the tasks, each alike (perplexities: geometrically; exact match: of the tasks that have one).

    `exact_match`: of the answers whose every token was the likeliest; None where not even all experts resident reach
    one. `similarity`: cosine of the mean last hidden state over the answer with that of all experts resident.
    `coverage`: of the experts wanted by the tokens that the answers were predicted from, the share that was resident.
    `hit_ratio`: the same of all tokens, the prompts' too, as a worker's counters have it. `bytes_moved`: brought in by
    changes of plan, a request's share. `refresh_seconds`: to predict and plan once; no byte is moved here.
    """

    load: str
    strategy: str
    task: str
    resident_ratio: float
    perplexity: float
    perplexity_ratio: float
    exact_match: float | None
    similarity: float
    coverage: float
    hit_ratio: float
    bytes_moved: int
    refresh_seconds: float
    num_requests: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GapRow:
    """What share of the way from the static global frequency to the oracle a strategy goes; more than 1: beyond it."""

    load: str
    strategy: str
    resident_ratio: float
    perplexity_gap_closed: float | None
    coverage_gap_closed: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRow:
    """What a strategy loses when task labels are dealt out at random. Nothing: knowing the task is worth nothing."""

    load: str
    strategy: str
    resident_ratio: float
    perplexity_ratio_lost: float
    coverage_lost: float

    @property
    def is_nothing(self) -> bool:
        return max(self.perplexity_ratio_lost, self.coverage_lost) < NOTHING


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What running all streams with one strategy gave, and the same rows with all experts resident."""

    requests: Sequence[Running]
    full: Mapping[EncodedRow, Running]
    num_loaded: int
    num_plans: int
    plan_seconds: float

    @classmethod
    def of(cls, streams: Sequence[Stream], full: Mapping[EncodedRow, Running]) -> Outcome:
        """Of streams that follow one another, in their order."""
        between = sum(count_loaded(one.resident, after.first_resident) for one, after in itertools.pairwise(streams))
        return cls(
            requests=[request for stream in streams for request in stream.requests],
            full=full,
            num_loaded=between + sum(stream.num_loaded for stream in streams),
            num_plans=sum(stream.num_plans for stream in streams),
            plan_seconds=sum(stream.plan_seconds for stream in streams),
        )


def measure(
    outcome: Outcome, *, load: str, strategy: str, resident_ratio: float, expert_bytes: int
) -> list[QualityRow]:
    """A row a task, and their mean."""
    rows = []
    for task in sorted({request.row.task for request in outcome.requests}):
        requests = [request for request in outcome.requests if request.row.task == task]
        full = [outcome.full[request.row] for request in requests]
        rows.append(
            QualityRow(
                load=load,
                strategy=strategy,
                task=task,
                resident_ratio=resident_ratio,
                perplexity=perplexity(requests),
                perplexity_ratio=perplexity(requests) / perplexity(full),
                exact_match=mean(r.is_exact for r in requests) if any(r.is_exact for r in full) else None,
                similarity=mean(cosine(*pair) for pair in zip(requests, full, strict=True)),
                coverage=coverage(requests),
                hit_ratio=hit_ratio(requests),
                bytes_moved=round(outcome.num_loaded * expert_bytes / len(outcome.requests)),
                refresh_seconds=outcome.plan_seconds / max(1, outcome.num_plans),
                num_requests=len(requests),
            )
        )
    return [*rows, _mean_row(rows)]


def _mean_row(rows: Sequence[QualityRow]) -> QualityRow:
    exact = [row.exact_match for row in rows if row.exact_match is not None]
    return dataclasses.replace(
        rows[0],
        task=MEAN,
        perplexity=_geometric(row.perplexity for row in rows),
        perplexity_ratio=_geometric(row.perplexity_ratio for row in rows),
        exact_match=mean(exact) if exact else None,
        similarity=mean(row.similarity for row in rows),
        coverage=mean(row.coverage for row in rows),
        hit_ratio=mean(row.hit_ratio for row in rows),
        num_requests=sum(row.num_requests for row in rows),
    )


def find_gaps(rows: Sequence[QualityRow]) -> tuple[GapRow, ...]:
    """Of the means of the tasks, for each strategy between the two that span the gap, and beyond."""
    means = {(row.load, row.resident_ratio, row.strategy): row for row in rows if row.task == MEAN}

    def closed(row: QualityRow, figure: Callable[[QualityRow], float]) -> float | None:
        ends = [means.get((row.load, row.resident_ratio, name)) for name in (GLOBAL, ORACLE)]
        if ends[0] is None or ends[1] is None or math.isclose(figure(ends[0]), figure(ends[1])):
            return None
        return (figure(row) - figure(ends[0])) / (figure(ends[1]) - figure(ends[0]))

    return tuple(
        GapRow(
            load=row.load,
            strategy=row.strategy,
            resident_ratio=row.resident_ratio,
            perplexity_gap_closed=closed(row, lambda one: one.perplexity_ratio),
            coverage_gap_closed=closed(row, lambda one: one.coverage),
        )
        for row in means.values()
        if (row.load, row.resident_ratio, GLOBAL) in means
    )


def find_label_worth(rows: Sequence[QualityRow]) -> tuple[LabelRow, ...]:
    means = {(row.load, row.resident_ratio, row.strategy): row for row in rows if row.task == MEAN}
    return tuple(
        LabelRow(
            load=load,
            strategy=strategy,
            resident_ratio=ratio,
            perplexity_ratio_lost=shuffled.perplexity_ratio - row.perplexity_ratio,
            coverage_lost=row.coverage - shuffled.coverage,
        )
        for (load, ratio, strategy), row in means.items()
        if (shuffled := means.get((load, ratio, strategy + SHUFFLED))) is not None
    )


def perplexity(requests: Sequence[Running]) -> float:
    return math.exp(sum(request.nll for request in requests) / max(1, sum(request.num_judged for request in requests)))


def coverage(requests: Sequence[Running]) -> float:
    return sum(one.num_hits for one in requests) / max(1, sum(one.num_choices for one in requests))


def hit_ratio(requests: Sequence[Running]) -> float:
    wanted = sum(one.num_choices_everywhere for one in requests)
    return sum(one.num_hits_everywhere for one in requests) / max(1, wanted)


def cosine(one: Running, other: Running) -> float:
    product = _norm(one.state_sum) * _norm(other.state_sum)
    return float(one.state_sum @ other.state_sum) / product if product else 1.0


def mean(values: Iterator[float] | Sequence[float]) -> float:
    return float(np.mean(list(values)))


def _geometric(values: Iterator[float]) -> float:
    return math.exp(mean(math.log(value) for value in values))


def _norm(vector: Array) -> float:
    return float(np.linalg.norm(vector))
