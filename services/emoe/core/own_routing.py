"""What a request routed so far tells of what it will route: the best signal there is of a running request.

A request's own counts predict its next tokens better than its task does, and the requests that began alike say what
its own counts leave out. Kernel ridge regression learns that remainder: few hundred finished requests are enough, a fit
takes seconds, a prediction milliseconds. Stands beside `demand`, which knows tasks and no single request.
N requests (or moments of them), S spans, L layers, E experts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from emoe.core.frequencies import normalise

Array = npt.NDArray[np.float32]
FloatGrid = npt.NDArray[np.float64]

SPAN_TOKENS: tuple[int | None, ...] = (None, 64, 16)
"""How far back the spans of a request's own counts reach: all of it, its latest tokens, its very latest."""
BASE_WEIGHTS = (0.3, 0.2, 0.0)
"""How much of each span is taken as it is; the regression learns what is left."""
MIN_TOKENS = 8.0
"""A future of fewer tokens is mostly noise: it counts no less than so many."""

JITTER = 1e-6
"""Keeps the equations soluble where two centres are one and the same."""
PREFIX = "own_routing/"
"""Of its arrays' names in the learned file."""
ROOT_STEPS = 255
"""A square root of a frequency is written in so many steps."""


@dataclasses.dataclass(frozen=True)
class _Fitted:
    features: Array
    """[N, F] of the centres."""
    shape: tuple[int, int]
    """L, E"""
    coefficients: Array
    """[N, L * E]"""
    mean: Array
    """[L * E]"""

    @functools.cached_property
    def squares(self) -> Array:
        """[N]: of the centres' lengths; to add them up takes longer than all else of a prediction."""
        return _squares(self.features)


class OwnRoutingRegression:
    """Kernel ridge regression from a request's own routing to the routing of its coming tokens.

    Features are square roots of frequencies (as in Hellinger's distance), the kernel exp(-width * |x - y|^2), a
    sample's noise falls with the tokens of its future. It learns from at most `max_samples`, and its function has its
    centres in at most `max_centres` of these (subset of regressors: Rasmussen and Williams, Gaussian Processes for
    Machine Learning, section 8.3.1): a tenth of the samples does nearly as well and is so much smaller and faster. Both
    are taken evenly from what is given.
    """

    def __init__(
        self, *, width: float = 1.0, ridge: float = 0.5, max_samples: int = 2048, max_centres: int | None = None
    ) -> None:
        self._width = width
        self._ridge = ridge
        self._max_samples = max_samples
        self._max_centres = max_centres or max_samples
        self._fitted: _Fitted | None = None

    def fit(self, spans_NSLE: Array, futures_NLE: Array, num_tokens_N: npt.NDArray[np.int64]) -> None:
        """`spans`: frequencies so far, over SPAN_TOKENS; `futures`: of the `num_tokens` that came after.

        Rows sum to one. ValueError when there is no sample.
        """
        if not len(spans_NSLE):
            raise ValueError("nothing to learn from: no finished request was given")
        kept = _evenly(len(spans_NSLE), self._max_samples)
        spans, tokens_N = spans_NSLE[kept], np.maximum(num_tokens_N[kept], MIN_TOKENS)
        rest_NG = (futures_NLE[kept] - _base(spans)).reshape(len(kept), -1)
        mean_G = rest_NG.mean(axis=0)
        features_NF = _features(spans)
        centres = _evenly(len(kept), self._max_centres)
        centres_CF = features_NF[centres]
        kernel_NC = self._kernel(features_NF, centres_CF, _squares(centres_CF)).astype(np.float64)
        coefficients = self._solve(kernel_NC, centres, tokens_N / tokens_N.mean(), rest_NG - mean_G)
        _, _, num_layers, num_experts = spans.shape
        self._fitted = _Fitted(centres_CF, (num_layers, num_experts), coefficients.astype(np.float32), mean_G)

    def _solve(
        self, kernel_NC: FloatGrid, centres: npt.NDArray[np.int64], weights_N: FloatGrid, rest_NG: Array
    ) -> FloatGrid:
        """-> coefficients [C, G]. With every sample a centre: the plain equations, which are better conditioned."""
        num_samples, num_centres = kernel_NC.shape
        if num_samples == num_centres:
            system = kernel_NC + self._ridge * np.diag(1 / weights_N)
            return np.asarray(np.linalg.solve(system, rest_NG.astype(np.float64)), dtype=np.float64)
        weighted_CN = (kernel_NC * weights_N[:, None]).T
        system = weighted_CN @ kernel_NC + self._ridge * kernel_NC[centres]
        system[np.diag_indices(num_centres)] += JITTER * num_samples
        return np.asarray(np.linalg.solve(system, weighted_CN @ rest_NG), dtype=np.float64)

    def predict(self, spans_NSLE: Array) -> Array:
        """-> expected frequencies [N, L, E] of the coming tokens; rows sum to one. RuntimeError before `fit`."""
        if self._fitted is None:
            raise RuntimeError("fit before predict")
        kernel = self._kernel(_features(spans_NSLE), self._fitted.features, self._fitted.squares)
        rest = kernel @ self._fitted.coefficients + self._fitted.mean
        base = _base(spans_NSLE)
        return normalise(np.maximum(base + rest.reshape(base.shape), 0.0))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What `predict` needs, as the learned file has it: a few bytes a number, far below what a sample's noise is.

        RuntimeError before `fit`.
        """
        if self._fitted is None:
            raise RuntimeError("fit before it is written down")
        fitted = self._fitted
        num_layers, num_experts = fitted.shape
        roots_NSLE = (fitted.features * np.sqrt(num_layers)).reshape(-1, len(SPAN_TOKENS), num_layers, num_experts)
        stored = {
            "features": np.rint(np.clip(roots_NSLE, 0, 1) * ROOT_STEPS).astype(np.uint8),
            "coefficients": fitted.coefficients.astype(np.float16),
            "mean": fitted.mean.astype(np.float32),
            "width": np.array(self._width, dtype=np.float64),
            "basis": _basis(),
        }
        return {PREFIX + name: array for name, array in stored.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self | None:
        """As `arrays` gave them, among others; None when they are not there. ValueError when they do not fit."""
        if PREFIX + "features" not in arrays:
            return None
        try:
            features, coefficients, mean, width, basis = (
                arrays[PREFIX + name] for name in ("features", "coefficients", "mean", "width", "basis")
            )
        except KeyError as error:
            raise ValueError(f"{error} is missing beside {PREFIX}features") from None
        if basis.shape != _basis().shape or not np.allclose(basis, _basis()):
            raise ValueError(f"{PREFIX}basis: other spans than this version's, {SPAN_TOKENS}")
        if features.ndim != 4 or features.shape[1] != len(SPAN_TOKENS) or features.dtype != np.uint8:
            raise ValueError(f"{PREFIX}features must be bytes [centres, {len(SPAN_TOKENS)} spans, layers, experts]")
        num_samples, _, num_layers, num_experts = features.shape
        if coefficients.shape != (num_samples, num_layers * num_experts) or mean.shape != coefficients.shape[1:]:
            raise ValueError(f"{PREFIX}coefficients {coefficients.shape} do not fit features {features.shape}")
        if not (np.isfinite(coefficients).all() and np.isfinite(mean).all() and width.shape == () and width > 0):
            raise ValueError(f"{PREFIX}coefficients, mean or width: not finite, or no width")
        regression = cls(width=float(width))
        features_NF = (features.reshape(num_samples, -1) / (ROOT_STEPS * np.sqrt(num_layers))).astype(np.float32)
        regression._fitted = _Fitted(
            features_NF, (num_layers, num_experts), coefficients.astype(np.float32), mean.astype(np.float32)
        )
        return regression

    @property
    def shape(self) -> tuple[int, int]:
        """L, E of what was learnt. RuntimeError before `fit`."""
        if self._fitted is None:
            raise RuntimeError("fit before its shape is asked")
        return self._fitted.shape

    def _kernel(self, one_NF: Array, other_MF: Array, squares_M: Array) -> Array:
        distances = _squares(one_NF)[:, None] + squares_M - 2 * one_NF @ other_MF.T
        return np.asarray(np.exp(-self._width * distances), dtype=np.float32)


def _features(spans_NSLE: Array) -> Array:
    """[N, F], each span of a layer a unit vector shrunk so that distances do not grow with the number of layers."""
    return np.asarray(np.sqrt(spans_NSLE / spans_NSLE.shape[2]).reshape(len(spans_NSLE), -1), dtype=np.float32)


def _squares(features_NF: Array) -> Array:
    return np.asarray(np.einsum("nf,nf->n", features_NF, features_NF))


def _evenly(num: int, most: int) -> npt.NDArray[np.int64]:
    return np.unique(np.linspace(0, num - 1, most).round().astype(np.int64))


def _basis() -> npt.NDArray[np.float64]:
    """[2, S]: what the meaning of features and coefficients hangs on; a span of everything is 0."""
    return np.array([[span or 0 for span in SPAN_TOKENS], BASE_WEIGHTS], dtype=np.float64)


def _base(spans_NSLE: Array) -> Array:
    return np.asarray(np.einsum("nsle,s->nle", spans_NSLE, np.array(BASE_WEIGHTS)), dtype=np.float32)
