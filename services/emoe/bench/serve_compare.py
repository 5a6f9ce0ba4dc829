"""What `emoe bench schedule` foretells, held against a replay that ran: the same requests, the same figures of both.

The simulator gets what the system itself measured in the same run: its workers' step costs, and what the services add
to a first token, from short prompts sent while nothing else ran. It knows nothing else that the machine did meanwhile.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from emoe.bench.schedule_rows import Floats, attains
from emoe.bench.schedule_trace import Workload
from emoe.bench.simulate import SimulationOptions, simulate
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.policies import make_policy
from emoe.core.slo import Slo

PERCENTILES = (50, 90, 99)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Of the system that was replayed against."""

    policy: str
    max_queued: int
    """Requests that may wait."""
    num_workers: int
    num_rows: int
    costs: StepCosts
    idle_ttft_seconds: float
    """Of a short prompt while nothing else runs."""
    num_idle_tokens: int
    """Of that prompt."""

    @property
    def front_seconds(self) -> float:
        """What of a first token is not its step."""
        return max(0.0, self.idle_ttft_seconds - self.costs.prefill_seconds(self.num_idle_tokens))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareRow:
    """Medians over the replays; the ratio is the simulated one to the live one."""

    figure: str
    live: float
    live_least: float
    live_most: float
    simulated: float
    ratio: float


def foretell(workload: Workload, slos: Mapping[str, Slo], measured: Measured) -> dict[str, float]:
    """The simulator's figures of the same requests."""
    options = SimulationOptions(
        num_workers=measured.num_workers,
        num_rows=measured.num_rows,
        costs=measured.costs,
        front_seconds=measured.front_seconds,
        max_queued=measured.max_queued,
    )
    outcome = simulate(workload, make_policy(measured.policy), slos, options)
    return figures_of(workload, outcome.first_token_seconds, outcome.end_seconds, slos)


def figures_of(
    workload: Workload, first_token_seconds: Sequence[float], end_seconds: Sequence[float], slos: Mapping[str, Slo]
) -> dict[str, float]:
    """Figure -> value; times are NaN for what never came to that."""
    arrived, first, end = map(np.asarray, (workload.arrived_seconds, first_token_seconds, end_seconds))
    num_later = np.asarray(workload.answer_tokens) - 1
    ttft, tpot = first - arrived, (end - first) / np.maximum(num_later, 1)
    attained = attains(workload.tasks, ttft, tpot, end - arrived, slos)
    return {
        "goodput_rps": float(attained.sum()) / workload.span_seconds,
        "attainment": float(attained.mean()),
        "ttft_mean_seconds": _mean(ttft),
        **{f"ttft_p{share}_seconds": _percentile(ttft, share) for share in PERCENTILES},
        "tpot_p50_seconds": _percentile(tpot[num_later > 0], 50),
        "end_mean_seconds": _mean(end - arrived),
    }


def compare(live: Sequence[Mapping[str, float]], simulated: Sequence[Mapping[str, float]]) -> tuple[CompareRow, ...]:
    """A mapping a replay each."""
    rows = []
    for name in live[0]:
        seen = [one[name] for one in live]
        told = statistics.median(one[name] for one in simulated)
        middle = statistics.median(seen)
        rows.append(
            CompareRow(
                figure=name,
                live=middle,
                live_least=min(seen),
                live_most=max(seen),
                simulated=told,
                ratio=told / middle if middle else float("nan"),
            )
        )
    return tuple(rows)


def _percentile(values: Floats, share: float) -> float:
    known = values[np.isfinite(values)]
    return float(np.percentile(known, share)) if len(known) else float("nan")


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
