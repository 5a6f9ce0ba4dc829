"""A store's base tensors as bytes, for tests that compare them."""

from __future__ import annotations

from emoe.store.store import ExpertStore


def read_base_tensor(store: ExpertStore, key: str) -> bytes:
    buffer = bytearray(store.base_tensors[key].num_bytes)
    store.read_tensor_into(key, memoryview(buffer))
    return bytes(buffer)
