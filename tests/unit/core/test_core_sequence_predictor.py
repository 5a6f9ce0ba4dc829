"""The sequence predictor as it is served: what it takes in, what it refuses, and what of it lasts."""

import dataclasses
import time

import numpy as np
import pytest

from emoe.core.sequence_predictor import (
    MAX_TASKS,
    PREFIX,
    SequencePredictor,
    SequenceWeights,
    element_features,
    parse_weights,
)
from emoe.core.tasks import UNKNOWN
from emoe.store.learned import read_arrays, write_arrays

SHAPE = (3, 4)
"""The middle layer is dense."""


def draw_weights(num_moe=2, num_experts=4, hidden=5, tasks=("chat", "code"), element_choices=10.0):
    random = np.random.default_rng(1)
    width = num_moe * num_experts
    shapes = {
        "centre": (width,),
        "project_in": (hidden, width),
        "task_in": (len(tasks) + 1, hidden),
        "gates_in": (3 * hidden, hidden),
        "gates_hidden": (3 * hidden, hidden),
        "bias_in": (3 * hidden,),
        "bias_hidden": (3 * hidden,),
        "project_out": (width, hidden),
        "task_logits": (len(tasks) + 1, width),
    }
    drawn = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    layers = np.array([0, 2] if num_moe == 2 else range(num_moe))
    return SequenceWeights(tasks=tasks, moe_layers=layers, element_choices=element_choices, **drawn)


@pytest.fixture
def predictor():
    return SequencePredictor(draw_weights(), SHAPE)


def counts_of(*rows):
    first, last = rows
    return np.array([first, [0, 0, 0, 0], last], dtype=np.int64)


def frequency(predictor, task):
    return predictor.predict({task: 1.0})


def test_demand_is_the_tokens_of_each_task_and_none_in_dense_layers(predictor):
    demand = predictor.predict({"chat": 30.0, "code": 12.0})
    np.testing.assert_allclose(demand.sum(axis=1), [42, 0, 42], rtol=1e-5)
    np.testing.assert_allclose(demand, 30 * frequency(predictor, "chat") + 12 * frequency(predictor, "code"), rtol=1e-6)


def test_a_task_learns_from_its_own_prompts_alone(predictor):
    chat, code = frequency(predictor, "chat"), frequency(predictor, "code")
    predictor.observe("chat", counts_of([10, 0, 0, 0], [0, 0, 0, 10]))
    assert np.abs(frequency(predictor, "chat") - chat).max() > 1e-3
    np.testing.assert_array_equal(frequency(predictor, "code"), code)


def test_a_task_never_trained_begins_as_the_unknown_one(predictor):
    np.testing.assert_array_equal(frequency(predictor, "poems"), frequency(predictor, UNKNOWN))
    predictor.observe("poems", counts_of([10, 0, 0, 0], [0, 0, 0, 10]))
    assert np.abs(frequency(predictor, "poems") - frequency(predictor, UNKNOWN)).max() > 1e-3


def test_no_task_asked_is_the_unknown_one(predictor):
    np.testing.assert_array_equal(predictor.predict({}), frequency(predictor, UNKNOWN))


def test_small_reports_are_gathered_until_they_make_an_element(predictor):
    whole = SequencePredictor(draw_weights(), SHAPE)
    whole.observe("chat", counts_of([3, 3, 4, 0], [0, 5, 0, 5]))
    before = frequency(predictor, "chat")
    predictor.observe("chat", counts_of([3, 3, 0, 0], [0, 5, 0, 1]))
    np.testing.assert_array_equal(frequency(predictor, "chat"), before)
    predictor.observe("chat", counts_of([0, 0, 4, 0], [0, 0, 0, 4]))
    np.testing.assert_array_equal(frequency(predictor, "chat"), frequency(whole, "chat"))


def test_the_least_recently_observed_task_is_forgotten(predictor):
    for number in range(MAX_TASKS + 1):
        predictor.observe(f"task-{number}", counts_of([10, 0, 0, 0], [0, 0, 0, 10]))
    np.testing.assert_array_equal(frequency(predictor, "task-0"), frequency(predictor, UNKNOWN))
    assert np.abs(frequency(predictor, "task-1") - frequency(predictor, UNKNOWN)).max() > 1e-3


def test_counts_of_another_shape_are_refused(predictor):
    with pytest.raises(ValueError, match=r"shape \(2, 4\)"):
        predictor.observe("chat", np.zeros((2, 4), dtype=np.int64))


def test_features_of_a_layer_without_counts_stay_zero():
    features = element_features(np.array([[4, 0], [0, 0]]))
    np.testing.assert_array_equal(features, [[1, 0], [0, 0]])


def test_the_learned_file_gives_the_same_predictor(predictor):
    stored = write_arrays({**draw_weights().to_arrays(), "own_routing/other": np.zeros(3)})
    loaded = SequencePredictor.from_arrays(read_arrays(stored), SHAPE)
    for each in (predictor, loaded):
        each.observe("code", counts_of([1, 2, 3, 4], [7, 1, 1, 1]))
    np.testing.assert_array_equal(frequency(loaded, "code"), frequency(predictor, "code"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("project_out", lambda array: array[:-1], id="short"),
        pytest.param("task_logits", lambda array: array * np.nan, id="not finite"),
        pytest.param("moe_layers", lambda array: array[::-1], id="descending layers"),
        pytest.param("moe_layers", lambda array: array + 1, id="layer outside the model"),
        pytest.param("tasks", lambda array: np.frombuffer(b"Chat\ncode", np.uint8), id="no task's name"),
        pytest.param("element_choices", lambda array: array * 0, id="empty element"),
        pytest.param("project_in", lambda array: array[:0], id="no hidden unit"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name, change):
    arrays = draw_weights().to_arrays()
    with pytest.raises(ValueError, match=r"sequence|task name"):
        parse_weights(arrays | {PREFIX + name: change(arrays[PREFIX + name])}, SHAPE)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(SequenceWeights)])
def test_a_missing_array_is_named(name):
    arrays = draw_weights().to_arrays()
    del arrays[PREFIX + name]
    with pytest.raises(ValueError, match=f"lacks the array {PREFIX}{name}"):
        parse_weights(arrays, SHAPE)


def test_a_prediction_for_48_layers_of_128_experts_takes_less_than_20_ms_of_a_core():
    tasks = tuple(f"task-{number}" for number in range(8))
    predictor = SequencePredictor(draw_weights(48, 128, 32, tasks), (48, 128))
    counts = np.full((48, 128), 5)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        for task in tasks:
            predictor.observe(task, counts)
        predictor.predict(dict.fromkeys(tasks, 100.0))
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.020
