"""eMoE's learned sequence predictor, as it is served: a small GRU over what the prompts of a task routed.

Reads one element after another, each the routing frequencies of about a prompt, and foretells those of the next one for
all layers in one call (eMoE-A, eMoE section 4.1). Trained by `emoe.train.sequence`; computed here in numpy, so that the
predictor needs no torch. Its weights stay as trained: what it learns online is its state, one a task.
L layers, M layers with experts, E experts a layer, D hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from emoe.core.demand import tokens_in
from emoe.core.experts import CountGrid, FloatGrid
from emoe.core.tasks import UNKNOWN, parse_task_name

Array = npt.NDArray[np.float32]

PREFIX = "sequence/"
MAX_TASKS = 64
MAX_HIDDEN = 512


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SequenceWeights:
    """What was trained. Tasks are `tasks` and behind them one entry for every other; gates are reset, update, new."""

    tasks: tuple[str, ...]
    moe_layers: npt.NDArray[np.int64]
    """[M], ascending."""
    element_choices: float
    """Token-expert choices a layer that make an element: what is reported is gathered until there are so many."""
    centre: Array
    """[M * E]: subtracted from an element's features."""
    project_in: Array
    """[D, M * E]: features -> the GRU's input."""
    task_in: Array
    """[tasks + 1, D]: added to the GRU's input."""
    gates_in: Array
    """[3 * D, D]"""
    gates_hidden: Array
    """[3 * D, D]"""
    bias_in: Array
    """[3 * D]"""
    bias_hidden: Array
    """[3 * D]"""
    project_out: Array
    """[M * E, D]: state -> what it adds to the logits."""
    task_logits: Array
    """[tasks + 1, M * E]: the logits before anything was seen."""

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """As the learned file has them, under `sequence/`."""
        stored = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        stored["tasks"] = np.frombuffer("\n".join(self.tasks).encode(), dtype=np.uint8)
        stored["element_choices"] = np.array([self.element_choices], dtype=np.float32)
        return {PREFIX + name: np.asarray(value) for name, value in stored.items()}


class SequencePredictor:
    """A `DemandPredictor`. A task that was not trained has the entry of unknown ones, and a state of its own."""

    def __init__(self, weights: SequenceWeights, shape: tuple[int, int]) -> None:
        self._weights = weights
        self._shape = shape
        self._entries = {task: entry for entry, task in enumerate(weights.tasks)}
        self._states: dict[str, Array] = {}
        self._gathered: dict[str, CountGrid] = {}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]) -> SequencePredictor:
        """From the arrays under `sequence/`; others are passed over. ValueError when they do not fit `shape`."""
        return cls(parse_weights(arrays, shape), shape)

    def observe(self, task: str, counts: CountGrid) -> None:
        if counts.shape != self._shape:
            raise ValueError(f"counts have shape {counts.shape}, this model has {self._shape}")
        gathered = self._gathered.pop(task, 0) + counts
        if tokens_in(gathered) < self._weights.element_choices:
            _keep(self._gathered, task, gathered)
            return
        _keep(self._states, task, self._advanced(task, gathered))

    def predict(self, task_tokens: Mapping[str, float]) -> FloatGrid:
        demand = np.zeros(self._shape)
        for task, tokens in (task_tokens or {UNKNOWN: 1.0}).items():
            demand[self._weights.moe_layers] += tokens * self._frequency(task)
        return demand

    def _advanced(self, task: str, counts: CountGrid) -> Array:
        """The task's state after one more element: torch.nn.GRU's equations."""
        weights = self._weights
        features = element_features(counts[weights.moe_layers]).reshape(-1) - weights.centre
        given = weights.project_in @ features + weights.task_in[self._entry(task)]
        state = self._states.get(task, np.zeros(len(given), dtype=np.float32))
        reset_in, update_in, new_in = np.split(weights.gates_in @ given + weights.bias_in, 3)
        reset_hidden, update_hidden, new_hidden = np.split(weights.gates_hidden @ state + weights.bias_hidden, 3)
        update = _sigmoid(update_in + update_hidden)
        new = np.tanh(new_in + _sigmoid(reset_in + reset_hidden) * new_hidden)
        return np.asarray((1 - update) * new + update * state)

    def _frequency(self, task: str) -> Array:
        """[M, E], rows sum to one."""
        weights = self._weights
        logits = weights.task_logits[self._entry(task)]
        if task in self._states:
            logits = logits + weights.project_out @ self._states[task]
        grid = logits.reshape(len(weights.moe_layers), -1)
        powers = np.exp(grid - grid.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def _entry(self, task: str) -> int:
        return self._entries.get(task, len(self._entries))


def element_features(counts: npt.NDArray[Any]) -> Array:
    """Counts [..., E] -> square roots of frequencies, each layer a unit vector; a layer without counts stays zero."""
    sums = counts.sum(axis=-1, keepdims=True)
    shares = np.divide(counts, sums, out=np.zeros(counts.shape), where=sums > 0)
    return np.asarray(np.sqrt(shares), dtype=np.float32)


def parse_weights(arrays: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]) -> SequenceWeights:
    """ValueError says which array is missing, of a wrong shape or not finite."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(SequenceWeights):
        if PREFIX + field.name not in arrays:
            raise ValueError(f"the sequence predictor lacks the array {PREFIX}{field.name}")
        given[field.name] = arrays[PREFIX + field.name]
    moe_layers = _parse_layers(given["moe_layers"], shape[0])
    tasks = _parse_tasks(given["tasks"])
    num_hidden, width = len(given["project_in"]), len(moe_layers) * shape[1]
    if not 1 <= num_hidden <= MAX_HIDDEN:
        raise ValueError(f"the sequence predictor has {num_hidden} hidden units; 1 to {MAX_HIDDEN} are possible")
    expected = _shapes(len(tasks) + 1, num_hidden, width)
    for name, needed in expected.items():
        found = given[name]
        if found.shape != needed or not np.isfinite(found).all():
            raise ValueError(f"{PREFIX}{name} has shape {found.shape}, not {needed}, or is not finite")
    element_choices = float(given["element_choices"][0])
    if element_choices <= 0:
        raise ValueError(f"{PREFIX}element_choices must be above 0, not {element_choices}")
    floats = {name: np.ascontiguousarray(given[name], np.float32) for name in expected if name != "element_choices"}
    return SequenceWeights(tasks=tasks, moe_layers=moe_layers, element_choices=element_choices, **floats)


def _shapes(num_entries: int, num_hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        "element_choices": (1,),
        "centre": (width,),
        "project_in": (num_hidden, width),
        "task_in": (num_entries, num_hidden),
        "gates_in": (3 * num_hidden, num_hidden),
        "gates_hidden": (3 * num_hidden, num_hidden),
        "bias_in": (3 * num_hidden,),
        "bias_hidden": (3 * num_hidden,),
        "project_out": (width, num_hidden),
        "task_logits": (num_entries, width),
    }


def _parse_layers(stored: npt.NDArray[Any], num_layers: int) -> npt.NDArray[np.int64]:
    layers = [int(layer) for layer in stored.reshape(-1)]
    if not layers or layers != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < num_layers:
        raise ValueError(f"{PREFIX}moe_layers {layers} are not ascending layers of a model of {num_layers}")
    return np.array(layers, dtype=np.int64)


def _parse_tasks(stored: npt.NDArray[Any]) -> tuple[str, ...]:
    text = stored.astype(np.uint8).tobytes().decode()
    return tuple(parse_task_name(name) for name in text.split("\n")) if text else ()


def _keep(entries: dict[str, Any], task: str, value: Any) -> None:
    """The least recently observed task goes when there are too many."""
    entries.pop(task, None)
    entries[task] = value
    while len(entries) > MAX_TASKS:
        del entries[next(iter(entries))]


def _sigmoid(values: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -60, 60))), dtype=np.float32)
