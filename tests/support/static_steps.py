"""Static steps without a graph: run as they are, and watched for what a graph could not record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from emoe.worker.build import EngineParts
from emoe.worker.engine import Engine
from emoe.worker.static_step import Replays, StepShape

WAITS_FOR_THE_HOST = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.default")


def static_engine(parts: EngineParts, replays: Replays | None, *, static_rows: int = 8) -> Engine:
    built = parts.build_engine()
    return Engine(
        model=parts.model,
        residency=parts.residency,
        table=parts.table,
        routing=parts.routing,
        kv=built._kv,
        device=torch.device(parts.options.device),
        eos_token_ids=frozenset(),
        step_tokens=parts.options.step_tokens,
        replays=replays,
        static_rows=static_rows,
    )


@dataclasses.dataclass
class EagerSteps:
    """Runs every step as it is, and remembers its shape and every operator with all that a recording would fix: shapes,
    numbers, and the places of tensors that outlive the step."""

    shapes: list[StepShape] = dataclasses.field(default_factory=list)
    traces: dict[StepShape, list[list[str]]] = dataclasses.field(default_factory=dict)

    def run(self, shape: StepShape, step: Callable[[], None]) -> None:
        self.shapes.append(shape)
        with _Watched() as watched:
            step()
        self.traces.setdefault(shape, []).append(watched.operators)


class _Watched(TorchDispatchMode):
    """Refuses what waits for the host, and writes down the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []
        self._made: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        assert not any(word in name for word in WAITS_FOR_THE_HOST), f"{name} waits for the host"
        given = torch.utils._pytree.tree_map(self._told, (args, kwargs or {}))
        self.operators.append(f"{name} {given}")
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not self._is_given(tensor, args):
                self._made[tensor.untyped_storage().data_ptr()] = tensor  # kept, so that no place is given out twice
        return result

    def _is_given(self, tensor: torch.Tensor, args: Any) -> bool:
        place = tensor.untyped_storage().data_ptr()
        given = [leaf for leaf in torch.utils._pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        return any(leaf.untyped_storage().data_ptr() == place for leaf in given)

    def _told(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        place = value.untyped_storage().data_ptr()
        where = "made here" if place in self._made else f"at {place}"
        return f"{tuple(value.shape)} {value.stride()} {value.storage_offset()} {where}"
