"""`emoe bench schedule`: each policy over each trace, at given loads or up to the highest that it can serve in time.

All policies meet the same requests on the same workers, seed by seed.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from emoe.bench.schedule_goodput import FIRST_STEP, LEAST_SHARE, find_goodput
from emoe.bench.schedule_rows import Figures, ScheduleRow, build_row, figure
from emoe.bench.schedule_trace import Workload
from emoe.bench.simulate import SimulationOptions, simulate
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.policies import make_policy
from emoe.core.slo import Slo

BUSY_RATIO = 0.7
"""Without --workers there are as many as are busy so much of the time at the trace's own rate."""
LEAST_WORKERS = 2
NEXT_STEP = 1.1
"""From one seed's goodput to the next one's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """`loads_rps` and `speeds` (of the trace's own rate): a row each; with neither, and no goodput, the own rate.
    `options.num_workers` 0: by the trace."""

    policies: tuple[str, ...]
    options: SimulationOptions
    slo_scale: float = 1.0
    placement: str | None = None
    speeds: tuple[float, ...] = ()
    loads_rps: tuple[float, ...] = ()
    finds_goodput: bool = False
    attainment: float = 0.99
    precision: float = 0.02
    seeds: tuple[int, ...] = (0,)
    num_requests: int | None = None


def bench_schedule(
    workloads: Sequence[Workload], slos: Mapping[str, Slo], settings: ScheduleSettings, *, say: Callable[[str], None]
) -> Iterator[ScheduleRow]:
    """A row as soon as it is known."""
    for workload in workloads:
        drawn = [workload.drawn(seed, num_requests=settings.num_requests) for seed in settings.seeds]
        runs = _Runs(workload, drawn, slos, settings, say)
        for policy in settings.policies:
            if settings.finds_goodput:
                yield runs.goodput(policy)
            else:
                yield from (runs.at_load(policy, load) for load in runs.loads_rps)


class _Runs:
    """Of one trace."""

    def __init__(
        self,
        workload: Workload,
        drawn: Sequence[Workload],
        slos: Mapping[str, Slo],
        settings: ScheduleSettings,
        say: Callable[[str], None],
    ) -> None:
        own = workload.load_rps
        self.loads_rps = (*settings.loads_rps, *(speed * own for speed in settings.speeds)) or (own,)
        self._trace, self._drawn, self._slos, self._settings, self._say = workload.name, drawn, slos, settings, say
        self._each_rps = capacity_rps(workload, settings.options.costs, num_rows=settings.options.num_rows)
        num_workers = settings.options.num_workers or default_workers(own, self._each_rps)
        self._options = dataclasses.replace(settings.options, num_workers=num_workers)

    def at_load(self, policy: str, load_rps: float) -> ScheduleRow:
        figures = (self._simulate(policy, drawn, load_rps) for drawn in self._drawn)
        return self._row(policy, [one for one in figures if one is not None])

    def goodput(self, policy: str) -> ScheduleRow:
        """Each seed's by itself; the other figures are those at its highest load."""
        figures: list[Figures] = []
        begin, step = self._each_rps * self._options.num_workers / 2, FIRST_STEP
        for drawn in self._drawn:
            best = self._goodput_of(policy, drawn, begin, step)
            figures.append(best)
            if best.goodput_rps:
                begin, step = best.goodput_rps, NEXT_STEP
        return self._row(policy, figures)

    def _goodput_of(self, policy: str, drawn: Workload, begin_rps: float, step: float) -> Figures:
        passed: dict[float, Figures] = {}
        max_missed = math.floor((1 - self._settings.attainment) * len(drawn) + 1e-9)

        def passes(load_rps: float) -> bool:
            figures = self._simulate(policy, drawn, load_rps, max_missed=max_missed)
            if figures is not None:
                passed[load_rps] = figures
            return figures is not None

        found = find_goodput(passes, begin_rps, precision=self._settings.precision, first_step=step)
        best = passed.get(found) or self._simulate(policy, drawn, begin_rps * LEAST_SHARE)
        assert best is not None, "without a bound nothing is cut"
        return dataclasses.replace(best, goodput_rps=found)

    def _simulate(
        self, policy: str, drawn: Workload, load_rps: float, *, max_missed: int | None = None
    ) -> Figures | None:
        """None where more are missed than that: the rest is not simulated then."""
        workload, workers = drawn.at_load(load_rps), self._options.num_workers
        chosen = make_policy(policy, placement=self._settings.placement)
        outcome = simulate(workload, chosen, self._slos, self._options, max_missed=max_missed)
        where = f"{self._trace}, {policy}, {workers} workers, {load_rps:.3g} requests/s"
        if outcome.is_cut:
            self._say(f"{where}: less than {self._settings.attainment:.2%} in time")
            return None
        figures = figure(workload, outcome, self._slos)
        self._say(f"{where}: {figures.attainment:.2%} in time, TTFT p99 {figures.ttft_p99_seconds:.3f} s")
        return figures

    def _row(self, policy: str, figures: Sequence[Figures]) -> ScheduleRow:
        return build_row(
            figures,
            policy=policy,
            trace=self._trace,
            workers=self._options.num_workers,
            slo_scale=self._settings.slo_scale,
        )


def capacity_rps(workload: Workload, costs: StepCosts, *, num_rows: int) -> float:
    """What one worker serves at most, all its rows taken: a bound for where to look, not a forecast."""
    prompts, answers = (statistics.fmean(lengths) for lengths in (workload.prompt_tokens, workload.answer_tokens))
    context = statistics.fmean(
        (prompt + answer / 2) * answer
        for prompt, answer in zip(workload.prompt_tokens, workload.answer_tokens, strict=True)
    )
    steps = max(prompts / costs.step_tokens, answers / num_rows)
    tokens = prompts * costs.prompt_token_seconds + answers * costs.sequence_seconds
    return 1.0 / (steps * costs.base_seconds + tokens + context * costs.context_token_seconds)


def default_workers(own_rps: float, each_rps: float) -> int:
    return max(LEAST_WORKERS, math.ceil(own_rps / (BUSY_RATIO * each_rps)))
