"""Plain TF-IDF with logistic regression: what the task classifier is held against, made from a corpus as it is."""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from emoe.core.task_classifier import Identified
from emoe.core.tasks import BUILTIN_TASKS

_MIN_DOCUMENTS = 3
_NUM_EPOCHS = 5
_BATCH_PROMPTS = 256


class PlainTfIdf:
    """Words and pairs of words. It knows no `unknown`: the likeliest task is its answer."""

    def __init__(self, prompts: Sequence[str], labels: Sequence[str], *, seed: int = 0) -> None:
        terms = [_terms(prompt) for prompt in prompts]
        documents = collections.Counter(term for found in terms for term in set(found))
        kept = sorted(term for term, count in documents.items() if count >= _MIN_DOCUMENTS)
        self._ids = {term: index for index, term in enumerate(kept)}
        self._idf = np.array([1 + np.log((1 + len(prompts)) / (1 + documents[term])) for term in kept])
        self._weights = torch.zeros(len(kept) + 1, len(BUILTIN_TASKS), requires_grad=True)
        self._biases = torch.zeros(len(BUILTIN_TASKS), requires_grad=True)
        self._fit([self._vector(found) for found in terms], [BUILTIN_TASKS.index(label) for label in labels], seed)

    def identify(self, text: str) -> Identified:
        with torch.no_grad():
            probabilities = self._logits([self._vector(_terms(text))])[0].softmax(0)
        best = int(probabilities.argmax())
        task = BUILTIN_TASKS[best]
        return Identified(task=task, likeliest=task, probability=float(probabilities[best]))

    def _fit(self, vectors: list[tuple[torch.Tensor, torch.Tensor]], targets: list[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam([self._weights, self._biases], lr=0.05)
        for _ in range(_NUM_EPOCHS):
            for chosen in torch.randperm(len(vectors), generator=generator).split(_BATCH_PROMPTS):
                logits = self._logits([vectors[index] for index in chosen.tolist()])
                loss = F.cross_entropy(logits, torch.tensor(targets)[chosen]) + 1e-6 * self._weights.square().sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def _vector(self, terms: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and weights of length 1; a prompt without a known term has one that is never trained."""
        counts = collections.Counter(self._ids[term] for term in terms if term in self._ids)
        if not counts:
            return torch.tensor([len(self._ids)]), torch.zeros(1)
        ids = np.array(sorted(counts))
        weights = np.array([counts[index] for index in ids.tolist()]) * self._idf[ids]
        return torch.from_numpy(ids), torch.from_numpy((weights / np.linalg.norm(weights)).astype(np.float32))

    def _logits(self, vectors: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        ids = torch.cat([ids for ids, _ in vectors])
        weights = torch.cat([weights for _, weights in vectors])
        offsets = torch.tensor([0, *(len(ids) for ids, _ in vectors[:-1])]).cumsum(0)
        return F.embedding_bag(ids, self._weights, offsets, mode="sum", per_sample_weights=weights) + self._biases


def _terms(text: str) -> list[str]:
    words = re.findall(r"\w\w+", text.lower())
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]
