"""How well predictors foretell a stream: what plans made from them cover of the prompts that then come.

Every `refresh_prompts` prompts a plan is made for the coming ones, of which tasks and sizes are known as the scheduler
knows them: of those waiting. Then they run, and every predictor learns from them. L layers, E experts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from emoe.core.demand import DemandPredictor, tokens_in
from emoe.core.experts import ExpertGrid, FloatGrid
from emoe.core.planning import GlobalGreedyPlanner
from emoe.core.tasks import UNKNOWN
from emoe.train.sequence_data import ORDERS, PromptCounts, order_mixed
from emoe.train.sequence_methods import FREQUENCY, GLOBAL, HINDSIGHT, RECENT, SERVED, Method

Say = Callable[[str], None]
TIMED_CALLS = 50
WRONG = " wrong"
LABEL_NOISE_METHODS = (GLOBAL, FREQUENCY, RECENT, SERVED, HINDSIGHT)
"""Those that could be served."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """`wrong_label_ratios`: of the mixed stream's prompts, so many are told as another task, for the ablation."""

    refresh_prompts: tuple[int, ...] = (1, 10, 40)
    resident_ratios: tuple[float, ...] = (0.25, 0.4)
    wrong_label_ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    num_orders: int = 2
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    """A prompt, and the task it is said to be of."""

    prompt: PromptCounts
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoverageRow:
    """`gap_closed_ratio`: of the way from the global frequency to hindsight, with the same plans and budget."""

    stream: str
    refresh_prompts: int
    resident_ratio: float
    method: str
    coverage_ratio: float
    gap_closed_ratio: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AccuracyRow:
    """`index_accuracy_ratio`: of the next prompt's K most wanted experts of a layer, the share among the K foretold
    (eMoE, table of predictors): of the single-prompt plans of this stream."""

    stream: str
    method: str
    index_accuracy_ratio: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodRow:
    method: str
    num_parameters: int
    stored_bytes: int
    predict_seconds: float
    """Of one core, for one task's demand: the median of some calls."""
    training_seconds: float
    """Of one core."""


def build_streams(
    prompts: Sequence[PromptCounts], settings: CompareSettings, arrivals: Sequence[str] | None
) -> dict[str, list[list[Told]]]:
    """Name -> the same prompts in some orders: with the labels, without, and the mixed ones with wrong labels."""
    tasks = [prompt.task for prompt in prompts]
    streams: dict[str, list[list[Told]]] = {}
    for kind, order in ORDERS.items():
        for number in range(settings.num_orders):
            random = np.random.default_rng([settings.seed, number])
            places = order_mixed(tasks, random, arrivals) if kind == "mixed" else order(tasks, random)
            ordered = [prompts[place] for place in places]
            streams.setdefault(kind, []).append(_tell(ordered))
            streams.setdefault(f"{kind}, no labels", []).append(_tell(ordered, labels=[UNKNOWN] * len(ordered)))
            if kind == "mixed":
                for ratio in settings.wrong_label_ratios:
                    labels = _wrong_labels([prompt.task for prompt in ordered], ratio, random)
                    streams.setdefault(f"mixed, {ratio:.0%}{WRONG}", []).append(_tell(ordered, labels=labels))
    return streams


def compare(
    methods: Sequence[Method],
    streams: Mapping[str, Sequence[Sequence[Told]]],
    grid: ExpertGrid,
    settings: CompareSettings,
    *,
    say: Say,
) -> tuple[list[CoverageRow], list[AccuracyRow]]:
    coverage: list[CoverageRow] = []
    accuracy: list[AccuracyRow] = []
    for name, orders in streams.items():
        for refresh in settings.refresh_prompts:
            rows = []
            for method in methods:
                if name.endswith(WRONG) and method.name not in LABEL_NOISE_METHODS:
                    continue
                say(f"{name}, a plan every {refresh} prompts: {method.name}")
                judged = [_replay(method, stream, grid, settings.resident_ratios, refresh) for stream in orders]
                for place, ratio in enumerate(settings.resident_ratios):
                    covered = float(np.mean([result.coverage[place] for result in judged]))
                    rows.append(
                        CoverageRow(
                            stream=name,
                            refresh_prompts=refresh,
                            resident_ratio=ratio,
                            method=method.name,
                            coverage_ratio=covered,
                        )
                    )
                if refresh == 1:
                    share = float(np.mean([result.accuracy for result in judged]))
                    accuracy.append(AccuracyRow(stream=name, method=method.name, index_accuracy_ratio=share))
            coverage += list(_with_gaps(rows))
    return coverage, accuracy


def time_methods(methods: Iterable[Method], stream: Sequence[Told]) -> list[MethodRow]:
    """After some prompts were seen, as in service."""
    rows = []
    for method in methods:
        if method.make is None:
            continue
        predictor = method.make()
        for told in stream[:200]:
            predictor.observe(told.label, told.prompt.counts)
        seconds = []
        for told in (*stream,)[:TIMED_CALLS]:
            began = time.process_time()
            predictor.predict({told.label: 1.0})
            seconds.append(time.process_time() - began)
        rows.append(
            MethodRow(
                method=method.name,
                num_parameters=method.num_parameters,
                stored_bytes=method.num_bytes,
                predict_seconds=float(np.median(seconds)),
                training_seconds=method.training_seconds,
            )
        )
    return rows


@dataclasses.dataclass(frozen=True)
class _Replayed:
    coverage: list[float]
    accuracy: float


def _replay(
    method: Method, stream: Sequence[Told], grid: ExpertGrid, ratios: Sequence[float], refresh: int
) -> _Replayed:
    predictor = method.make() if method.make else None
    covered = np.zeros(len(ratios))
    total, shares = 0, []
    for begin in range(0, len(stream), refresh):
        coming = stream[begin : begin + refresh]
        counts = np.sum([told.prompt.counts for told in coming], axis=0)
        demand = counts.astype(np.float64) if predictor is None else predictor.predict(_task_tokens(coming))
        for place, ratio in enumerate(ratios):
            plan = GlobalGreedyPlanner().plan(demand, num_slots=round(ratio * grid.num_experts_total), grid=grid)
            covered[place] += counts[plan].sum()
        total += int(counts.sum())
        shares.append(_index_accuracy(demand, counts, grid))
        if predictor is not None:
            _observe(predictor, coming)
    return _Replayed((covered / total).tolist(), float(np.mean(shares)))


def _observe(predictor: DemandPredictor, coming: Sequence[Told]) -> None:
    for told in coming:
        predictor.observe(told.label, told.prompt.counts)


def _task_tokens(coming: Sequence[Told]) -> dict[str, float]:
    tokens: dict[str, float] = {}
    for told in coming:
        tokens[told.label] = tokens.get(told.label, 0.0) + tokens_in(told.prompt.counts)
    return tokens


def _index_accuracy(demand: FloatGrid, counts: npt.NDArray[np.int64], grid: ExpertGrid) -> float:
    layers, k = list(grid.moe_layers), grid.rule.top_k
    foretold, wanted = (np.argsort(-part[layers], axis=1, kind="stable")[:, :k] for part in (demand, counts))
    return float(np.mean([len(set(one) & set(other)) / k for one, other in zip(foretold, wanted, strict=True)]))


def _with_gaps(rows: Sequence[CoverageRow]) -> Iterator[CoverageRow]:
    found = {(row.method, row.resident_ratio): row.coverage_ratio for row in rows}
    for row in rows:
        low, high = found.get((GLOBAL, row.resident_ratio)), found.get((HINDSIGHT, row.resident_ratio))
        known = low is not None and high is not None and high > low
        closed = (row.coverage_ratio - low) / (high - low) if known and low is not None and high is not None else None
        yield dataclasses.replace(row, gap_closed_ratio=closed)


def _tell(ordered: Sequence[PromptCounts], labels: Sequence[str] | None = None) -> list[Told]:
    given = labels or [prompt.task for prompt in ordered]
    return [Told(prompt=prompt, label=label) for prompt, label in zip(ordered, given, strict=True)]


def _wrong_labels(tasks: Sequence[str], ratio: float, random: np.random.Generator) -> list[str]:
    """Each task as likely as any other one in place of the right one."""
    names = sorted(set(tasks))
    wrong = random.random(len(tasks)) < ratio
    return [
        str(random.choice([name for name in names if name != task])) if is_wrong and len(names) > 1 else task
        for task, is_wrong in zip(tasks, wrong, strict=True)
    ]
