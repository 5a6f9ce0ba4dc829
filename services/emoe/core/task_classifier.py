"""Names the task of a prompt whose client named none: softmax regression over `text_features`.

The scheduler asks it once a request, before the request is queued. It says `unknown` unless one task is likely enough:
a wrong name costs more than none. What it learned is a small file, made by `emoe.train.classifier` and shipped beside
this module. Knows neither requests nor the tasks that users define; see `example_tasks`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from emoe.core.tasks import BUILTIN_TASKS, UNKNOWN
from emoe.core.text_features import FEATURES_VERSION, NUM_FEATURES, TextFeatures, extract_features

FORMAT_VERSION = 1
SHIPPED_FILE = Path(__file__).with_name("task_classifier.npz")
MAX_FILE_BYTES = 1024 * 1024
LABELS = (*BUILTIN_TASKS, UNKNOWN)
_HEADER_KEYS = {"format", "features", "labels", "temperature", "threshold"}

Array = npt.NDArray[np.float32]


class ClassifierError(ValueError):
    """The file is no task classifier of this version; the message says in what."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identified:
    """`task` is `unknown` when `likeliest` is not likely enough; `probability` is the likeliest task's."""

    task: str
    likeliest: str
    probability: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TaskClassifier:
    """C labels, F features. The last label stands for prompts of no task."""

    weights: npt.NDArray[np.int8]
    """[F, C]"""
    scales: Array
    """[C]: what one step of a label's weights is worth."""
    biases: Array
    """[C]"""
    rarities: npt.NDArray[np.uint8]
    """[F]: how rare a feature is among prompts, in 255 steps: for comparing prompts with each other."""
    temperature: float
    threshold: float

    def identify(self, text: str) -> Identified:
        return self.identify_features(extract_features(text))

    def identify_features(self, features: TextFeatures) -> Identified:
        probabilities = self.probabilities(features)
        best = int(np.argmax(probabilities[:-1]))
        probability = float(probabilities[best])
        likeliest = LABELS[best]
        task = likeliest if probability >= self.threshold else UNKNOWN
        return Identified(task=task, likeliest=likeliest, probability=probability)

    def probabilities(self, features: TextFeatures) -> Array:
        """[C], in the order of LABELS."""
        sums_C = features.values @ self.weights[features.ids].astype(np.float32)
        logits_C = (sums_C * self.scales + self.biases) / np.float32(self.temperature)
        exponents_C = np.exp(logits_C - logits_C.max())
        return np.asarray(exponents_C / exponents_C.sum(), dtype=np.float32)

    def render(self) -> bytes:
        header = {
            "format": FORMAT_VERSION,
            "features": FEATURES_VERSION,
            "labels": LABELS,
            "temperature": self.temperature,
            "threshold": self.threshold,
        }
        written = io.BytesIO()
        np.savez_compressed(
            written,
            header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
            weights=self.weights,
            scales=self.scales,
            biases=self.biases,
            rarities=self.rarities,
        )
        return written.getvalue()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """ClassifierError for anything that `render` of this version did not write."""
        if len(data) > MAX_FILE_BYTES:
            raise ClassifierError(f"{len(data)} bytes are more than a task classifier has, {MAX_FILE_BYTES} at most")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise ClassifierError(f"the file cannot be read: {error}") from error
        header = _parse_header(arrays.pop("header", None))
        _check_arrays(arrays)
        return cls(
            weights=arrays["weights"],
            scales=arrays["scales"],
            biases=arrays["biases"],
            rarities=arrays["rarities"],
            temperature=_number(header, "temperature", 0.01, 100.0),
            threshold=_number(header, "threshold", 0.0, 1.0),
        )


def load_shipped_classifier() -> TaskClassifier:
    """The one that ships; ClassifierError names its file."""
    try:
        return TaskClassifier.parse(SHIPPED_FILE.read_bytes())
    except (OSError, ClassifierError) as error:
        raise ClassifierError(f"{SHIPPED_FILE}: {error}; install emoe again, or set identify_tasks to false") from error


def _parse_header(array: Any) -> dict[str, Any]:
    try:
        header = json.loads(bytes(array))
    except (TypeError, ValueError) as error:
        raise ClassifierError("it has no header") from error
    if not isinstance(header, dict) or set(header) != _HEADER_KEYS:
        raise ClassifierError(f"its header must have {', '.join(sorted(_HEADER_KEYS))}")
    wanted = {"format": FORMAT_VERSION, "features": FEATURES_VERSION, "labels": list(LABELS)}
    for key, value in wanted.items():
        if header[key] != value:
            raise ClassifierError(f"its {key} is {header[key]!r}, not {value!r}; train it again with this version")
    return header


def _check_arrays(arrays: dict[str, Any]) -> None:
    num_labels = len(LABELS)
    wanted = {
        "weights": ((NUM_FEATURES, num_labels), np.int8),
        "scales": ((num_labels,), np.float32),
        "biases": ((num_labels,), np.float32),
        "rarities": ((NUM_FEATURES,), np.uint8),
    }
    if set(arrays) != set(wanted):
        raise ClassifierError(f"it has the arrays {', '.join(sorted(arrays))}, not {', '.join(sorted(wanted))}")
    for name, (shape, dtype) in wanted.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != dtype:
            raise ClassifierError(f"{name} is {array.dtype} of shape {array.shape}, not {np.dtype(dtype)} of {shape}")
        if not np.isfinite(array).all():
            raise ClassifierError(f"{name} has values that are no numbers")


def _number(header: dict[str, Any], key: str, least: float, most: float) -> float:
    value = header[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ClassifierError(f"its {key} is {value!r}, not a number from {least} to {most}")
    return float(value)
