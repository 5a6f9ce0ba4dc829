"""A decode step as a plain function over buffers that stay where they are: what a CUDA graph can record and run again.

Nothing of a batch but its padded size, the length of keys that it may look at, and whether any expert is absent at
all, is known to the host; tokens, places and residents are read from the device. So it runs as it is on a CPU too,
which is how it is held to the ordinary step without a GPU. Whether it is recorded is `graphs`' business.
N decoding sequences, padded; L MoE layers, K choices a token, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch

from emoe.worker.attention import AttentionStep
from emoe.worker.batch import StaticDecodes, StepBatch
from emoe.worker.kv import KvCache
from emoe.worker.routing import DeviceTable, StepRouting

MIN_KEYS = 256
"""The shortest length of keys that a step is made for; longer ones double."""


@dataclasses.dataclass(frozen=True)
class StepShape:
    """What is fixed in one recording."""

    num_rows: int
    num_keys: int
    lacks_experts: bool


class Replays(Protocol):
    def run(self, shape: StepShape, step: Callable[[], None]) -> None:
        """Does what `step` does. The same shape always comes with a step that reads and writes the same buffers."""
        ...


class StaticStep:
    """For an engine's life: its buffers and its KV cache's are those that recordings point to."""

    def __init__(
        self,
        *,
        model: Any,
        kv: KvCache,
        table: DeviceTable,
        routing: StepRouting,
        replays: Replays,
        device: torch.device,
        max_rows: int,
    ) -> None:
        """`max_rows`: of more than these a step is not made."""
        self._model = model
        self._kv = kv
        self._table = table
        self._routing = routing
        self._replays = replays
        self._max_rows = min(max_rows, kv.num_rows)
        self._ids_N = torch.zeros(kv.num_rows, dtype=torch.int64, device=device)
        self._places_N = torch.zeros(kv.num_rows, dtype=torch.int64, device=device)
        self._rows_N = torch.arange(kv.num_rows, device=device)
        self._out: dict[str, torch.Tensor] = {}
        self._layers: list[int] = []

    def takes(self, batch: StepBatch) -> bool:
        """A token each of sequences in the first rows, and not too many of them."""
        return not batch.prefills and batch.decode_rows_are_prefix and 0 < batch.num_decodes <= self._max_rows

    def run(self, batch: StepBatch) -> torch.Tensor:
        """The logits [number of sequences, V], valid until the next step; routing is recorded as an ordinary step's."""
        count = batch.num_decodes
        shape = StepShape(
            num_rows=padded_rows(count, self._max_rows),
            num_keys=padded_keys(max(batch.decode_past) + 1, self._kv.max_context),
            lacks_experts=self._table.lacks_experts,
        )
        self._ids_N.zero_()
        self._places_N.zero_()
        self._ids_N[:count].copy_(batch.input_ids[0])
        self._places_N[:count].copy_(batch.position_ids[0])
        self._replays.run(shape, lambda: self._step(shape))
        self._routing.begin()
        for layer, ids_NK in zip(self._layers, self._out["ids"], strict=True):
            self._routing.record(layer, ids_NK[:count])
        return self._out["logits"][:count]

    def _step(self, shape: StepShape) -> None:
        """Padding reads token 0 at place 0, each in a row of the KV cache that nobody has taken."""
        count = shape.num_rows
        self._routing.begin()
        decodes = StaticDecodes(rows=self._rows_N[:count], past=self._places_N[:count], num_keys=shape.num_keys)
        logits_NV = self._model(
            input_ids=self._ids_N[None, :count],
            position_ids=self._places_N[None, :count],
            use_cache=False,
            emoe_step=AttentionStep(decodes, self._kv),
        ).logits[0]
        self._layers, ids_LNK = self._routing.stacked()
        self._keep("logits", logits_NV, axis=0)
        self._keep("ids", ids_LNK, axis=1)

    def _keep(self, name: str, values: torch.Tensor, *, axis: int) -> None:
        """In one buffer for all shapes: a graph's own memory is another graph's work space."""
        if name not in self._out:
            shape = [*values.shape]
            shape[axis] = self._kv.num_rows
            self._out[name] = values.new_zeros(shape)
        self._out[name].narrow(axis, 0, values.shape[axis]).copy_(values)


def padded_rows(count: int, most: int) -> int:
    """The next power of two, up to `most`."""
    return min(most, 1 << (count - 1).bit_length())


def padded_keys(longest: int, most: int) -> int:
    return min(most, max(MIN_KEYS, 1 << (longest - 1).bit_length()))
