"""Batches for calibration: whole examples end to end in one row of tokens, every task in equal share.

The dealer knows where it stands, so that a run that was interrupted goes on with the very next example. Rows become
tokens when their turn comes. T tokens, N examples.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from emoe.core.errors import InvalidRequestError
from emoe.eval.rows import EncodedRow, Row, RowEncoder, encode_rows
from emoe.worker.prompts import PromptEncoder

GROUP_TOKENS = 2048
"""Examples of like length attend together while they and their padding are no more than this."""

Indices = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """How rows become tokens here."""

    encoder: PromptEncoder
    eos_token_ids: frozenset[int]
    max_context: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FlatBatch:
    """`weights` [T]: of each token's prediction in the loss, 0 for the last of an example. `groups` index the row, each
    [examples, longest], short ones filled with their last place; `places` [T]: each token's in the groups end to end.
    """

    input_ids: torch.Tensor  # [1, T]
    position_ids: torch.Tensor  # [1, T]
    weights: torch.Tensor
    owner: torch.Tensor  # [T]; whose token it is, of N
    groups: tuple[torch.Tensor, ...]
    places: torch.Tensor
    tasks: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]


class Dealer:
    """Endless examples; the task that has had the fewest tokens gives the next. Order follows from seed and epoch."""

    def __init__(self, rows: Mapping[str, Sequence[Row]], encoding: RowEncoder, *, seed: int) -> None:
        self._rows = dict(sorted(rows.items()))
        self._encoding = encoding
        self._seed = seed
        self._position = dict.fromkeys(self._rows, 0)
        self._given = dict.fromkeys(self._rows, 0)

    def deal(self, num_tokens: int) -> list[EncodedRow]:
        """At least so many tokens. InvalidRequestError when a whole task has no row that fits."""
        dealt: list[EncodedRow] = []
        size = 0
        while size < num_tokens:
            task = min(self._given, key=self._given.__getitem__)
            row = self._next(task)
            dealt.append(row)
            self._given[task] += len(row.token_ids)
            size += len(row.token_ids)
        return dealt

    def state(self) -> dict[str, Any]:
        return {"position": dict(self._position), "given": dict(self._given)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._position, self._given = dict(state["position"]), dict(state["given"])

    def _next(self, task: str) -> EncodedRow:
        rows = self._rows[task]
        for _ in range(2 * len(rows)):  # the one row that fits may begin an epoch and end the next
            epoch, place = divmod(self._position[task], len(rows))
            self._position[task] += 1
            order = _order(len(rows), self._seed, list(self._rows).index(task), epoch)
            encoded = encode_rows(self._encoding, {task: [rows[order[place]]]})[task]
            if encoded:
                return encoded[0]
        raise InvalidRequestError(
            f"no row of {task} fits {self._encoding.max_context} tokens; raise the longest context"
        )


def flatten(examples: Sequence[EncodedRow], *, prompt_weight: float, device: torch.device) -> FlatBatch:
    ordered = sorted(examples, key=lambda example: len(example.token_ids))
    lengths = np.array([len(example.token_ids) for example in ordered])
    groups, places = _group(lengths)
    return FlatBatch(
        input_ids=_tensor(np.concatenate([example.token_ids for example in ordered]), device)[None],
        position_ids=_tensor(np.concatenate([np.arange(length) for length in lengths]), device)[None],
        weights=_tensor(np.concatenate([_weights(example, prompt_weight) for example in ordered]), device),
        owner=_tensor(np.repeat(np.arange(len(ordered)), lengths), device),
        groups=tuple(_tensor(group, device) for group in groups),
        places=_tensor(places, device),
        tasks=tuple(example.task for example in ordered),
    )


def _weights(example: EncodedRow, prompt_weight: float) -> npt.NDArray[np.float32]:
    weights = np.ones(len(example.token_ids), dtype=np.float32)
    weights[: example.num_prompt_tokens - 1] = prompt_weight
    weights[-1] = 0.0
    return weights


def _group(lengths: Indices) -> tuple[list[Indices], Indices]:
    """Lengths ascend."""
    starts = np.cumsum(lengths) - lengths
    groups: list[Indices] = []
    places = np.empty(int(lengths.sum()), dtype=np.int64)
    first = offset = 0
    while first < len(lengths):
        last = first + 1
        while last < len(lengths) and (last + 1 - first) * lengths[last] <= GROUP_TOKENS:
            last += 1
        longest = int(lengths[last - 1])
        columns = np.minimum(np.arange(longest), lengths[first:last, None] - 1)
        groups.append(starts[first:last, None] + columns)
        for row in range(first, last):
            begin = offset + (row - first) * longest
            places[starts[row] : starts[row] + lengths[row]] = np.arange(begin, begin + lengths[row])
        offset += groups[-1].size
        first = last
    return groups, places


@functools.lru_cache(maxsize=64)
def _order(num_rows: int, *seed: int) -> Indices:
    return np.random.default_rng(seed).permutation(num_rows)


def _tensor(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).to(device)
