"""Retrieval finds the stored requests nearest by a sign, and averages what these went on to route."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.frequencies import normalise
from emoe.core.retrieval import NearestRouting, cosine_signs

SHAPE = (2, 6)


def draw(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two kinds of requests, far apart by their signs, each kind with futures of its own half of the experts."""
    random = np.random.default_rng(seed)
    kinds = random.integers(2, size=num)
    signs = (random.normal(size=(num, 3)) + 20 * kinds[:, None]).astype(np.float32)
    futures = np.zeros((num, *SHAPE), dtype=np.float32)
    for place, kind in enumerate(kinds):
        futures[place, :, 3 * kind : 3 * kind + 3] = random.dirichlet(np.ones(3), size=SHAPE[0])
    return signs, futures, kinds


def test_the_futures_of_the_nearest_are_foretold() -> None:
    signs, futures, _ = draw(60)
    nearest = NearestRouting(num_nearest=5)
    nearest.fit(signs, futures)
    asked, _, kinds = draw(20, seed=1)
    predicted = nearest.predict(asked)
    for grid, kind in zip(predicted, kinds, strict=True):
        assert grid[:, 3 * kind : 3 * kind + 3].sum() == pytest.approx(SHAPE[0], abs=1e-5)


def test_a_nearer_request_weighs_more() -> None:
    futures = np.eye(3, dtype=np.float32)[:, None, :]
    nearest = NearestRouting(num_nearest=2)
    nearest.fit(np.array([[0.0], [2.0], [10.0]], dtype=np.float32), futures)
    (predicted,) = nearest.predict(np.array([[0.0]], dtype=np.float32))
    # Squared distances 0, 4 and, of the first one beyond, 100.
    assert predicted[0] == pytest.approx([100 / 196, 96 / 196, 0.0])


@given(num_stored=st.integers(1, 30), num_nearest=st.integers(1, 40), equal=st.booleans())
def test_predictions_are_frequencies_however_few_are_stored(num_stored: int, num_nearest: int, equal: bool) -> None:
    random = np.random.default_rng(num_stored)
    signs = np.ones((num_stored, 2)) if equal else random.normal(size=(num_stored, 2))
    nearest = NearestRouting(num_nearest=num_nearest)
    nearest.fit(signs.astype(np.float32), normalise(random.random((num_stored, *SHAPE), dtype=np.float32)))
    predicted = nearest.predict(random.normal(size=(4, 2)).astype(np.float32))
    assert predicted.shape == (4, *SHAPE)
    assert (predicted >= 0).all()
    assert predicted.sum(axis=-1) == pytest.approx(np.ones((4, SHAPE[0])), abs=1e-4)


def test_scale_of_a_sign_changes_nothing() -> None:
    signs, futures, _ = draw(40)
    asked, _, _ = draw(5, seed=2)
    found = []
    for scale in (1.0, 1000.0):
        nearest = NearestRouting()
        nearest.fit(scale * signs, futures)
        found.append(nearest.predict(scale * asked))
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_cosine_signs_are_as_far_apart_as_twice_one_minus_the_cosine() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 1, 3, 4)).astype(np.float32)
    cosine = (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)
    distance = ((cosine_signs(one) - cosine_signs(other)) ** 2).sum()
    assert distance == pytest.approx(2 * (1 - cosine), abs=1e-5)
    assert not cosine_signs(np.zeros((1, 4), dtype=np.float32)).any()


def test_nothing_stored_and_nothing_fitted_are_said() -> None:
    with pytest.raises(ValueError, match="no request was stored"):
        NearestRouting().fit(np.zeros((0, 2), np.float32), np.zeros((0, *SHAPE), np.float32))
    with pytest.raises(RuntimeError, match="fit"):
        NearestRouting().predict(np.zeros((1, 2), np.float32))
