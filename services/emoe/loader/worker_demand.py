"""What one worker is planned for: what its running requests will route, as it foretells, and the prompts that follow.

Stands between the worker's heartbeats and the planner. What runs elsewhere is no reason to keep an expert here; of what
waits, nobody knows yet where it will run. Knows neither slots nor plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from emoe.core.experts import FloatGrid
from emoe.loader.workers import WorkerCounters, WorkerState

MAX_PROMPT_SHARE = 1.0
"""However long prompts are, answers count as much: what they miss shows in every later token."""

TASK_MARGIN_RATIO = 0.1
RUNNING_MARGIN_RATIO = 0.3
"""What runs changes within seconds: with one request at a time 0.3 moves half of what 0.1 does, for the same hits."""

ForecastOf = Callable[[Mapping[str, float]], FloatGrid]
"""Tokens of each task -> demand [L, E]."""


class Mix(Protocol):
    """Of all workers, or of one: the tasks that run and wait, and those that wait alone."""

    @property
    def task_tokens(self) -> Mapping[str, float]: ...

    @property
    def waiting_tokens(self) -> Mapping[str, float]: ...


def demand_of(state: WorkerState, mix: Mix, forecast_of: ForecastOf) -> FloatGrid:
    """[L, E]. From tasks alone for a worker that foretells nothing, or where nothing runs.

    Else the running requests' tokens are joined by those of the prompts that take the places of the ones that end: so
    many as the worker has seen prompt tokens for each answer token, of the tasks that wait, or of the last mix.
    """
    running = state.running
    if running is None:
        return forecast_of(mix.task_tokens)
    following = mix.waiting_tokens or mix.task_tokens
    if running.demand is None or not running.num_requests:
        return forecast_of(following)
    coming_tokens = float(running.demand.sum(axis=1).max())
    scale = prompt_share(state.counters) * coming_tokens / (sum(following.values()) or 1.0)
    return running.demand + scale * forecast_of(following)


def margin_of(state: WorkerState) -> float:
    """How much better than a resident a newcomer must be (`favour_residents`)."""
    return RUNNING_MARGIN_RATIO if state.running is not None and state.running.num_requests else TASK_MARGIN_RATIO


def prompt_share(counters: WorkerCounters) -> float:
    """Prompt tokens for each answer token."""
    return min(MAX_PROMPT_SHARE, counters.num_prompt_tokens / max(1, counters.num_completion_tokens))
