"""A fitted regression as stored arrays: small, as good as before, and refused where it does not fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from emoe.core.own_routing import PREFIX, SPAN_TOKENS, OwnRoutingRegression

SHAPE = (3, 8)
Arrays = dict[str, np.ndarray]


def draw(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What is used early is used late too, one expert further on."""
    early = np.random.default_rng(seed).dirichlet(np.full(SHAPE[1], 0.3), size=(num, SHAPE[0])).astype(np.float32)
    return np.repeat(early[:, None], len(SPAN_TOKENS), axis=1), np.roll(early, 1, axis=-1)


def fitted(**options: int) -> OwnRoutingRegression:
    spans, futures = draw(300)
    regression = OwnRoutingRegression(**options)
    regression.fit(spans, futures, np.full(300, 64))
    return regression


def error(regression: OwnRoutingRegression) -> float:
    spans, futures = draw(100, seed=1)
    return float(np.abs(regression.predict(spans) - futures).mean())


def test_what_was_stored_foretells_the_same() -> None:
    regression = fitted()
    arrays = regression.arrays()
    again = OwnRoutingRegression.from_arrays({**arrays, "other/array": np.zeros(3)})
    assert again is not None
    assert again.shape == regression.shape == SHAPE
    spans, _ = draw(50, seed=2)
    assert again.predict(spans) == pytest.approx(regression.predict(spans), abs=5e-3)
    assert all(name.startswith(PREFIX) for name in arrays)


def test_a_few_centres_do_better_than_as_few_samples() -> None:
    num = 40
    assert len(fitted(max_centres=num).arrays()[PREFIX + "coefficients"]) == num
    assert error(fitted()) <= error(fitted(max_centres=num)) < error(fitted(max_samples=num))


def test_centres_that_are_the_same_are_no_trouble() -> None:
    spans, futures = draw(1)
    regression = OwnRoutingRegression(max_centres=10)
    regression.fit(np.repeat(spans, 50, axis=0), np.repeat(futures, 50, axis=0), np.full(50, 64))
    assert np.isfinite(regression.predict(spans)).all()


def test_arrays_of_others_alone_are_none() -> None:
    assert OwnRoutingRegression.from_arrays({"sequence/features": np.zeros(3)}) is None


def replaced(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {PREFIX + name: change(arrays[PREFIX + name])}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda arrays: {k: v for k, v in arrays.items() if not k.endswith("mean")}, id="no mean"),
        pytest.param(replaced("features", lambda array: array.astype(np.float32)), id="features of another dtype"),
        pytest.param(replaced("features", lambda array: array[:, :2]), id="fewer spans"),
        pytest.param(replaced("features", lambda array: array[:-1]), id="fewer centres"),
        pytest.param(replaced("coefficients", lambda array: array[:, :-1]), id="narrower coefficients"),
        pytest.param(replaced("coefficients", lambda array: array + np.float16("nan")), id="no numbers"),
        pytest.param(replaced("mean", lambda array: array[:-1]), id="shorter mean"),
        pytest.param(replaced("width", lambda array: -array), id="negative width"),
        pytest.param(replaced("basis", lambda array: array * 2), id="other spans"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(damage: Callable[[Arrays], Arrays]) -> None:
    with pytest.raises(ValueError, match=PREFIX):
        OwnRoutingRegression.from_arrays(damage(fitted().arrays()))


def test_nothing_is_stored_before_it_is_learnt() -> None:
    with pytest.raises(RuntimeError, match="fit"):
        OwnRoutingRegression().arrays()
