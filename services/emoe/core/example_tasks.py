"""Tasks that users define by a handful of example prompts, without training.

A prompt belongs to such a task when it is nearly as like one of the examples as these are like each other. So a task of
one's own may lie inside a built-in one (support tickets in classification) and takes its prompts from it. Stands beside
the classifier, of which it takes only how rare a word is.
X examples, V features that occur in any of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from emoe.core.task_classifier import TaskClassifier
from emoe.core.tasks import check_examples
from emoe.core.text_features import EDGES, LETTERS, WORDS, Floats, Ints, TextFeatures, extract_features

Rarities = npt.NDArray[np.uint8]

MIN_SIMILARITY = 0.1
LIKENESS_SHARE = 0.4
"""Of the examples' median likeness to each other, which a prompt must reach."""
LONE_LIKENESS = 0.5
"""What a task with a single example is taken to have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    task: str
    similarity: float
    """To the nearest example, from 0 to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ExampleTasks:
    rarities: Rarities
    """[F]"""
    tasks: tuple[str, ...]
    """One for each example."""
    feature_ids: Ints
    """[V], rising."""
    vectors: Floats
    """[V, X]"""
    thresholds: Floats
    """[X]"""

    @classmethod
    def build(cls, examples: Mapping[str, Sequence[str]], classifier: TaskClassifier) -> Self:
        """ValueError as of `tasks.check_examples`."""
        check_examples(examples)
        tasks = tuple(task for task, prompts in examples.items() for _ in prompts)
        features = [extract_features(prompt) for prompts in examples.values() for prompt in prompts]
        vectors = [_weighted(one, classifier.rarities) for one in features]
        kept = np.unique(np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in vectors)]))
        vectors_VX = np.zeros((len(kept), len(vectors)), np.float32)
        for index, (ids, values) in enumerate(vectors):
            vectors_VX[np.searchsorted(kept, ids), index] = values
        return cls(
            rarities=classifier.rarities,
            tasks=tasks,
            feature_ids=kept,
            vectors=vectors_VX,
            thresholds=_thresholds(tasks, vectors_VX.T @ vectors_VX),
        )

    def match(self, features: TextFeatures) -> Match | None:
        """The task of the example that the prompt is most like, beyond what its task asks for; None if none is."""
        if not self.tasks:
            return None
        ids, values = _weighted(features, self.rarities)
        _, of_prompt, of_examples = np.intersect1d(ids, self.feature_ids, assume_unique=True, return_indices=True)
        similarities_X = values[of_prompt] @ self.vectors[of_examples]
        excess_X = similarities_X / self.thresholds
        best = int(np.argmax(excess_X))
        if excess_X[best] < 1.0:
            return None
        return Match(task=self.tasks[best], similarity=float(similarities_X[best]))


def _weighted(features: TextFeatures, rarities_F: Rarities) -> tuple[Ints, Floats]:
    """Words and edges, rare ones counting more, both groups alike. Letters and shape tell no two tasks apart."""
    stop = int(np.searchsorted(features.ids, LETTERS.start))
    ids = features.ids[:stop]
    values = features.values[:stop] * rarities_F[ids]
    for group in (WORDS, EDGES):
        part = values[slice(*np.searchsorted(ids, (group.start, group.stop)))]
        part /= max(1e-9, float(np.sqrt(part @ part)))
    return ids, (values / max(1e-9, float(np.sqrt(values @ values)))).astype(np.float32)


def _thresholds(tasks: tuple[str, ...], similarities_XX: Floats) -> Floats:
    """Each example's nearest other one of its task; the median of these is the task's likeness."""
    thresholds = np.empty(len(tasks), np.float32)
    for task in dict.fromkeys(tasks):
        own = np.flatnonzero([one == task for one in tasks])
        nearest = [max(similarities_XX[i, j] for j in own if j != i) for i in own if len(own) > 1]
        likeness = float(np.median(nearest)) if nearest else LONE_LIKENESS
        thresholds[own] = max(MIN_SIMILARITY, LIKENESS_SHARE * likeness)
    return thresholds
