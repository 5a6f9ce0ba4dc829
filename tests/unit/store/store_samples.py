"""Small checkpoints written by hand, so that a test can say exactly what is wrong with one."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

Tensors = dict[str, npt.NDArray[Any]]

LAYERS, EXPERTS, HIDDEN, INTERMEDIATE = 2, 4, 8, 12


def config(**changes: object) -> dict[str, object]:
    """Mixtral's; None takes a key out."""
    values: dict[str, object] = {
        "model_type": "mixtral",
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


def base_tensors() -> Tensors:
    random = np.random.default_rng(1)
    tensors: Tensors = {"model.embed_tokens.weight": random.standard_normal((16, HIDDEN), dtype=np.float32)}
    for layer in range(LAYERS):
        gate = random.standard_normal((EXPERTS, HIDDEN), dtype=np.float32)
        tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"] = gate
    return tensors


def expert_tensors(layer: int, index: int) -> Tensors:
    random = np.random.default_rng(100 * layer + index + 2)
    stem = f"model.layers.{layer}.block_sparse_moe.experts.{index}"
    return {
        f"{stem}.w1.weight": random.standard_normal((INTERMEDIATE, HIDDEN), dtype=np.float32),
        f"{stem}.w3.weight": random.standard_normal((INTERMEDIATE, HIDDEN), dtype=np.float32),
        f"{stem}.w2.weight": random.standard_normal((HIDDEN, INTERMEDIATE), dtype=np.float32),
    }


def tensors() -> Tensors:
    found = base_tensors()
    for layer in range(LAYERS):
        for index in range(EXPERTS):
            found |= expert_tensors(layer, index)
    return found


def expert_bytes(layer: int, index: int) -> bytes:
    return b"".join(tensor.tobytes() for tensor in expert_tensors(layer, index).values())


def write(
    folder: Path,
    values: Mapping[str, object],
    found: Tensors,
    *,
    num_shards: int = 1,
    shard_of: Callable[[str], int] | None = None,
) -> Path:
    """`shard_of` says which file takes a key; without it neighbours go to different files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    if num_shards == 1:
        save_file(found, folder / "model.safetensors")
        return folder
    names = [f"model-{number:05d}-of-{num_shards:05d}.safetensors" for number in range(1, num_shards + 1)]
    numbers = {key: shard_of(key) if shard_of else position for position, key in enumerate(sorted(found))}
    weight_map = {key: names[number % num_shards] for key, number in numbers.items()}
    for name in names:
        save_file({key: found[key] for key in found if weight_map[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def misplace(folder: Path) -> None:
    """The index of the shards says that a tensor lies in the first, which has it not."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))


def data_start(path: Path) -> int:
    return 8 + int(struct.unpack("<Q", path.read_bytes()[:8])[0])


def flip_byte(path: Path, offset: int, *, keep_time: bool = False) -> None:
    """Changes one byte in place; the file's time moves on by a second, or stays."""
    before = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))
    set_time(path, before if keep_time else before + 1_000_000_000)


def set_time(path: Path, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns))


def deny_writing(folder: Path) -> Path:
    """As a read-only folder does, even for root: directories stand where our files would go."""
    for name in (".emoe-index.json", ".emoe-sha256.json"):
        (folder / name / "taken").mkdir(parents=True)
    return folder
