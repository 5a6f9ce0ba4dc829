"""What residency costs in quality: every strategy at every resident share, on the same rows in the same run.

Two kinds of load: `single`, each request alone with its residents, and `mixed`, eight requests of any tasks that share
them. Perplexity is of the reference answers' tokens; a ratio is to all experts resident.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from emoe.core.planning import PLANNERS
from emoe.eval.profile import RoutingProfile, build_profile
from emoe.eval.rows import EncodedRow
from emoe.eval.scoring import ScoringModel
from emoe.eval.strategies import ALL_RESIDENT, SHUFFLED, STRATEGIES, AllResident, Known
from emoe.eval.streams import ResidencyStrategy, Running, Stream, count_loaded, run_streams

Say = Callable[[str], None]
Rows = Mapping[str, Sequence[EncodedRow]]
SINGLE, MIXED = "single", "mixed"
MEAN = "mean"
PROGRESS_EVERY = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """`num_together` requests share residents in the mixed load; residents are chosen anew every `refresh_tokens`."""

    resident_ratios: tuple[float, ...] = (0.25, 0.4)
    strategies: tuple[str, ...] = ("random", "global-frequency", "task-frequency", "emoe", "emoe-shuffled", "oracle")
    loads: tuple[str, ...] = (SINGLE, MIXED)
    num_together: int = 8
    refresh_tokens: int = 64
    planner: str = "global"
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityRow:
    """`task` "mean": of the tasks, each alike (perplexities: their geometric mean). `coverage_ratio`: of the experts
    that the answers' tokens wanted, the share that was resident. `moved_bytes`: loaded by changes of plan, a request's
    share; the streams follow one another.
    """

    load: str
    strategy: str
    task: str
    resident_ratio: float
    perplexity: float
    perplexity_ratio: float
    exact_match_ratio: float
    coverage_ratio: float
    moved_bytes: int
    plan_seconds: float
    """To make one plan."""
    num_requests: int


@dataclasses.dataclass(frozen=True)
class _Result:
    requests: list[Running]
    num_loaded: int
    num_plans: int
    plan_seconds: float

    def of(self, task: str) -> list[Running]:
        return [request for request in self.requests if request.row.task == task]


def evaluate_quality(
    model: ScoringModel, profiled: Rows, judged: Rows, settings: QualitySettings, *, say: Say
) -> Iterator[QualityRow]:
    """Yields rows as they are done. The profile comes from `profiled`, all else from `judged`."""
    profile = profile_rows(model, profiled, settings, say=say)
    everything = _run(model, _single(judged), AllResident(), settings, say=say, what="all experts resident")
    full = {request.row: request for request in everything.requests}
    for load in settings.loads:
        yield from _table(model, load, ALL_RESIDENT, 1.0, everything, full)
        for ratio in settings.resident_ratios:
            known = Known(
                profile=profile,
                grid=model.grid,
                num_slots=round(ratio * model.grid.num_experts_total),
                planner=PLANNERS[settings.planner],
                seed=settings.seed,
            )
            for name in settings.strategies:
                streams = _streams(load, judged, full, settings, shuffled=name.endswith(SHUFFLED))
                strategy = STRATEGIES[name.removesuffix(SHUFFLED)](known)
                what = f"{name}, {load}, {ratio:.0%} resident"
                result = _run(model, streams, strategy, settings, say=say, what=what)
                yield from _table(model, load, name, ratio, result, full)


def profile_rows(model: ScoringModel, rows: Rows, settings: QualitySettings, *, say: Say) -> RoutingProfile:
    result = _run(model, _single(rows), AllResident(), settings, say=say, what="profiling")
    return build_profile(result.requests, top_k=model.grid.rule.top_k, seed=settings.seed)


def _single(rows: Rows) -> list[Stream]:
    return [Stream(requests=[Running(row=row, task=row.task)]) for part in rows.values() for row in part]


def _streams(
    load: str, rows: Rows, full: Mapping[EncodedRow, Running], settings: QualitySettings, *, shuffled: bool
) -> list[Stream]:
    """The same rows in the same order for every strategy; shuffled, their labels are each other's."""
    dealt = random.Random(settings.seed)
    ordered = [row for part in rows.values() for row in part]
    if load == MIXED:
        dealt.shuffle(ordered)
    labels = [row.task for row in ordered]
    if shuffled:
        dealt.shuffle(labels)
    requests = [
        Running(row=row, task=label, future=tuple(full[row].phases)) for row, label in zip(ordered, labels, strict=True)
    ]
    together = settings.num_together if load == MIXED else 1
    return [Stream(requests=requests[first : first + together]) for first in range(0, len(requests), together)]


def _run(
    model: ScoringModel,
    streams: Sequence[Stream],
    strategy: ResidencyStrategy,
    settings: QualitySettings,
    *,
    say: Say,
    what: str,
) -> _Result:
    done: list[Stream] = []
    for stream in run_streams(model, streams, strategy, refresh_tokens=settings.refresh_tokens):
        done.append(stream)
        if len(done) % PROGRESS_EVERY == 0 or len(done) == len(streams):
            say(f"{what}: {len(done)} of {len(streams)}")
    return _Result(
        [request for stream in done for request in stream.requests],
        sum(stream.num_loaded for stream in done)
        + sum(count_loaded(one.resident, after.first_resident) for one, after in itertools.pairwise(done)),
        sum(stream.num_plans for stream in done),
        sum(stream.plan_seconds for stream in done),
    )


def _table(
    model: ScoringModel,
    load: str,
    strategy: str,
    ratio: float,
    result: _Result,
    full: Mapping[EncodedRow, Running],
) -> Iterator[QualityRow]:
    rows = [
        _row(model, load, strategy, task, ratio, result, [full[request.row] for request in result.of(task)])
        for task in sorted(collections.Counter(request.row.task for request in result.requests))
    ]
    yield from rows
    yield dataclasses.replace(
        rows[0],
        task=MEAN,
        perplexity=math.exp(np.mean([math.log(row.perplexity) for row in rows])),
        perplexity_ratio=math.exp(np.mean([math.log(row.perplexity_ratio) for row in rows])),
        exact_match_ratio=float(np.mean([row.exact_match_ratio for row in rows])),
        coverage_ratio=float(np.mean([row.coverage_ratio for row in rows])),
        num_requests=sum(row.num_requests for row in rows),
    )


def _row(
    model: ScoringModel,
    load: str,
    strategy: str,
    task: str,
    ratio: float,
    result: _Result,
    full: Sequence[Running],
) -> QualityRow:
    requests = result.of(task)
    perplexity = _perplexity(requests)
    moved = result.num_loaded * model.grid.expert_bytes / len(result.requests)
    return QualityRow(
        load=load,
        strategy=strategy,
        task=task,
        resident_ratio=ratio,
        perplexity=perplexity,
        perplexity_ratio=perplexity / _perplexity(full),
        exact_match_ratio=float(np.mean([request.is_exact for request in requests])),
        coverage_ratio=sum(r.num_hits for r in requests) / max(1, sum(r.num_choices for r in requests)),
        moved_bytes=round(moved),
        plan_seconds=result.plan_seconds / max(1, result.num_plans),
        num_requests=len(requests),
    )


def _perplexity(requests: Sequence[Running]) -> float:
    return math.exp(sum(request.nll for request in requests) / sum(request.num_judged for request in requests))
