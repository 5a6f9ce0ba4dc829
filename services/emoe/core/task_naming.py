"""Which task a prompt is of when its client says nothing: first by users' examples, then by the classifier.

What the scheduler and `emoe classify` ask. Pure: the classifier's file is read by whoever builds the namer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from emoe.core.example_tasks import ExampleTasks
from emoe.core.task_classifier import TaskClassifier, load_shipped_classifier
from emoe.core.tasks import UNKNOWN
from emoe.core.text_features import extract_features

NamedBy = Literal["client", "examples", "classifier", "nobody"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedTask:
    task: str
    by: NamedBy
    likeliest: str = UNKNOWN
    """Of the built-in tasks, also when none is likely enough."""
    probability: float = 0.0
    """The likeliest's."""
    similarity: float | None = None
    """To the nearest example, if one was near enough."""


NOBODY = NamedTask(task=UNKNOWN, by="nobody")


class TaskNamer:
    def __init__(self, classifier: TaskClassifier, examples: Mapping[str, Sequence[str]] | None = None) -> None:
        """ValueError as of `tasks.check_examples`."""
        self._classifier = classifier
        self._examples = ExampleTasks.build(examples or {}, classifier)

    def name(self, text: str) -> NamedTask:
        features = extract_features(text)
        identified = self._classifier.identify_features(features)
        match = self._examples.match(features)
        by: NamedBy = "examples" if match else "nobody" if identified.task == UNKNOWN else "classifier"
        return NamedTask(
            task=match.task if match else identified.task,
            by=by,
            likeliest=identified.likeliest,
            probability=identified.probability,
            similarity=match.similarity if match else None,
        )


def shipped_namer(examples: Mapping[str, Sequence[str]] | None = None) -> TaskNamer:
    """With the classifier that ships; ClassifierError names its file."""
    return TaskNamer(load_shipped_classifier(), examples)
