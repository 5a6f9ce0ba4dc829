"""What a replayed trace showed: each request's outcome, as rows by task and in windows of time.

Residency follows the task mix with a delay, so windows show what a change of the mix costs. Knows neither services nor
how requests were sent.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

ALL = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One request. `refusal` is empty for one that was answered; its counts are those that its worker reported."""

    task: str
    at_seconds: float
    refusal: str = ""
    ttft_seconds: float = 0.0
    total_seconds: float = 0.0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    num_expert_hits: int = 0
    num_expert_choices: int = 0
    worker_id: str = ""
    began_seconds: float = 0.0
    """On the replay's clock: when it was sent to its worker."""
    is_expected: bool | None = None
    """Whether the answer is the data's own; None where that says nothing (only short answers can be)."""

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_completion_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterFigures:
    """Shares of demand, weighted by tokens: that some worker's residents met, and that those of the workers did to
    which the requests were sent. `distinct_experts`: resident on any worker. None where nothing can be said."""

    cluster_coverage: float | None = None
    sent_coverage: float | None = None
    distinct_experts: float | None = None


class Cluster(Protocol):
    """What the workers' residents were meanwhile."""

    def figures(self, outcomes: Sequence[Outcome], window_seconds: tuple[float, float] | None) -> ClusterFigures: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayRow:
    """`window_seconds`: begin and end in the replay; None: all of it. `bytes_moved`: by the workers, in rows of all."""

    strategy: str
    resident_ratio: float
    task: str
    window_seconds: tuple[float, float] | None
    num_requests: int
    num_failed: int
    hit_ratio: float | None
    exact_match: float | None
    ttft_p50_seconds: float | None
    ttft_p99_seconds: float | None
    tokens_per_second: float
    bytes_moved: int | None = None
    experts_loaded: int | None = None
    num_workers: int = 1
    placement: str = ""
    """Empty: the scheduler's own."""
    cluster_coverage: float | None = None
    sent_coverage: float | None = None
    distinct_experts: float | None = None


def summarise(
    outcomes: Sequence[Outcome],
    *,
    strategy: str,
    resident_ratio: float,
    wall_seconds: float,
    num_windows: int,
    bytes_moved: int,
    experts_loaded: int,
    num_workers: int = 1,
    placement: str = "",
    cluster: Cluster | None = None,
) -> Iterator[ReplayRow]:
    """All, then each task, then all in each window."""

    def row(part: Sequence[Outcome], task: str, window: tuple[float, float] | None) -> ReplayRow:
        answered = [outcome for outcome in part if not outcome.refusal]
        judged = [outcome.is_expected for outcome in answered if outcome.is_expected is not None]
        ttfts = [outcome.ttft_seconds for outcome in answered]
        choices = sum(outcome.num_expert_choices for outcome in answered)
        kept = ClusterFigures() if cluster is None else cluster.figures(part, window)
        return ReplayRow(
            strategy=strategy,
            resident_ratio=resident_ratio,
            task=task,
            window_seconds=window,
            num_requests=len(part),
            num_failed=len(part) - len(answered),
            hit_ratio=sum(outcome.num_expert_hits for outcome in answered) / choices if choices else None,
            exact_match=float(np.mean(judged)) if judged else None,
            ttft_p50_seconds=float(np.percentile(ttfts, 50)) if ttfts else None,
            ttft_p99_seconds=float(np.percentile(ttfts, 99)) if ttfts else None,
            tokens_per_second=sum(outcome.num_completion_tokens for outcome in answered)
            / (wall_seconds if window is None else window[1] - window[0]),
            num_workers=num_workers,
            placement=placement,
            **dataclasses.asdict(kept),
        )

    yield dataclasses.replace(row(outcomes, ALL, None), bytes_moved=bytes_moved, experts_loaded=experts_loaded)
    for task in sorted(collections.Counter(outcome.task for outcome in outcomes)):
        yield row([outcome for outcome in outcomes if outcome.task == task], task, None)
    edges = np.linspace(0, max(outcome.at_seconds for outcome in outcomes) + 1e-9, num_windows + 1)
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = [outcome for outcome in outcomes if begin <= outcome.at_seconds < end]
        yield row(part, ALL, (begin, end))
