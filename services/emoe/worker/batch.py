"""One step's tokens, laid end to end: decodes first, a token each, then chunks of prompts.

Built by the engine, read by the attention function and by whoever counts routing. T tokens, N sequences that decode.
"""

from __future__ import annotations

import dataclasses
import functools

import torch


@dataclasses.dataclass(frozen=True)
class PrefillChunk:
    """Tokens [start, stop) of the batch go to KV row `row` behind `num_past` earlier ones."""

    start: int
    stop: int
    row: int
    num_past: int


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
        return torch.tensor(self.decode_rows, device=self.input_ids.device)

    @functools.cached_property
    def decode_past_N(self) -> torch.Tensor:
        return torch.tensor(self.decode_past, device=self.input_ids.device)

    @functools.cached_property
    def decode_rows_are_prefix(self) -> bool:
        return self.decode_rows == tuple(range(self.num_decodes))

    def decode_mask(self, window: int | None) -> torch.Tensor | None:
        """[N, 1, 1, longest]: True where a key may be seen; None when every key may. Layers of one window share it."""
        if window not in self._masks:
            self._masks[window] = self._build_decode_mask(window)
        return self._masks[window]

    def _build_decode_mask(self, window: int | None) -> torch.Tensor | None:
        longest = max(self.decode_past) + 1
        if min(self.decode_past) + 1 == longest and (window is None or longest <= window):
            return None
        keys = torch.arange(longest, device=self.input_ids.device)
        past = self.decode_past_N[:, None]
        seen = keys <= past
        if window is not None:
            seen &= keys > past - window
        return seen[:, None, None, :]
