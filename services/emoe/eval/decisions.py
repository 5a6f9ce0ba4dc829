"""The moments of a recorded request at which residents are chosen: what was known then, and what came after.

Once, after the first tokens; or then and again every so many tokens. N decisions, S spans, L layers, E experts, K
choices a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from emoe.core.own_routing import SPAN_TOKENS, Array
from emoe.eval.recorded import RecordedPrompt, RecordedRouting


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Arrays with an entry a decision. Frequencies: each layer's row sums to one."""

    prompts: npt.NDArray[np.int64]
    """[N]: which prompt it belongs to."""
    categories: npt.NDArray[np.str_]
    """[N]"""
    num_tokens: npt.NDArray[np.int64]
    """[N]: until the next decision, or the answer's end."""
    spans: Array
    """[N, S, L, E]: its routing so far, over `SPAN_TOKENS`."""
    futures: Array
    """[N, L, E]: its routing of the coming `num_tokens`."""

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, chosen_N: npt.NDArray[np.bool_]) -> Decisions:
        parts = (getattr(self, field.name)[chosen_N] for field in dataclasses.fields(self))
        return Decisions(*parts)

    def with_categories(self, category_N: npt.NDArray[np.str_]) -> Decisions:
        return dataclasses.replace(self, categories=category_N)


def find_decisions(
    routing: RecordedRouting, *, after_tokens: int, refresh_tokens: int | None, min_tokens: int
) -> Decisions:
    """Of answers of at least `min_tokens`, from `after_tokens` on; without `refresh_tokens` one each."""
    rows = []
    for index, prompt in enumerate(routing.prompts):
        if prompt.num_tokens < max(min_tokens, after_tokens + 1):
            continue
        cumulative = _cumulative_counts(prompt, routing.num_experts)
        for begin, end in _windows(prompt.num_tokens, after_tokens, refresh_tokens):
            starts = [0 if span is None else max(0, begin - span) for span in SPAN_TOKENS]
            spans = np.stack([_frequency(cumulative, start, begin, routing.top_k) for start in starts])
            future = _frequency(cumulative, begin, end, routing.top_k)
            rows.append((index, prompt.category, end - begin, spans, future))
    if not rows:
        shape = (0, len(SPAN_TOKENS), routing.num_layers, routing.num_experts)
        none = np.zeros(0, dtype=np.int64)
        return Decisions(
            none, none.astype(str), none, np.zeros(shape, np.float32), np.zeros(shape[:1] + shape[2:], np.float32)
        )
    prompts, categories, lengths, spans_, futures = zip(*rows, strict=True)
    return Decisions(np.array(prompts), np.array(categories), np.array(lengths), np.stack(spans_), np.stack(futures))


def _windows(num_tokens: int, after_tokens: int, refresh_tokens: int | None) -> Iterator[tuple[int, int]]:
    step = refresh_tokens or num_tokens
    for begin in range(after_tokens, num_tokens, step):
        yield begin, min(begin + step, num_tokens)


def _cumulative_counts(prompt: RecordedPrompt, num_experts: int) -> npt.NDArray[np.int32]:
    """[T + 1, L, E]: how often each expert was chosen by the tokens before each."""
    ids = prompt.expert_ids
    num_tokens, num_layers, _ = ids.shape
    counts = np.zeros((num_tokens + 1, num_layers, num_experts), dtype=np.int32)
    counts[np.arange(1, num_tokens + 1)[:, None, None], np.arange(num_layers)[:, None], ids] = 1
    return np.asarray(counts.cumsum(axis=0, dtype=np.int32))


def _frequency(cumulative: npt.NDArray[np.int32], begin: int, end: int, top_k: int) -> Array:
    return np.asarray((cumulative[end] - cumulative[begin]) / ((end - begin) * top_k), dtype=np.float32)
