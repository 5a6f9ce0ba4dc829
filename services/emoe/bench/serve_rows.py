"""What `emoe bench serve` gives: the figures of `emoe bench schedule`, of a system that runs; one row of all requests,
and one of each task."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from emoe.bench.schedule_rows import Floats, attains
from emoe.bench.schedule_trace import Workload
from emoe.bench.serve import ServeOutcome
from emoe.core.slo import Slo

ALL = "all"
REFUSED = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeRow:
    """Of the requests that came to an end. Latencies count from when a request was meant to leave."""

    policy: str
    trace: str
    workers: int
    task: str
    slo_scale: float
    load_rps: float
    goodput_rps: float
    attainment: float
    ttft_p50_seconds: float | None
    ttft_p99_seconds: float | None
    tpot_p50_seconds: float | None
    tpot_p99_seconds: float | None
    queue_p50_seconds: float | None
    """In the scheduler's queue, as it says itself."""
    decision_p99_seconds: float | None
    """The scheduler does not tell it; `emoe bench schedule` measures it."""
    late_p99_seconds: float
    """By which requests left after their time: what of the latencies is this client's own."""
    num_requests: int
    num_refused: int
    num_failed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    policy: str
    workers: int
    slo_scale: float


def summarise(
    workload: Workload, outcome: ServeOutcome, slos: Mapping[str, Slo], labels: Labels
) -> tuple[ServeRow, ...]:
    """Nothing ended, nothing to say: no row."""
    ended = outcome.ended
    if not ended:
        return ()
    tasks = sorted({workload.tasks[number] for number in ended})
    table = _Table(workload, outcome, slos, labels)
    rows = [table.row(ALL, ended)]
    if len(tasks) > 1:
        rows += [table.row(task, [number for number in ended if workload.tasks[number] == task]) for task in tasks]
    return tuple(rows)


def count_failures(outcome: ServeOutcome) -> dict[str, int]:
    """Reason -> requests, refusals among them, the commonest first."""
    return dict(collections.Counter(outcome.failures.values()).most_common())


class _Table:
    def __init__(self, workload: Workload, outcome: ServeOutcome, slos: Mapping[str, Slo], labels: Labels) -> None:
        self._workload, self._outcome, self._labels = workload, outcome, labels
        arrived, first = np.asarray(workload.arrived_seconds), np.asarray(outcome.first_token_seconds)
        end = np.asarray(outcome.end_seconds)
        self._late = np.asarray(outcome.sent_seconds) - arrived
        self._ttft = first - arrived
        num_later = np.asarray(workload.answer_tokens) - 1
        # As the simulator: an answer of one token has no later ones, and misses no target of theirs.
        self._tpot = (end - first) / np.maximum(num_later, 1)
        self._timed = num_later > 0
        self._attained = attains(workload.tasks, self._ttft, self._tpot, end - arrived, slos)
        # Over all of them, as long as they were sent: of a replay that was stopped, the part that ran.
        ended = arrived[outcome.ended]
        whole = len(ended) == len(workload)
        self._span_seconds = workload.span_seconds if whole else max(float(np.ptp(ended)), 1e-3)

    def row(self, task: str, numbers: Sequence[int]) -> ServeRow:
        chosen = np.asarray(numbers)
        attained, timed = self._attained[chosen], chosen[self._timed[chosen]]
        failures = [reason for number in numbers if (reason := self._outcome.failures.get(number))]
        num_refused = failures.count(REFUSED)
        return ServeRow(
            **dataclasses.asdict(self._labels),
            trace=self._workload.name,
            task=task,
            load_rps=len(chosen) / self._span_seconds,
            goodput_rps=float(attained.sum()) / self._span_seconds,
            attainment=float(attained.mean()),
            ttft_p50_seconds=percentile(self._ttft[chosen], 50),
            ttft_p99_seconds=percentile(self._ttft[chosen], 99),
            tpot_p50_seconds=percentile(self._tpot[timed], 50),
            tpot_p99_seconds=percentile(self._tpot[timed], 99),
            queue_p50_seconds=percentile(np.asarray(self._outcome.queue_seconds)[chosen], 50),
            decision_p99_seconds=None,
            late_p99_seconds=percentile(self._late[chosen], 99) or 0.0,
            num_requests=len(chosen),
            num_refused=num_refused,
            num_failed=len(failures) - num_refused,
        )


def percentile(values: Floats, share: float) -> float | None:
    """Of those that there are; None where there is none."""
    known = values[np.isfinite(values)]
    return float(np.percentile(known, share)) if len(known) else None
