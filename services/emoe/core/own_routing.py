"""What a request routed so far tells of what it will route: the best signal there is of a running request.

A request's own counts predict its next tokens better than its task does, and the requests that began alike say what
its own counts leave out. Kernel ridge regression learns that remainder: few hundred finished requests are enough, a fit
takes seconds, a prediction milliseconds. Stands beside `demand`, which knows tasks and no single request.
N requests (or moments of them), S spans, L layers, E experts.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

SPAN_TOKENS: tuple[int | None, ...] = (None, 64, 16)
"""How far back the spans of a request's own counts reach: all of it, its latest tokens, its very latest."""
BASE_WEIGHTS = (0.3, 0.2, 0.0)
"""How much of each span is taken as it is; the regression learns what is left."""
MIN_TOKENS = 8.0
"""A future of fewer tokens is mostly noise: it counts no less than so many."""


@dataclasses.dataclass(frozen=True)
class _Fitted:
    features: Array
    """[N, F] of the samples kept."""
    coefficients: Array
    """[N, L * E]"""
    mean: Array
    """[L * E]"""


class OwnRoutingRegression:
    """Kernel ridge regression from a request's own routing to the routing of its coming tokens.

    Features are square roots of frequencies (as in Hellinger's distance), the kernel exp(-width * |x - y|^2), a
    sample's noise falls with the tokens of its future. At most `max_samples` are kept, evenly over those given.
    """

    def __init__(self, *, width: float = 1.0, ridge: float = 0.5, max_samples: int = 2048) -> None:
        self._width = width
        self._ridge = ridge
        self._max_samples = max_samples
        self._fitted: _Fitted | None = None

    def fit(self, spans_NSLE: Array, futures_NLE: Array, num_tokens_N: npt.NDArray[np.int64]) -> None:
        """`spans`: frequencies so far, over SPAN_TOKENS; `futures`: of the `num_tokens` that came after.

        Rows sum to one. ValueError when there is no sample.
        """
        if not len(spans_NSLE):
            raise ValueError("nothing to learn from: no finished request was given")
        kept = np.unique(np.linspace(0, len(spans_NSLE) - 1, self._max_samples).round().astype(np.int64))
        spans, tokens = spans_NSLE[kept], np.maximum(num_tokens_N[kept], MIN_TOKENS)
        rest_NG = (futures_NLE[kept] - _base(spans)).reshape(len(kept), -1)
        mean_G = rest_NG.mean(axis=0)
        features_NF = _features(spans)
        kernel_NN = self._kernel(features_NF, features_NF).astype(np.float64)
        kernel_NN[np.diag_indices(len(kept))] += self._ridge * tokens.mean() / tokens
        coefficients = np.linalg.solve(kernel_NN, (rest_NG - mean_G).astype(np.float64))
        self._fitted = _Fitted(features_NF, coefficients.astype(np.float32), mean_G)

    def predict(self, spans_NSLE: Array) -> Array:
        """-> expected frequencies [N, L, E] of the coming tokens; rows sum to one. RuntimeError before `fit`."""
        if self._fitted is None:
            raise RuntimeError("fit before predict")
        kernel = self._kernel(_features(spans_NSLE), self._fitted.features)
        rest = kernel @ self._fitted.coefficients + self._fitted.mean
        base = _base(spans_NSLE)
        return normalise(np.maximum(base + rest.reshape(base.shape), 0.0))

    def _kernel(self, one_NF: Array, other_MF: Array) -> Array:
        squares = (one_NF**2).sum(axis=1)[:, None] + (other_MF**2).sum(axis=1) - 2 * one_NF @ other_MF.T
        return np.asarray(np.exp(-self._width * squares), dtype=np.float32)


def normalise(grid_LE: Array) -> Array:
    """Rows sum to one; a row of zeros stays."""
    sums = grid_LE.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(grid_LE, sums, out=np.zeros_like(grid_LE), where=sums > 0))


def _features(spans_NSLE: Array) -> Array:
    """[N, F], each span of a layer a unit vector shrunk so that distances do not grow with the number of layers."""
    return np.asarray(np.sqrt(spans_NSLE / spans_NSLE.shape[2]).reshape(len(spans_NSLE), -1), dtype=np.float32)


def _base(spans_NSLE: Array) -> Array:
    return np.asarray(np.einsum("nsle,s->nle", spans_NSLE, np.array(BASE_WEIGHTS)), dtype=np.float32)
