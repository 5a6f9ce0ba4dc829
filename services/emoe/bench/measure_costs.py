"""`emoe bench costs`: what the steps of a real engine take on this machine, fitted as a worker fits them.

The engine runs a random load, now with few sequences, now with all its rows taken, prompts short and long, so that the
costs of each kind of token can be told apart. The last quarter is not fitted: the costs are judged on it.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from emoe.bench.engines import fill, new_sequence, open_parts
from emoe.bench.failures import BenchmarkError
from emoe.bench.machine import describe_machine
from emoe.bench.prompts import random_prompts, vocab_size_of
from emoe.bench.schedule_costs import MeasuredCosts
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.step_cost_fit import StepCostFit, StepWork
from emoe.store.store import ExpertStore
from emoe.worker.build import EngineOptions
from emoe.worker.engine import Engine
from emoe.worker.warmup import warm_up

FITTED_SHARE = 0.75
MAX_ANSWER_TOKENS = 96
SAY_SECONDS = 5.0

Step = tuple[StepWork, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostSettings:
    seconds: float = 60.0
    max_concurrency: int = 8
    max_context: int = 2048
    expert_memory: str = "100%"
    miss_policy: str = "reroute"
    threads: int | None = None
    seed: int = 0


def measure_costs(model: Path, settings: CostSettings, *, say: Callable[[str], None]) -> MeasuredCosts:
    machine = describe_machine(threads=settings.threads)
    torch.set_num_threads(machine.threads)
    with ExpertStore.open(model) as store:
        vocab_size = vocab_size_of(store)
    options = EngineOptions(
        expert_memory=settings.expert_memory,
        miss_policy=settings.miss_policy,
        max_context=settings.max_context,
        max_concurrency=settings.max_concurrency,
    )
    say(f"loading {model.name}")
    with open_parts(model, options) as parts:
        fill(parts)
        warm_up(parts)
        steps = _RandomLoad(parts.build_engine(), settings, vocab_size).run(say)
    costs, error = fit_steps(steps, step_tokens=options.step_tokens, loads_misses=settings.miss_policy == "load")
    return MeasuredCosts(
        model=model.name,
        miss_policy=settings.miss_policy,
        expert_memory=settings.expert_memory,
        max_concurrency=settings.max_concurrency,
        num_steps=len(steps),
        typical_error_ratio=error,
        costs=costs,
        machine=machine,
    )


def fit_steps(steps: list[Step], *, step_tokens: int, loads_misses: bool) -> tuple[StepCosts, float]:
    """-> costs, and the median relative error on the steps that were kept from the fit."""
    fit = StepCostFit(step_tokens=step_tokens, loads_misses=loads_misses)
    fitted = int(len(steps) * FITTED_SHARE)
    for work, seconds in steps[:fitted]:
        fit.observe(work, seconds=seconds)
    if fit.told is None or fitted == len(steps):
        raise BenchmarkError(f"{len(steps)} steps are too few to tell costs by; measure for longer with --seconds")
    costs = fit.told.costs
    errors = [abs(_foretold(costs, work) / (seconds - work.stall_seconds) - 1) for work, seconds in steps[fitted:]]
    return costs, statistics.median(errors)


def _foretold(costs: StepCosts, work: StepWork) -> float:
    return costs.step_seconds(
        num_prompt_tokens=work.num_prompt_tokens,
        num_decoding=work.num_decoding,
        num_context_tokens=work.num_context_tokens,
    )


class _RandomLoad:
    """How many sequences are wanted at once changes now and then; one that ends is followed by another."""

    def __init__(self, engine: Engine, settings: CostSettings, vocab_size: int) -> None:
        self._engine, self._settings, self._vocab_size = engine, settings, vocab_size
        self._draw = random.Random(settings.seed)
        self._num_sent = 0

    def run(self, say: Callable[[str], None]) -> list[Step]:
        steps: list[Step] = []
        began = said = time.perf_counter()
        wanted = 1
        while (now := time.perf_counter()) - began < self._settings.seconds:
            if self._draw.random() < 0.03:
                wanted = self._draw.randint(1, self._settings.max_concurrency)
            if len(self._engine.sequences) < wanted:
                self._send()
            steps.append(self._step())
            if now - said >= SAY_SECONDS:
                said = now
                say(f"{now - began:.0f} of {self._settings.seconds:.0f} s: {len(steps)} steps")
        return steps

    def _send(self) -> None:
        most = self._settings.max_context - MAX_ANSWER_TOKENS - 1
        num_tokens = max(1, round(most ** self._draw.random()))
        (prompt,) = random_prompts(1, num_tokens, vocab_size=self._vocab_size, seed=self._num_sent)
        answer = self._draw.randint(2, MAX_ANSWER_TOKENS)
        self._engine.add(new_sequence(str(self._num_sent), prompt, new_tokens=answer))
        self._num_sent += 1

    def _step(self) -> Step:
        began = time.perf_counter()
        events = self._engine.step()
        seconds = time.perf_counter() - began
        failed = next((event.error for event in events if event.error), None)
        if failed or self._engine.last_work is None:
            raise BenchmarkError(f"the engine failed: {failed or 'a step says nothing of its work'}")
        return self._engine.last_work, seconds
