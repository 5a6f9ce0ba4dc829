"""Requests under way, looked up among the training prompts that are remembered (`core.retrieval`).

Each search says which sign of a request it goes by, and from when on there is one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emoe.core.own_routing import Array
from emoe.core.retrieval import NearestRouting, cosine_signs
from emoe.eval.memory import PromptMemory
from emoe.eval.profile import frequency
from emoe.eval.streams import Running


class ByEmbedding:
    """By the mean of the prompt's token embeddings, less that of all prompts: known before anything runs."""

    def __init__(self, memory: PromptMemory) -> None:
        self._mean_D = memory.embeddings.mean(axis=0)
        self._nearest = NearestRouting()
        self._nearest.fit(self._signs(memory.embeddings), memory.answers)

    def predict(self, running: Sequence[Running]) -> Array:
        """[N, L, E]"""
        return self._nearest.predict(self._signs(np.stack([request.embedding for request in running])))

    def _signs(self, embeddings_ND: Array) -> Array:
        return cosine_signs(embeddings_ND - self._mean_D)


class ByFirstGate:
    """By what the first MoE layer routes of the prompt: known when it has come so far, before later layers need theirs.

    PreMoe keeps by the same ranks in every layer; what the nearest prompts routed in each layer is known here.
    """

    def __init__(self, memory: PromptMemory) -> None:
        self._nearest = NearestRouting()
        self._nearest.fit(memory.first_gates, memory.answers)

    def predict(self, running: Sequence[Running]) -> Array:
        """[N, L, E]"""
        return self._nearest.predict(np.stack([request.first_gate for request in running]))


class ByTrajectory:
    """By what a request routed so far; while that is nothing, by its prompt's embedding (as FineMoE's first layers)."""

    def __init__(self, memory: PromptMemory) -> None:
        self._by_embedding = ByEmbedding(memory)
        self._nearest = NearestRouting()
        self._nearest.fit(cosine_signs(memory.moments.spans[:, 0]), memory.moments.futures)

    def predict(self, running: Sequence[Running]) -> Array:
        """[N, L, E]: in another order than `running`."""
        begun, others = [r for r in running if r.phases], [r for r in running if not r.phases]
        found = [self._by_embedding.predict(others)] if others else []
        if begun:
            so_far = np.stack([frequency(request.wanted) for request in begun])
            found.append(self._nearest.predict(cosine_signs(so_far)))
        return np.concatenate(found)
