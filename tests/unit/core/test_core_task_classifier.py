"""The classifier that ships, and what its file must be."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest

from emoe.core.task_classifier import LABELS, ClassifierError, TaskClassifier, load_shipped_classifier
from emoe.core.text_features import extract_features


@pytest.fixture(scope="module")
def shipped() -> TaskClassifier:
    return load_shipped_classifier()


PROMPTS = {
    "chat": "User: My suitcase did not come.\nAssistant: I am sorry. Which flight was it?\nUser: LH 1032.\nAssistant:",
    "classification": "Is this review positive or negative?\nThe soup was cold and the waiter yawned at us.",
    "code": "Write a SQL query that lists customers without orders.\nTables: customers(id, name), orders(customer_id)",
    "math": "A baker makes 48 rolls an hour. How many rolls does she make in 7 hours if she burns 13 of them?",
    "qa": "Which planet has the most moons?",
    "summarization": "Summarize the text in one sentence.\n\nThe river rose by two metres overnight. Shops in the "
    "lower town closed, and volunteers carried sandbags until noon, when the water began to fall.",
    "translation": "Translate into German: The keys are on the kitchen table.",
}


@pytest.mark.parametrize(("task", "prompt"), PROMPTS.items(), ids=PROMPTS)
def test_a_plain_prompt_of_each_task_is_named(shipped: TaskClassifier, task: str, prompt: str) -> None:
    identified = shipped.identify(prompt)
    assert (identified.task, identified.likeliest) == (task, task)
    assert identified.probability >= shipped.threshold


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param("", id="nothing"),
        pytest.param("Write a poem about an owl that is afraid of the dark.", id="poem"),
        pytest.param("You are a ghost in a castle. Stay in character and greet your guests.", id="role"),
        pytest.param("fjwo qpx zzkrt vbnw eipq", id="gibberish"),
        pytest.param("昨日は海岸を長く歩きました。", id="another script"),
        pytest.param("Rewrite this sentence so that it sounds more polite: Give me the salt.", id="rewriting"),
    ],
)
def test_what_is_of_no_task_stays_unknown(shipped: TaskClassifier, prompt: str) -> None:
    assert shipped.identify(prompt).task == "unknown"


def test_a_task_below_the_threshold_is_not_named_but_told(shipped: TaskClassifier) -> None:
    strict = dataclasses.replace(shipped, threshold=1.0)
    identified = strict.identify(PROMPTS["qa"])
    assert (identified.task, identified.likeliest) == ("unknown", "qa")


def test_probabilities_of_all_labels_sum_to_one(shipped: TaskClassifier) -> None:
    probabilities = shipped.probabilities(extract_features("What is it?"))
    assert probabilities.shape == (len(LABELS),)
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-5)


def test_a_classifier_is_the_same_after_it_was_written_and_read(shipped: TaskClassifier) -> None:
    read = TaskClassifier.parse(shipped.render())
    for prompt in PROMPTS.values():
        assert read.identify(prompt) == shipped.identify(prompt)


def test_the_file_that_ships_is_small(shipped: TaskClassifier) -> None:
    assert len(shipped.render()) < 300 * 1024


def written(classifier: TaskClassifier, *, header: dict[str, Any] | None = None, **changed: Any) -> bytes:
    """The classifier's file with some parts exchanged; None leaves an array out."""
    with np.load(io.BytesIO(classifier.render())) as found:
        arrays = {name: found[name] for name in found.files}
    if header is not None:
        text = json.dumps({**json.loads(bytes(arrays["header"])), **header})
        arrays["header"] = np.frombuffer(text.encode(), np.uint8)
    arrays = {name: array for name, array in {**arrays, **changed}.items() if array is not None}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param({"header": {"format": 2}}, "its format is 2", id="format"),
        pytest.param({"header": {"features": 0}}, "its features is 0", id="features"),
        pytest.param({"header": {"labels": ["spam"]}}, "its labels", id="labels"),
        pytest.param({"header": {"extra": 1}}, "its header must have", id="more in the header"),
        pytest.param({"header": {"threshold": 1.5}}, "threshold is 1.5", id="threshold"),
        pytest.param({"header": {"temperature": "hot"}}, "temperature is 'hot'", id="temperature"),
        pytest.param({"biases": None}, "it has the arrays", id="array missing"),
        pytest.param({"scales": np.ones(3, np.float32)}, "scales is float32 of shape", id="shape"),
        pytest.param({"scales": np.ones(len(LABELS))}, "scales is float64", id="type"),
        pytest.param({"biases": np.full(len(LABELS), np.nan, np.float32)}, "biases has values", id="not a number"),
        pytest.param({"biases": np.array([{}], dtype=object)}, "cannot be read", id="objects"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_is_wrong(
    shipped: TaskClassifier, change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ClassifierError, match=complaint):
        TaskClassifier.parse(written(shipped, **change))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_was_cut_off_is_refused(shipped: TaskClassifier, share: float) -> None:
    data = shipped.render()
    with pytest.raises(ClassifierError, match="cannot be read"):
        TaskClassifier.parse(data[: int(len(data) * share)])


def test_a_file_with_a_flipped_bit_is_refused(shipped: TaskClassifier) -> None:
    data = bytearray(shipped.render())
    data[len(data) // 2] ^= 16
    with pytest.raises(ClassifierError, match="cannot be read"):
        TaskClassifier.parse(bytes(data))


def test_a_file_that_is_far_too_large_is_not_read() -> None:
    with pytest.raises(ClassifierError, match="at most"):
        TaskClassifier.parse(bytes(2 * 1024 * 1024))
