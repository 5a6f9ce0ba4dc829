"""What the requests most like this one routed: demand by retrieval, for one request at a time.

One search, three signs to search by: the mean of the prompt's token embeddings (FineMoE, arXiv 2502.05370, section 4,
semantic search), what the request routed so far (its trajectory search), and what the first MoE layer routes of the
prompt (PreMoe, arXiv 2505.17639, task-adaptive expert retrieval). Both papers take the single best match; an answer's
routing is too noisy for that, so the nearest are averaged. Knows neither tasks nor planning.
N requests stored, Q asked for, F features of a sign, L layers, E experts.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from emoe.core.own_routing import Array

NUM_NEAREST = 24
"""Anything from 8 to 32 does as well, for all three signs."""


@dataclasses.dataclass(frozen=True)
class _Stored:
    signs: Array
    """[N, F]"""
    futures: Array
    """[N, L, E]"""


class NearestRouting:
    """The mean routing of the `num_nearest` stored requests, each weighted by how much nearer it is than the next one.

    Weight of the i-th: d_(k+1) - d_i, with squared distances d; so that no scale has to be chosen for a sign.
    """

    def __init__(self, *, num_nearest: int = NUM_NEAREST) -> None:
        self._num_nearest = num_nearest
        self._stored: _Stored | None = None

    def fit(self, signs_NF: Array, futures_NLE: Array) -> None:
        """`futures`: frequencies of what each stored request routed afterwards. ValueError when there is none."""
        if not len(signs_NF):
            raise ValueError("nothing to retrieve from: no request was stored")
        self._stored = _Stored(signs_NF, futures_NLE)

    def predict(self, signs_QF: Array) -> Array:
        """-> expected frequencies [Q, L, E]. RuntimeError before `fit`."""
        if self._stored is None:
            raise RuntimeError("fit before predict")
        squares_QN = _squared_distances(signs_QF, self._stored.signs)
        order_QN = np.argsort(squares_QN, axis=1, kind="stable")
        sorted_QN = np.take_along_axis(squares_QN, order_QN, axis=1)
        num = min(self._num_nearest, len(self._stored.signs))
        beyond_Q1 = sorted_QN[:, min(num, sorted_QN.shape[1] - 1), None]
        weights_QK = beyond_Q1 - sorted_QN[:, :num]
        sums_Q1 = weights_QK.sum(axis=1, keepdims=True)
        weights_QK = np.divide(weights_QK, sums_Q1, out=np.full_like(weights_QK, 1 / num), where=sums_Q1 > 0)
        return np.asarray(np.einsum("qk,qkle->qle", weights_QK, self._stored.futures[order_QN[:, :num]]))


def cosine_signs(vectors_NF: Array) -> Array:
    """Of embeddings, or of trajectories laid flat: unit rows, whose squared distance is twice one minus the cosine."""
    flat = vectors_NF.reshape(len(vectors_NF), -1)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(np.divide(flat, norms, out=np.zeros_like(flat), where=norms > 0), dtype=np.float32)


def _squared_distances(one_QF: Array, other_NF: Array) -> npt.NDArray[np.float32]:
    products = one_QF @ other_NF.T
    squares = (one_QF**2).sum(axis=1)[:, None] + (other_NF**2).sum(axis=1) - 2 * products
    return np.asarray(np.maximum(squares, 0.0), dtype=np.float32)
