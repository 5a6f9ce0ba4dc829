"""Writes a mixtral or qwen3_moe checkpoint as a GGUF file with the same weights, for llama.cpp.

`python -m emoe.bench.peers.write_gguf MODEL OUT`, by an interpreter that has `gguf`. Matrices keep their bfloat16,
norms and routers become float32 as llama.cpp's own converter has them. No vocabulary: tokens go in and out as numbers.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found, unused-ignore] # of the peers' environment
import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint16]

ARCHITECTURES = {"mixtral": "llama", "qwen3_moe": "qwen3moe"}
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
OF_LAYER = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "block_sparse_moe.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
}
EXPERT_PARTS = {
    "mixtral": ("block_sparse_moe.experts", {"gate": "w1", "up": "w3", "down": "w2"}),
    "qwen3_moe": ("mlp.experts", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
}
IN_FLOAT32 = re.compile(r"norm\.weight$|ffn_gate_inp\.weight$")


class Checkpoint:
    """bfloat16 tensors by key, as the 16 bits that they are; mapped, not read."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self._places: dict[str, tuple[Path, int, tuple[int, ...]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            for key, entry in header.items():
                if key == "__metadata__":
                    continue
                if entry["dtype"] != "BF16":
                    raise SystemExit(f"{path}: {key} is {entry['dtype']}; only bfloat16 is written as GGUF")
                self._places[key] = (path, 8 + length + entry["data_offsets"][0], tuple(entry["shape"]))

    def keys(self) -> list[str]:
        return list(self._places)

    def bits(self, key: str) -> Bits:
        path, offset, shape = self._places[key]
        return np.memmap(path, dtype=np.uint16, mode="r", offset=offset, shape=shape)


def main() -> None:
    write(Path(sys.argv[1]), Path(sys.argv[2]))


def write(model: Path, out: Path) -> None:
    """Whole or not at all. Tensors are held one at a time."""
    checkpoint = Checkpoint(model)
    partial = out.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), ARCHITECTURES[checkpoint.config["model_type"]])
    _add_facts(writer, checkpoint.config)
    tensors = list(_tensors(checkpoint))
    for name, keys in tensors:
        shape = _shape(checkpoint, keys)
        if IN_FLOAT32.search(name):
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
        else:
            as_bytes = (*shape[:-1], 2 * shape[-1])
            bf16 = gguf.GGMLQuantizationType.BF16
            writer.add_tensor_info(name, as_bytes, np.dtype(np.uint8), int(np.prod(as_bytes)), raw_dtype=bf16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, keys in tensors:
        writer.write_tensor_data(_values(checkpoint, name, keys))
    writer.close()
    partial.replace(out)


def _add_facts(writer: Any, config: dict[str, Any]) -> None:
    is_mixtral = config["model_type"] == "mixtral"
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 1e6))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(_num_experts(config))
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if not is_mixtral:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_BF16))
    writer.add_tokenizer_model("none")


def _num_experts(config: dict[str, Any]) -> int:
    """transformers 5 and 4 name it differently."""
    return int(config.get("num_local_experts") or config["num_experts"])


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, list[str]]]:
    """GGUF's name, and the key or, for all experts of a layer, the keys that it is made of."""
    config, known = checkpoint.config, set(checkpoint.keys())
    yield from ((name, [key]) for key, name in TOP.items() if key in known)
    stem, parts = EXPERT_PARTS[config["model_type"]]
    num_experts = _num_experts(config)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for key, name in OF_LAYER.items():
            if f"{prefix}.{key}" in known:
                yield f"blk.{layer}.{name}", [f"{prefix}.{key}"]
        for part, leaf in parts.items():
            keys = [f"{prefix}.{stem}.{expert}.{leaf}.weight" for expert in range(num_experts)]
            yield f"blk.{layer}.ffn_{part}_exps.weight", keys


def _shape(checkpoint: Checkpoint, keys: list[str]) -> tuple[int, ...]:
    shape = checkpoint.bits(keys[0]).shape
    return shape if len(keys) == 1 else (len(keys), *shape)


def _values(checkpoint: Checkpoint, name: str, keys: list[str]) -> npt.NDArray[Any]:
    config = checkpoint.config
    bits = np.stack([checkpoint.bits(key) for key in keys]) if len(keys) > 1 else np.array(checkpoint.bits(keys[0]))
    if config["model_type"] == "mixtral" and name.endswith("attn_q.weight"):
        bits = _pair_rotary(bits, config["num_attention_heads"])
    if config["model_type"] == "mixtral" and name.endswith("attn_k.weight"):
        bits = _pair_rotary(bits, config["num_key_value_heads"])
    if IN_FLOAT32.search(name):
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(bits).view(np.uint8)


def _pair_rotary(bits: Bits, num_heads: int) -> Bits:
    """The `llama` architecture turns neighbours (2i, 2i+1) of a head, transformers (i, i + half)."""
    rows = bits.reshape(num_heads, 2, bits.shape[0] // num_heads // 2, *bits.shape[1:])
    return rows.swapaxes(1, 2).reshape(bits.shape)


if __name__ == "__main__":
    main()
