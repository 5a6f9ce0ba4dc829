"""The regression finds what a request's own first tokens tell of its next ones, and keeps to frequencies."""

from __future__ import annotations

import numpy as np
import pytest

from emoe.core.frequencies import normalise
from emoe.core.own_routing import SPAN_TOKENS, OwnRoutingRegression

SHAPE = (3, 8)


def draw(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Requests of two kinds: what the first half of a layer's experts gets early, the second half gets later."""
    random = np.random.default_rng(seed)
    early = random.dirichlet(np.full(SHAPE[1] // 2, 0.5), size=(num, SHAPE[0]))
    spans = np.concatenate([early, np.zeros_like(early)], axis=-1).astype(np.float32)
    futures = np.concatenate([np.zeros_like(early), early], axis=-1).astype(np.float32)
    return np.repeat(spans[:, None], len(SPAN_TOKENS), axis=1), futures


def test_what_follows_is_learnt_from_others_that_began_alike() -> None:
    spans, futures = draw(200)
    regression = OwnRoutingRegression()
    regression.fit(spans, futures, np.full(200, 64))
    new_spans, new_futures = draw(50, seed=1)
    predicted = regression.predict(new_spans)
    best = predicted.argmax(axis=-1) == new_futures.argmax(axis=-1)
    assert best.mean() > 0.8
    naive = new_spans[:, 0].argmax(axis=-1) == new_futures.argmax(axis=-1)
    assert naive.mean() == 0


def test_predictions_are_frequencies() -> None:
    spans, futures = draw(30)
    regression = OwnRoutingRegression()
    regression.fit(spans, futures, np.arange(1, 31))
    predicted = regression.predict(draw(10, seed=2)[0])
    assert predicted.shape == (10, *SHAPE)
    assert (predicted >= 0).all()
    assert predicted.sum(axis=-1) == pytest.approx(1.0, abs=1e-5)


def test_futures_of_few_tokens_count_less() -> None:
    """Two lots that contradict each other: the one seen over more tokens is believed."""
    spans = np.full((40, len(SPAN_TOKENS), *SHAPE), 1 / SHAPE[1], dtype=np.float32)
    futures = np.zeros((40, *SHAPE), dtype=np.float32)
    futures[:20, :, 1] = futures[20:, :, 2] = 1
    spans[:20, :, :, 0] += 0.01
    regression = OwnRoutingRegression()
    regression.fit(normalise(spans), futures, np.r_[np.full(20, 2000), np.full(20, 8)])
    predicted = regression.predict(normalise(spans)[:1])
    assert predicted[0, 0, 1] > predicted[0, 0, 2]


def test_memory_is_bounded_by_keeping_samples_evenly() -> None:
    spans, futures = draw(100)
    bounded, whole = OwnRoutingRegression(max_samples=50), OwnRoutingRegression()
    for regression in (bounded, whole):
        regression.fit(spans, futures, np.full(100, 64))
    asked = draw(20, seed=3)[0]
    apart = np.abs(bounded.predict(asked) - whole.predict(asked))
    assert 0 < apart.mean() < 0.05


def test_nothing_to_learn_from_and_nothing_learnt_are_errors() -> None:
    spans, futures = draw(2)
    with pytest.raises(ValueError, match="nothing to learn"):
        OwnRoutingRegression().fit(spans[:0], futures[:0], np.zeros(0, dtype=np.int64))
    with pytest.raises(RuntimeError, match="fit"):
        OwnRoutingRegression().predict(spans)
