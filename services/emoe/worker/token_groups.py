"""A step's tokens grouped by expert, each group in a span of rows of its own.

T tokens, K choices a token, R = T * K choices, P >= R rows of all spans, D hidden.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Counts = npt.NDArray[np.int64]


def round_rows(counts: Counts) -> Counts:
    """Row counts rounded up to few different sizes: 1, 2, 4, multiples of 8 up to 64, then eight sizes an octave.

    oneDNN compiles a 16-bit product for every number of rows it meets and keeps it: a millisecond and half a
    megabyte each time. Small counts may double; there the call itself costs more than its rows.
    """
    if len(counts) and counts.max() < len(_ROUNDED):
        return _ROUNDED[counts]
    return _round_rows(counts)


def _round_rows(counts: Counts) -> Counts:
    octave = 2 ** np.floor(np.log2(np.maximum(counts - 1, 1))).astype(np.int64)
    grain = np.select([counts <= 2, counts <= 4, counts <= 64], [1, 4, 8], octave // 8)
    rounded: Counts = -(-counts // grain) * grain
    return rounded


_ROUNDED = _round_rows(np.arange(2049))


class TokenGroups:
    """Spans lie end to end: `position` says which is an expert's, `sizes` how many rows each has, padding with them;
    `num_tokens`, by expert, is without it.

    With `rounded`, sizes of spans come from `round_rows`; they depend on the tokens alone, never on residency.
    """

    def __init__(self, topk_ids_TK: torch.Tensor, *, rounded: bool) -> None:
        self._shape = topk_ids_TK.shape
        self._ids_R = topk_ids_TK.reshape(-1).cpu().numpy()
        self.ids_TK = self._ids_R.reshape(self._shape)
        self._device = topk_ids_TK.device
        if self._shape[0] == 1:  # a lone decode: each choice is a group of one row
            self.position = {expert: row for row, expert in enumerate(self._ids_R.tolist())}
            self.sizes = [1] * len(self.position)
            self.num_tokens = dict.fromkeys(self.position, 1)
            return
        order_R = np.argsort(self._ids_R, kind="stable")
        sorted_R = self._ids_R[order_R]
        firsts = np.flatnonzero(np.r_[True, sorted_R[1:] != sorted_R[:-1]])
        counts = np.diff(firsts, append=len(sorted_R))
        sizes = round_rows(counts) if rounded else counts
        starts = np.cumsum(sizes) - sizes
        row_R = np.arange(len(order_R)) + np.repeat(starts - firsts, counts)
        token_P = np.zeros(int(sizes.sum()), dtype=np.int64)
        token_P[row_R] = order_R // self._shape[1]
        row_of_choice_R = np.empty_like(row_R)
        row_of_choice_R[order_R] = row_R
        self._token_P = torch.from_numpy(token_P).to(self._device)
        self._row_of_choice_R = torch.from_numpy(row_of_choice_R).to(self._device)
        self.position = {expert: place for place, expert in enumerate(sorted_R[firsts].tolist())}
        self.sizes = sizes.tolist()
        self.num_tokens = dict(zip(self.position, counts.tolist(), strict=True))

    def gather(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [P, D]; padding repeats some token."""
        if self._shape[0] == 1:
            return hidden_TD.expand(self._shape[1], -1)
        return hidden_TD.index_select(0, self._token_P)

    def scatter(self, out_PD: torch.Tensor) -> torch.Tensor:
        """[P, D] -> [T, K, D], in the order of the router's choices."""
        if self._shape[0] == 1:
            return out_PD[None]
        return out_PD.index_select(0, self._row_of_choice_R).view(*self._shape, -1)

    def tokens(self, expert: int) -> list[int]:
        """Whose choice the expert was."""
        return (np.flatnonzero(self._ids_R == expert) // self._shape[1]).tolist()
