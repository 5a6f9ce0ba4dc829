"""Keys and values of the running sequences: a row each of `max_context` tokens, in one block a layer.

Rows in use are always 0..n-1, so that a decode batch attends over views, never over copies: when a row is freed, the
last one moves into its place. Blocks are made when a layer first shows the shape of its keys.
"""

from __future__ import annotations

import torch


class KvCache:
    def __init__(self, *, num_rows: int, max_context: int) -> None:
        self.num_rows = num_rows
        self.max_context = max_context
        self.num_used = 0
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}

    @property
    def num_bytes(self) -> int:
        return sum(block.nbytes for blocks in (self._keys, self._values) for block in blocks.values())

    def acquire(self) -> int:
        assert self.num_used < self.num_rows, "the engine starts no more sequences than there are rows"
        self.num_used += 1
        return self.num_used - 1

    def release(self, row: int, *, last_row_tokens: int) -> int:
        """Frees `row`; returns the row whose contents moved there (`row` itself when none did)."""
        last = self.num_used - 1
        if row != last:
            for blocks in (self._keys, self._values):
                for block in blocks.values():
                    block[row, :, :last_row_tokens] = block[last, :, :last_row_tokens]
        self.num_used = last
        return last

    def clear(self, row: int) -> None:
        """What a failed sequence leaves may be no numbers, which no mask hides from those who take the row next."""
        for blocks in (self._keys, self._values):
            for block in blocks.values():
                block[row].zero_()

    def blocks(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows, kv heads, max_context, head_dim] each, like the new key and value [1, kv heads, T, head_dim]."""
        if layer not in self._keys:
            for blocks, new in ((self._keys, key), (self._values, value)):
                shape = (self.num_rows, new.shape[1], self.max_context, new.shape[3])
                blocks[layer] = torch.zeros(shape, dtype=new.dtype, device=new.device)
        return self._keys[layer], self._values[layer]
