from __future__ import annotations

import torch

from emoe.worker.kv import KvCache


def filled(num_rows: int) -> KvCache:
    kv = KvCache(num_rows=num_rows, max_context=8)
    key = torch.zeros(1, 2, 1, 4)
    keys, values = kv.blocks(0, key, key)
    for row in range(num_rows):
        assert kv.acquire() == row
        keys[row], values[row] = row + 1, -row - 1
    return kv


def test_rows_in_use_stay_packed_when_one_in_the_middle_is_freed() -> None:
    kv = filled(4)
    assert kv.release(1, last_row_tokens=5) == 3
    keys, values = kv.blocks(0, torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4))
    assert kv.num_used == 3
    assert (keys[1, :, :5] == 4).all()
    assert (values[1, :, :5] == -4).all()


def test_freeing_the_last_row_moves_nothing() -> None:
    kv = filled(3)
    assert kv.release(2, last_row_tokens=5) == 2
    keys, _ = kv.blocks(0, torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4))
    assert [float(keys[row, 0, 0, 0]) for row in range(2)] == [1, 2]


def test_bytes_are_counted() -> None:
    assert filled(2).num_bytes == 2 * 2 * 2 * 8 * 4 * 4
