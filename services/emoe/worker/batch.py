"""One step's tokens, laid end to end: decodes first, a token each, then chunks of prompts.

Built by the engine, read by the attention function and by whoever counts routing. T tokens, N sequences that decode.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import torch

MAX_PADDING_RATIO = 2.0
"""Decodes attend together while padding to the longest costs no more than this; else one by one."""


@dataclasses.dataclass(frozen=True)
class PrefillChunk:
    """Tokens [start, stop) of the batch go to KV row `row` behind `num_past` earlier ones."""

    start: int
    stop: int
    row: int
    num_past: int


class AttendedBatch(Protocol):
    """What attention asks of a batch."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_decodes(self) -> int: ...

    @property
    def prefills(self) -> Sequence[PrefillChunk]: ...

    @property
    def decode_rows_N(self) -> torch.Tensor:
        """KV row of each decoding sequence."""
        ...

    @property
    def decode_past_N(self) -> torch.Tensor:
        """How many tokens that row holds already."""
        ...

    @property
    def shared_keys(self) -> int | None:
        """So many keys of each of the first rows all decodes look at together; None: one by one."""
        ...

    @property
    def lone_decodes(self) -> Sequence[tuple[int, int]]:
        """(row, past), where they attend one by one."""
        ...

    def decode_mask(self, window: int | None) -> torch.Tensor | None:
        """[N, 1, 1, shared keys]: True where a key may be seen; None when every key may."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StaticDecodes:
    """A token for each of the first rows of the KV cache, whose `past` only the device knows."""

    rows: torch.Tensor
    past: torch.Tensor
    num_keys: int
    prefills: tuple[PrefillChunk, ...] = ()
    lone_decodes: tuple[tuple[int, int], ...] = ()
    _masks: dict[int | None, torch.Tensor] = dataclasses.field(default_factory=dict, init=False)

    @property
    def num_tokens(self) -> int:
        return len(self.rows)

    @property
    def num_decodes(self) -> int:
        return len(self.rows)

    @property
    def decode_rows_N(self) -> torch.Tensor:
        return self.rows

    @property
    def decode_past_N(self) -> torch.Tensor:
        return self.past

    @property
    def shared_keys(self) -> int:
        return self.num_keys

    def decode_mask(self, window: int | None) -> torch.Tensor:
        if window not in self._masks:
            self._masks[window] = seen_keys(self.past, self.num_keys, window)
        return self._masks[window]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StepBatch:
    input_ids: torch.Tensor  # [1, T]
    position_ids: torch.Tensor  # [1, T]
    decode_rows: tuple[int, ...]  # KV row of each decoding sequence, ascending
    decode_past: tuple[int, ...]  # how many tokens that row holds already
    prefills: tuple[PrefillChunk, ...]
    logit_positions: torch.Tensor  # [number of sequences that get a token]
    _masks: dict[int | None, torch.Tensor | None] = dataclasses.field(default_factory=dict, init=False)

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def num_decodes(self) -> int:
        return len(self.decode_rows)

    @functools.cached_property
    def decode_rows_N(self) -> torch.Tensor:
        return tensor_on(self.input_ids.device, self.decode_rows)

    @functools.cached_property
    def decode_past_N(self) -> torch.Tensor:
        return tensor_on(self.input_ids.device, self.decode_past)

    @functools.cached_property
    def decode_rows_are_prefix(self) -> bool:
        return self.decode_rows == tuple(range(self.num_decodes))

    @functools.cached_property
    def shared_keys(self) -> int | None:
        longest, useful = max(self.decode_past) + 1, sum(self.decode_past) + self.num_decodes
        together = self.decode_rows_are_prefix and longest * self.num_decodes <= MAX_PADDING_RATIO * useful
        return longest if together else None

    @property
    def lone_decodes(self) -> Sequence[tuple[int, int]]:
        return list(zip(self.decode_rows, self.decode_past, strict=True))

    def decode_mask(self, window: int | None) -> torch.Tensor | None:
        """Layers of one window share it."""
        if window not in self._masks:
            self._masks[window] = self._build_decode_mask(window)
        return self._masks[window]

    def _build_decode_mask(self, window: int | None) -> torch.Tensor | None:
        longest = max(self.decode_past) + 1
        if min(self.decode_past) + 1 == longest and (window is None or longest <= window):
            return None
        return seen_keys(self.decode_past_N, longest, window)


def tensor_on(device: torch.device, values: Sequence[int]) -> torch.Tensor:
    """Made on the host and sent: `torch.tensor` on a device waits for it."""
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


def seen_keys(past_N: torch.Tensor, num_keys: int, window: int | None) -> torch.Tensor:
    """[N, 1, 1, keys]"""
    keys = torch.arange(num_keys, device=past_N.device)
    past_N1 = past_N[:, None]
    seen = keys <= past_N1
    if window is not None:
        seen &= keys > past_N1 - window
    return seen[:, None, None, :]
