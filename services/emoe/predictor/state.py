"""What was learnt, on disk: one file, replaced whole, so that a kill loses at most one save interval.

Read once at start, written by the save loop and at shutdown. A file that cannot be read is moved aside, never deleted,
and learning starts afresh. The file is a line that names the format, a SHA-256 of the rest, and the rest: an .npz of
one JSON index and one array of weights a model. Knows neither gRPC nor when to save.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from emoe.core.experts import ExpertGrid, RoutingRule
from emoe.predictor.learning import ModelMemory, TaskMemory

FILE_NAME = "predictor.state"
FORMAT = b"emoe predictor state 1\n"

_log = logging.getLogger(__name__)


def save(state_dir: Path, memories: Iterable[ModelMemory]) -> None:
    """Blocking; OSError when the disk refuses. The file is there whole, old or new, at every moment."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    models = []
    for number, memory in enumerate(memories):
        tasks = [{"task": kept.task, "num_choices": kept.num_choices} for kept in memory.tasks]
        models.append({"digest": memory.digest, "grid": dataclasses.asdict(memory.grid), "tasks": tasks})
        arrays[f"weights_{number}"] = np.array([kept.weights for kept in memory.tasks])
    content = io.BytesIO()
    index = np.frombuffer(json.dumps(models).encode(), dtype=np.uint8)
    np.savez(content, allow_pickle=False, index=index, **arrays)
    partial = state_dir / f"{FILE_NAME}.partial"
    with partial.open("wb") as file:
        file.write(FORMAT + hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(state_dir / FILE_NAME)


def load(state_dir: Path) -> tuple[ModelMemory, ...]:
    """What was saved last; nothing when there is no file or none that can be read. OSError when access is denied."""
    path = state_dir / FILE_NAME
    try:
        return _read(path)
    except FileNotFoundError:
        return ()
    except ValueError as error:
        aside = path.with_name(f"{FILE_NAME}.corrupt")
        path.replace(aside)
        _log.warning("cannot read %s (%s): moved to %s, learning starts afresh", path, error, aside)
        return ()


def _read(path: Path) -> tuple[ModelMemory, ...]:
    """ValueError for anything but what `save` of this version wrote."""
    stored = path.read_bytes()
    if not stored.startswith(FORMAT):
        raise ValueError(f"it does not begin with {FORMAT!r}")
    digest, content = stored[len(FORMAT) :][:32], stored[len(FORMAT) + 32 :]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum does not fit its content")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        models = json.loads(arrays["index"].tobytes())
        return tuple(_parse_model(model, arrays[f"weights_{number}"]) for number, model in enumerate(models))


def _parse_model(model: dict[str, Any], weights: np.ndarray[Any, Any]) -> ModelMemory:
    grid_fields = dict(model["grid"])
    rule = RoutingRule(**grid_fields.pop("rule"))
    grid = ExpertGrid(**(grid_fields | {"moe_layers": tuple(grid_fields["moe_layers"])}), rule=rule)
    if weights.shape != (len(model["tasks"]), *grid.shape) or weights.dtype != np.float64:
        raise ValueError(f"model {model['digest']} has weights {weights.dtype}{weights.shape}, not its grid's")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f"model {model['digest']} has weights that are negative or not finite")
    tasks = tuple(
        TaskMemory(task=kept["task"], weights=weights[number], num_choices=kept["num_choices"])
        for number, kept in enumerate(model["tasks"])
    )
    return ModelMemory(digest=model["digest"], grid=grid, tasks=tasks)
