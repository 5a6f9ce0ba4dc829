"""The process that `emoe bench planning` times: one prediction and one plan at a time, on demand made up from a seed.

`python -m emoe.bench.planning_child '{"repeats": N}'`, with its libraries held to one thread by its environment. Each
question is a model's shape, the answer is how long each call took.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np

from emoe.bench.answering import answer_questions, own_options
from emoe.core.demand import FrequencyPredictor
from emoe.core.experts import BoolGrid, CountGrid, ExpertGrid, FloatGrid, RoutingRule
from emoe.core.frequencies import normalise
from emoe.core.own_routing import SPAN_TOKENS, Array, OwnRoutingRegression
from emoe.core.planning import PLANNERS, ResidencyPlanner
from emoe.core.refresh import favour_residents
from emoe.core.tasks import BUILTIN_TASKS, UNKNOWN
from emoe.eval.profile import most_centres

NUM_REQUESTS = 8
TOKENS_OF_EACH = 1000.0
SKEW = 0.5
"""Of the Dirichlet distribution that frequencies are drawn from: few favourites in each layer, as routing has them."""
BY_TASK, BY_REQUEST = f"frequencies of {len(BUILTIN_TASKS)} tasks", f"own routing of {NUM_REQUESTS} requests"


def main() -> None:
    repeats = int(own_options()["repeats"])

    def answer(num_layers: int, num_experts: int, top_k: int, resident_ratio: float) -> dict[str, object]:
        rule = RoutingRule(num_experts=num_experts, top_k=top_k)
        grid = ExpertGrid(num_layers=num_layers, moe_layers=tuple(range(num_layers)), rule=rule, expert_bytes=1)
        slots = max(round(resident_ratio * grid.num_experts_total), num_layers * rule.min_residents)
        return {"seconds": {step: clock(call, repeats) for step, call in build_calls(grid, slots).items()}}

    answer_questions(answer)


def clock(call: Callable[[], object], repeats: int) -> dict[str, list[float]]:
    """Once unclocked. By the clock on the wall, and by the processor's time of this process, which does not count
    while others have the core."""
    call()
    walls, processors = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        call()
        processors.append(time.process_time() - processor)
        walls.append(time.perf_counter() - wall)
    return {"wall": walls, "processor": processors}


def build_calls(grid: ExpertGrid, num_slots: int) -> dict[str, Callable[[], object]]:
    """Step -> what is done in it. A whole call is what stands between new counts and a plan."""
    random = np.random.default_rng(0)
    by_task, by_request = _task_demand(grid, random), _request_demand(grid, random)
    calls: dict[str, Callable[[], object]] = {BY_TASK: by_task, BY_REQUEST: by_request}
    demand = by_task() + by_request()
    for name, planner in PLANNERS.items():
        resident = planner.plan(by_task(), num_slots=num_slots, grid=grid)
        plan = functools.partial(_plan, planner, resident, num_slots, grid)
        calls[f"plan, {name}"] = functools.partial(plan, lambda: demand)
        calls[f"all, {name}"] = functools.partial(plan, lambda: by_task() + by_request())
    return calls


def _plan(
    planner: ResidencyPlanner, resident: BoolGrid, num_slots: int, grid: ExpertGrid, predict: Callable[[], FloatGrid]
) -> None:
    """As the loader does it for a worker."""
    planner.plan(favour_residents(predict(), resident), num_slots=num_slots, grid=grid)


def _task_demand(grid: ExpertGrid, random: np.random.Generator) -> Callable[[], FloatGrid]:
    """Each task asked for by itself, as the loader asks, after new counts of one of them."""
    tasks = (*BUILTIN_TASKS, UNKNOWN)
    predictor = FrequencyPredictor(grid.shape)
    counts: CountGrid = np.rint(1e4 * random.dirichlet(np.full(grid.shape[1], SKEW), grid.shape[0])).astype(np.int64)
    for task in BUILTIN_TASKS:
        predictor.observe(task, random.permuted(counts, axis=1))

    def predict() -> FloatGrid:
        predictor.observe(BUILTIN_TASKS[0], counts)
        return np.asarray(sum(TOKENS_OF_EACH * predictor.predict({task: 1.0}) for task in tasks))

    return predict


def _request_demand(grid: ExpertGrid, random: np.random.Generator) -> Callable[[], FloatGrid]:
    num_centres = most_centres(grid.shape)
    regression = OwnRoutingRegression(max_samples=num_centres)
    spans, futures = (_frequencies(grid, (num_centres, *extra), random) for extra in ((len(SPAN_TOKENS),), ()))
    regression.fit(spans, futures, np.full(num_centres, 64))
    asked = _frequencies(grid, (NUM_REQUESTS, len(SPAN_TOKENS)), random)
    return lambda: TOKENS_OF_EACH * regression.predict(asked).sum(axis=0, dtype=np.float64)


def _frequencies(grid: ExpertGrid, first: tuple[int, ...], random: np.random.Generator) -> Array:
    return normalise(random.standard_gamma(SKEW, size=(*first, *grid.shape), dtype=np.float32) + np.float32(1e-6))


if __name__ == "__main__":
    main()
