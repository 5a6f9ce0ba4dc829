"""A store as the loading of the base model sees it: quantised linears outside the experts are weights like any other.

Each is decoded once, when it is read, into the dtype that the model computes in; attention and shared experts are used
in every step, so nothing would be won by doing it again each time. Experts are not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from emoe.store.quantisation import bytes_as
from emoe.store.store import ExpertStore
from emoe.store.tensors import TensorEntry
from emoe.worker.arena import DTYPES, SLOT_DTYPES
from emoe.worker.quantised.numbers import NUMBERS
from emoe.worker.transfer import bytes_view


class DecodedBase:
    """What of an `ExpertStore` the loading of a model asks for."""

    def __init__(self, store: ExpertStore) -> None:
        self.folder: Path = store.folder
        self.family: str = store.family
        self.dtype: str = store.dtype
        self._store = store
        self._linears = store.base_linears
        spread = {key for linear in self._linears.values() for key in linear.keys.values()}
        entries = {key: entry for key, entry in store.base_tensors.items() if key not in spread}
        for name, linear in self._linears.items():
            codes = store.base_tensors[linear.keys["codes"]]
            entries[name] = TensorEntry(
                file=codes.file,
                offset=codes.offset,
                num_bytes=bytes_as(store.dtype, linear.shape),
                shape=linear.shape,
                dtype=store.dtype,
            )
        self.base_tensors: Mapping[str, TensorEntry] = entries

    def read_tensor_into(self, key: str, buffer: memoryview) -> None:
        linear = self._linears.get(key)
        if linear is None:
            self._store.read_tensor_into(key, buffer)
            return
        assert self._store.quantisation is not None, "only a quantised store has quantised linears"
        parts = {component: self._read(published) for component, published in linear.keys.items()}
        weight = torch.frombuffer(buffer, dtype=DTYPES[self.dtype]).view(linear.shape)
        NUMBERS[self._store.quantisation.scheme](self._store.quantisation).decode(parts, 0, weight)

    def _read(self, key: str) -> torch.Tensor:
        entry = self._store.base_tensors[key]
        tensor = torch.empty(entry.shape, dtype=SLOT_DTYPES[entry.dtype])
        self._store.read_tensor_into(key, bytes_view(tensor))
        return tensor
