"""What eMoE left open: how often to predict, static against predicted, wrong labels, a mix that changes.

Each study turns one knob and judges a few strategies on the same streams of requests, so many at once, residents kept
from one to the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from emoe.core.experts import FloatGrid
from emoe.eval.ablation_lab import AblationRow, Build, Lab, all_requests, mean_choices, named
from emoe.eval.ablation_policies import Decayed, Kept, Static
from emoe.eval.ablation_streams import Mixes, changing_mix, noisy_labels, rows_by_task, shifted_mix, steady_mix
from emoe.eval.measures import Outcome
from emoe.eval.quality import MIXED, SINGLE, make_streams
from emoe.eval.strategies import GLOBAL, ORACLE
from emoe.eval.streams import Stream

INTERVAL, STATIC, LABEL_NOISE, DRIFT = "interval", "static", "label-noise", "drift"
STEADY, CHANGING, SHIFTED = "steady", "changing", "shifted"
P_PROMPTS = (1, 5, 10, 20, 40, 80)
NOISE_RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4)
WINDOW_PROMPTS = 20
HALF_LIFE_PROMPTS = 20.0
STATIC_FREQUENCY, DECAYED_FREQUENCY, KEPT = "static-frequency", "decayed-frequency", "-kept"


def study_interval(lab: Lab) -> Iterator[AblationRow]:
    """p: strategies whose residents stay for p prompts, beside one that never changes and one that never waits."""
    bases = {"task-frequency": named("task-frequency"), "emoe": named("emoe"), DECAYED_FREQUENCY: _decayed_mean(lab)}
    for name, mixes in ((STEADY, _steady(lab)), (CHANGING, _changing(lab))):
        for ratio in lab.settings.resident_ratios:
            judge = _Judge(lab, INTERVAL, name, "p", ratio)
            for strategy in (GLOBAL, "emoe"):
                row = judge(strategy, 0, mixes, named(strategy))
                yield from (dataclasses.replace(row, value=float(num_prompts)) for num_prompts in P_PROMPTS)
            for num_prompts in P_PROMPTS:
                for strategy, build in bases.items():
                    yield judge(strategy + KEPT, num_prompts, mixes, _kept(build, num_prompts))


def study_static(lab: Lab) -> Iterator[AblationRow]:
    """Static frequency against what is counted lately, what the tasks say, what requests say, and hindsight."""
    mixes = _changing(lab)
    builds = {name: named(name) for name in (GLOBAL, "task-frequency", "emoe", ORACLE)}
    for ratio in lab.settings.sweep_ratios:
        judge = _Judge(lab, STATIC, CHANGING, "resident_ratio", ratio)
        for strategy, build in {**builds, DECAYED_FREQUENCY: _decayed_mean(lab)}.items():
            yield judge(strategy, ratio, mixes, build)


def study_label_noise(lab: Lab) -> Iterator[AblationRow]:
    """Some requests are named another's task: each request alone, and several that share residents."""
    for ratio in lab.settings.resident_ratios:
        for load in (SINGLE, MIXED):
            judge = _Judge(lab, LABEL_NOISE, load, "wrong_label_ratio", ratio)
            row = judge.run(GLOBAL, 0, make_streams(lab.harness, load), named(GLOBAL))
            yield from (dataclasses.replace(row, value=noise) for noise in NOISE_RATIOS)
            for strategy in ("task-frequency", "emoe"):
                for noise in NOISE_RATIOS:
                    streams = make_streams(lab.harness, load)
                    requests = all_requests(streams)
                    labels = noisy_labels([one.row for one in requests], noise, seed=lab.settings.conditions.seed)
                    for request, label in zip(requests, labels, strict=True):
                        request.task = label
                    yield judge.run(strategy, noise, streams, named(strategy))


def study_drift(lab: Lab) -> Iterator[AblationRow]:
    """From one half of the tasks to the other, in windows of prompts; what was learnt beforehand is of the first."""
    tasks = sorted(rows_by_task(lab.harness))
    num_prompts = lab.settings.stream_prompts
    drawn = [shifted_mix(num_prompts, len(tasks), seed=seed) for seed in lab.seeds]
    priors = [_mean_of(lab, [tasks[place] for place in first]) for _, first in drawn]
    half_life = _half_life(lab)
    builds: Mapping[str, Build] = {
        STATIC_FREQUENCY: lambda known, number: Static(known, priors[number]),
        DECAYED_FREQUENCY: lambda known, number: Decayed(known, priors[number], half_life_tokens=half_life),
        **{name: named(name) for name in ("task-frequency", "emoe", ORACLE)},
    }
    for ratio in lab.settings.resident_ratios:
        judge = _Judge(lab, DRIFT, SHIFTED, "prompts_since_change", ratio)
        for strategy, build in builds.items():
            streams = judge.run_mixes(strategy, 0, [mixes for mixes, _ in drawn], build)
            for first in range(0, num_prompts, WINDOW_PROMPTS):
                window = range(first, min(first + WINDOW_PROMPTS, num_prompts))
                yield judge.row(strategy, window.start - num_prompts // 2, streams, window)


STUDIES: Mapping[str, Callable[[Lab], Iterator[AblationRow]]] = {
    INTERVAL: study_interval,
    STATIC: study_static,
    LABEL_NOISE: study_label_noise,
    DRIFT: study_drift,
}


@dataclasses.dataclass(frozen=True)
class _Judge:
    lab: Lab
    study: str
    mix: str
    knob: str
    resident_ratio: float

    def __call__(self, strategy: str, value: float, mixes: Sequence[Mixes], build: Build) -> AblationRow:
        return self.row(strategy, value, self.run_mixes(strategy, value, mixes, build))

    def run_mixes(self, strategy: str, value: float, mixes: Sequence[Mixes], build: Build) -> list[Stream]:
        what = self._what(strategy, value)
        return self.lab.run_mixes(mixes, build, resident_ratio=self.resident_ratio, what=what)

    def run(self, strategy: str, value: float, streams: Sequence[Stream], build: Build) -> AblationRow:
        """Of streams that follow one another, with one strategy for all."""
        shared = build(self.lab.known(self.resident_ratio), 0)
        self.lab.run([(stream, shared) for stream in streams], what=self._what(strategy, value))
        outcome = Outcome.of(streams, self.lab.harness.full)
        row = self.row(strategy, value, streams)
        return dataclasses.replace(row, bytes_moved=self.lab.bytes_moved(outcome.num_loaded, row.num_requests))

    def row(self, strategy: str, value: float, streams: Sequence[Stream], window: range | None = None) -> AblationRow:
        """Of all requests of each stream, or of a window of them."""
        requests = (
            all_requests(streams)
            if window is None
            else [r for s in streams for r in s.requests[window.start : window.stop]]
        )
        loads = [load for stream in streams for load in stream.loads]
        num_loaded = sum(num for num_begun, num in loads if window is None or num_begun - 1 in window)
        return self.lab.row(
            requests,
            num_loaded=num_loaded,
            study=self.study,
            mix=self.mix,
            strategy=strategy,
            knob=self.knob,
            value=float(value),
            resident_ratio=self.resident_ratio,
        )

    def _what(self, strategy: str, value: float) -> str:
        return f"{self.study}, {self.mix}: {strategy}, {self.knob} {value:g}, {self.resident_ratio:.0%} resident"


def _steady(lab: Lab) -> list[Mixes]:
    return [steady_mix(lab.settings.stream_prompts, len(rows_by_task(lab.harness))) for _ in lab.seeds]


def _changing(lab: Lab) -> list[Mixes]:
    num_tasks = len(rows_by_task(lab.harness))
    return [changing_mix(lab.settings.stream_prompts, num_tasks, seed=seed) for seed in lab.seeds]


def _kept(build: Build, num_prompts: int) -> Build:
    return lambda known, number: Kept(build(known, number), every_prompts=num_prompts)


def _decayed_mean(lab: Lab) -> Build:
    prior, half_life = lab.harness.profile.mean(), _half_life(lab)
    return lambda known, _: Decayed(known, prior, half_life_tokens=half_life)


def _half_life(lab: Lab) -> float:
    return HALF_LIFE_PROMPTS * mean_choices(list(lab.harness.full.values()))


def _mean_of(lab: Lab, tasks: Sequence[str]) -> FloatGrid:
    return np.asarray(np.mean([lab.harness.profile.of(task) for task in tasks], axis=0))
