"""What `emoe bench schedule` gives: a row a policy, trace and load, from what became of each request."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from emoe.bench.schedule_slos import slo_of
from emoe.bench.schedule_trace import Workload
from emoe.bench.simulate import Outcome
from emoe.core.slo import Slo

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleRow:
    """Medians over `seeds` simulations. `load_rps`: arrivals a second. `goodput_rps`: requests a second that met every
    target of theirs; with --goodput, the highest load at which the wanted share does."""

    policy: str
    trace: str
    workers: int
    slo_scale: float
    load_rps: float
    goodput_rps: float
    attainment: float
    ttft_p50_seconds: float
    ttft_p99_seconds: float
    tpot_p99_seconds: float
    decision_p99_seconds: float
    """Wall time of the scheduler's own code: an arrival with what it admits, or what an end admits."""
    coverage: float | None
    """Share of the prompts' routing that residents met; None where residency is not simulated."""
    num_requests: int
    num_refused: int
    seeds: int
    simulated_rps: float
    """Requests simulated in a second of one core's time."""
    samples: tuple[tuple[float, float], ...] = ()
    """(load, attainment) of each simulation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one simulation; the fields as in `ScheduleRow`."""

    load_rps: float
    goodput_rps: float
    attainment: float
    ttft_p50_seconds: float
    ttft_p99_seconds: float
    tpot_p99_seconds: float
    decision_p99_seconds: float
    coverage: float | None
    num_requests: int
    num_refused: int
    simulated_rps: float


def figure(workload: Workload, outcome: Outcome, slos: Mapping[str, Slo]) -> Figures:
    arrived, first, end = map(np.asarray, (workload.arrived_seconds, outcome.first_token_seconds, outcome.end_seconds))
    ttft = first - arrived
    tpot = (end - first) / np.maximum(np.asarray(workload.answer_tokens) - 1, 1)
    attained = attains(workload.tasks, ttft, tpot, end - arrived, slos)
    covered = np.asarray(outcome.coverage)
    num = len(workload)
    return Figures(
        load_rps=workload.load_rps,
        goodput_rps=float(attained.sum()) / workload.span_seconds,
        attainment=float(attained.mean()),
        ttft_p50_seconds=_percentile(ttft, 50),
        ttft_p99_seconds=_percentile(ttft, 99),
        tpot_p99_seconds=_percentile(tpot, 99),
        decision_p99_seconds=_percentile(np.asarray(outcome.decision_seconds), 99),
        coverage=_weighted(covered, np.asarray(workload.prompt_tokens)),
        num_requests=num,
        num_refused=sum(outcome.is_refused),
        simulated_rps=num / max(outcome.cpu_seconds, 1e-9),
    )


def attains(
    tasks: Sequence[str], ttft: Floats, tpot: Floats, end_to_end: Floats, slos: Mapping[str, Slo]
) -> npt.NDArray[np.bool_]:
    """Whether each met every target that its task has; one that never ended met none."""
    names = sorted(set(tasks))
    places = np.array([names.index(task) for task in tasks])
    targets = [slo_of(slos, name) for name in names]
    met = np.isfinite(end_to_end)
    for taken, field in ((ttft, "ttft_seconds"), (tpot, "tpot_seconds"), (end_to_end, "end_to_end_seconds")):
        most = np.array([getattr(slo, field) or np.inf for slo in targets])[places]
        met &= ~(taken > most)
    return met


def build_row(figures: Sequence[Figures], **named: Any) -> ScheduleRow:
    """The medians, each figure's own; `named` are the other fields, and those that the medians do not decide."""
    medians: dict[str, Any] = {}
    for field in dataclasses.fields(Figures):
        values = [value for one in figures if (value := getattr(one, field.name)) is not None]
        median = statistics.median(values) if values else None
        medians[field.name] = round(median) if field.name.startswith("num_") and median is not None else median
    samples = tuple((one.load_rps, one.attainment) for one in figures)
    return ScheduleRow(**{**medians, "seeds": len(figures), "samples": samples, **named})


def _percentile(values: Floats, share: float) -> float:
    """Of those that there are; NaN where there is none."""
    known = values[np.isfinite(values)]
    return float(np.percentile(known, share)) if len(known) else float("nan")


def _weighted(values: Floats, weights: npt.NDArray[Any]) -> float | None:
    known = np.isfinite(values)
    return float(np.average(values[known], weights=weights[known])) if known.any() else None
