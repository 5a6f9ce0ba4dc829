"""Writes a planted checkpoint as it would be published, once: sharded safetensors, an index, config.json.

Kept in the user's cache folder under a name that holds all that it was made from.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers

from emoe.bench.failures import BenchmarkError
from emoe.bench.planted import PlantedShape
from emoe.bench.planted_weights import PlantedWeights, Tensors
from emoe.store.sidecar import cache_key, default_cache_dir

SPEC_NAME = "planted.json"
VERSION = 1
"""Of the way weights are made: another one makes all checkpoints anew."""


def planted_checkpoint(
    name: str, shape: PlantedShape, *, cache: Path | None = None, say: Callable[[str], None]
) -> Path:
    """The folder, made if it is not there. BenchmarkError when there is no place for it."""
    base = cache or default_cache_dir()
    if base is None:
        raise BenchmarkError("no cache folder for planted models: set XDG_CACHE_HOME or give --cache a folder")
    folder = base / "planted" / f"{name}-{cache_key(VERSION, dataclasses.asdict(shape))[:12]}"
    if (folder / SPEC_NAME).is_file():
        return folder
    say(f"making {folder} ({num_bytes(shape) / 1e9:.2f} GB, once)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            write_checkpoint(shape, partial, say=say)
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if (folder / SPEC_NAME).is_file():
            return folder  # another process was quicker
        raise BenchmarkError(f"{folder} cannot be written ({error.strerror}); give --cache another folder") from error
    return folder


def read_shape(folder: Path) -> PlantedShape | None:
    """What a planted checkpoint was made from; None for any other."""
    path = folder / SPEC_NAME
    return PlantedShape(**json.loads(path.read_text())) if path.is_file() else None


def write_checkpoint(shape: PlantedShape, folder: Path, *, say: Callable[[str], None]) -> None:
    """A shard for what belongs to no layer, then one a layer."""
    weights = PlantedWeights(shape)
    num_shards = shape.num_layers + 1
    placed: dict[str, str] = {}
    _save(weights.base(), folder, 1, num_shards, placed)
    for number, tensors in enumerate(weights.layers(), start=2):
        _save(tensors, folder, number, num_shards, placed)
        say(f"layer {number - 1} of {shape.num_layers}")
    index = {"metadata": {"total_size": num_bytes(shape)}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    config_of(shape).save_pretrained(folder)
    (folder / SPEC_NAME).write_text(json.dumps(dataclasses.asdict(shape)))


def _save(tensors: Tensors, folder: Path, number: int, num_shards: int, placed: dict[str, str]) -> None:
    name = f"model-{number:05d}-of-{num_shards:05d}.safetensors"
    safetensors.torch.save_file(tensors, folder / name, metadata={"format": "pt"})
    placed |= dict.fromkeys(tensors, name)


def num_bytes(shape: PlantedShape) -> int:
    """Nearly: of experts, attention, embeddings and head, in bfloat16."""
    experts = shape.num_layers * shape.num_experts * 3 * shape.hidden_size * shape.intermediate_size
    attention = shape.num_layers * 2 * shape.hidden_size * shape.head_dim * (shape.num_heads + shape.num_kv_heads)
    return 2 * (experts + attention + 2 * shape.vocab_size * shape.hidden_size)


def config_of(shape: PlantedShape) -> transformers.PreTrainedConfig:
    common: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "num_experts_per_tok": shape.top_k,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": None,
        "dtype": torch.bfloat16,
    }
    if shape.family == "mixtral":
        return transformers.MixtralConfig(
            **common,
            architectures=["MixtralForCausalLM"],
            intermediate_size=shape.intermediate_size,
            num_local_experts=shape.num_experts,
        )
    return transformers.Qwen3MoeConfig(
        **common,
        architectures=["Qwen3MoeForCausalLM"],
        moe_intermediate_size=shape.intermediate_size,
        intermediate_size=4 * shape.intermediate_size,
        num_experts=shape.num_experts,
        norm_topk_prob=True,
    )
