"""`emoe bench planning`: how long a prediction and a plan take on one core, for shapes of well-known models.

No model runs: predictors and planners see only how many layers and experts there are. They run in a process of their
own, whose libraries have one thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from emoe.bench.children import child_process
from emoe.bench.machine import describe_machine
from emoe.bench.rows import PlanningRow, Report
from emoe.core.experts import ExpertGrid

CHILD = "emoe.bench.planning_child"
ONE_THREAD = ("env", *(f"{name}_NUM_THREADS=1" for name in ("OMP", "OPENBLAS", "MKL", "BLIS")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelShape:
    name: str
    num_layers: int
    num_experts: int
    top_k: int


KNOWN_SHAPES = (
    ModelShape(name="Mixtral", num_layers=32, num_experts=8, top_k=2),
    ModelShape(name="Qwen3", num_layers=48, num_experts=128, top_k=8),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanningSettings:
    shapes: tuple[ModelShape, ...] = KNOWN_SHAPES
    resident_ratio: float = 0.25
    repeats: int = 200


def shape_of(grid: ExpertGrid, name: str) -> ModelShape:
    """Its MoE layers: dense ones cost nothing."""
    return ModelShape(
        name=name, num_layers=len(grid.moe_layers), num_experts=grid.rule.num_experts, top_k=grid.rule.top_k
    )


async def bench_planning(settings: PlanningSettings, *, say: Callable[[str], None]) -> Report:
    machine = describe_machine(threads=1)
    rows: list[PlanningRow] = []
    async with child_process(CHILD, {"repeats": settings.repeats}, name="planning", prefix=ONE_THREAD) as child:
        for shape in settings.shapes:
            say(f"{shape.name}: {shape.num_layers} layers of {shape.num_experts} experts, {settings.repeats} repeats")
            question = dataclasses.asdict(shape) | {"resident_ratio": settings.resident_ratio}
            del question["name"]
            answer = await child.ask(**question)
            rows += rows_from(shape, answer["seconds"])
    return Report(
        benchmark="planning",
        model="made-up demand",
        family=f"{len(settings.shapes)} shapes",
        machine=machine,
        settings={"resident_ratio": settings.resident_ratio, "repeats": settings.repeats},
        rows=tuple(rows),
    )


def rows_from(shape: ModelShape, seconds: Mapping[str, Mapping[str, Any]]) -> Iterator[PlanningRow]:
    """`seconds[step]`: wall and processor times of each repeat."""
    for step, samples in seconds.items():
        wall, processor = np.array(samples["wall"]), np.array(samples["processor"])
        yield PlanningRow(
            shape=shape.name,
            num_layers=shape.num_layers,
            num_experts=shape.num_experts,
            top_k=shape.top_k,
            step=step,
            p50_seconds=float(np.quantile(wall, 0.5)),
            p99_seconds=float(np.quantile(wall, 0.99)),
            processor_p50_seconds=float(np.quantile(processor, 0.5)),
            processor_p99_seconds=float(np.quantile(processor, 0.99)),
        )
