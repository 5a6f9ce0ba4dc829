"""What a sequence routed so far, however its tokens came, equals what counting them all anew would give."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.own_routing import SPAN_TOKENS
from emoe.worker.own_counts import WINDOW_TOKENS, OwnCounts

LAYERS = np.array([1, 2])
"""Layer 0 is dense."""
SHAPE = (3, 8)
TOP_K = 2


def routing_of(num_tokens: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """[layers that route, T, K]"""
    random = np.random.default_rng(seed)
    choices = random.random((len(LAYERS), num_tokens, SHAPE[1])).argsort(axis=-1)[..., :TOP_K]
    return np.asarray(choices, dtype=np.int64)


def spans_by_hand(ids_LTK: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    num_tokens = ids_LTK.shape[1]
    spans = np.zeros((len(SPAN_TOKENS), *SHAPE))
    for place, span in enumerate(SPAN_TOKENS):
        for token in range(0 if span is None else max(0, num_tokens - span), num_tokens):
            for row, layer in enumerate(LAYERS):
                spans[place, layer, ids_LTK[row, token]] += 1
    return spans / spans[:, LAYERS].sum(axis=-1).max(axis=-1)[:, None, None]


def fed(pieces: list[int], ids_LTK: npt.NDArray[np.int64]) -> OwnCounts:
    own, begin = OwnCounts(LAYERS, SHAPE), 0
    for size in pieces:
        own.add(ids_LTK[:, begin : begin + size])
        begin += size
    return own


@given(pieces=st.lists(st.sampled_from([1, 1, 1, 2, 17, WINDOW_TOKENS, WINDOW_TOKENS + 3]), min_size=1, max_size=150))
def test_spans_are_those_of_all_tokens_however_they_came(pieces: list[int]) -> None:
    ids_LTK = routing_of(sum(pieces))
    own = fed(pieces, ids_LTK)
    np.testing.assert_allclose(own.look().spans(), spans_by_hand(ids_LTK), rtol=1e-6)
    assert own.num_tokens == sum(pieces)


@pytest.mark.parametrize("num_later", [1, WINDOW_TOKENS, 3 * WINDOW_TOKENS])
def test_a_look_is_a_copy_that_later_tokens_leave_alone(num_later: int) -> None:
    ids_LTK = routing_of(30 + num_later)
    own = fed([30], ids_LTK)
    seen = own.look()
    for token in range(30, 30 + num_later):
        own.add(ids_LTK[:, token : token + 1])
    np.testing.assert_allclose(seen.spans(), spans_by_hand(ids_LTK[:, :30]), rtol=1e-6)


def test_a_look_begins_the_count_of_new_tokens_anew() -> None:
    own = fed([20, 1], routing_of(21))
    own.is_due = True
    assert own.num_new_tokens == 21
    own.look()
    assert (own.num_new_tokens, own.is_due) == (0, False)
