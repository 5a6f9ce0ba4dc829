"""Quantised checkpoints in the layouts that are published, and their twins: the same weights, dequantised.

Each begins as a small random model. What stands for a weight is made here by the format's definition; what it is worth
is computed element by element, or by transformers where it has the format, never by the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from support.checkpoints import COMMON, build

Tensors = dict[str, torch.Tensor]
Quantise = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]
"""(key without its leaf, weight [R, C]) -> (published tensors, the weight that they stand for)"""

GROUP = 8
BLOCK = (8, 8)
CONFIGS: dict[str, dict[str, Any]] = {
    "fp8 blocks": {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": BLOCK},
    "fp8 tensor": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": None},
    "fp8 rows": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "int8 rows": {"quant_method": "compressed-tensors", "format": "int-quantized"},
    "int8 packed": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "int4": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "int4 with zeros": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "gptq int4": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    "gptq int8": {"quant_method": "gptq", "bits": 8, "group_size": GROUP, "desc_act": False, "sym": False},
}
_WEIGHTS: dict[str, dict[str, Any]] = {
    "fp8 rows": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
    "int8 rows": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
    "int8 packed": {"num_bits": 8, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": True},
    "int4": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": True},
    "int4 with zeros": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": False},
}
FORMATS = tuple(CONFIGS)


def quantisation_config(name: str) -> dict[str, Any]:
    config = dict(CONFIGS[name])
    if name in _WEIGHTS:
        weights = {"dynamic": False, "actorder": None, **_WEIGHTS[name]}
        config["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return config


def write(name: str, family: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    """-> (quantised, its dequantised twin), both as one file. Attention and shared experts are quantised as well."""
    quantised, twin = folder / "quantised", folder / "twin"
    build(family, dtype=dtype).save_pretrained(twin)
    published: Tensors = {}
    plain: Tensors = {}
    for key, tensor in safetensors.torch.load_file(twin / "model.safetensors").items():
        if _is_quantised(key, tensor):
            stem = key.removesuffix(".weight")
            found, worth = QUANTISERS[name](stem, tensor)
            published |= found
            plain[key] = worth.to(dtype).contiguous()
        else:
            published[key] = plain[key] = tensor
    save(twin, plain, None)
    save(quantised, published, quantisation_config(name), like=twin)
    return quantised, twin


def write_mxfp4(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """A gpt-oss with experts as openai published them; scales from tiny to large."""
    torch.manual_seed(3)
    config = transformers.GptOssConfig(
        **COMMON,
        head_dim=16,
        intermediate_size=64,
        num_local_experts=6,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    config.dtype = dtype
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, tensor in model.state_dict().items():
        if "norm" not in name:
            tensor.normal_(0.0, 1.0 if name.endswith("router.weight") else 0.15)
    model.save_pretrained(folder)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for key in [key for key in tensors if key.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, columns, rows = tensors.pop(key).shape
        grid = (num_experts, rows, columns // 32)
        tensors[f"{key}_blocks"] = torch.randint(0, 256, (*grid, 16), dtype=torch.uint8)
        tensors[f"{key}_scales"] = torch.randint(118, 127, grid, dtype=torch.uint8)
    save(folder, tensors, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]})
    return folder


def _is_quantised(key: str, tensor: torch.Tensor) -> bool:
    """All linears but routers and the head, as it is usual."""
    return tensor.dim() == 2 and not any(part in key for part in ("embed", "lm_head", "gate.weight", "router"))


def save(folder: Path, tensors: Tensors, quantisation: dict[str, Any] | None, *, like: Path | None = None) -> None:
    """`like`: the folder whose configuration is taken, but for its quantisation."""
    folder.mkdir(exist_ok=True)
    config = json.loads(((like or folder) / "config.json").read_text())
    config.pop("quantization_config", None)
    if quantisation is not None:
        config["quantization_config"] = quantisation
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _fp8(scale_leaf: str, block: tuple[int, int] | None) -> Quantise:
    def quantise(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        rows, columns = block or weight.shape
        rows, columns = rows or 1, columns or weight.shape[1]
        blocks = weight.float().unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
        scales = blocks.abs().amax((1, 3)) / 300
        codes = (blocks / scales[:, None, :, None]).view(weight.shape).to(torch.float8_e4m3fn)
        worth = Fp8Dequantize(None)._dequantize_one(codes, scales, weight.dtype)
        return {f"{stem}.weight": codes, f"{stem}.{scale_leaf}": scales if block else scales.view(1)}, worth

    return quantise


def _int(bits: int, group: int, *, zeros: bool = False, packed: bool = True) -> Quantise:
    def quantise(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        half = 1 << bits - 1
        groups = weight.unflatten(1, (-1, group or weight.shape[1]))
        scales = groups.abs().amax(2, keepdim=True) / (half - 1)
        middle = torch.randint(-3, 4, scales.shape) if zeros else torch.zeros(scales.shape, dtype=torch.int64)
        codes = ((groups / scales).round().long() + middle).clamp(-half, half - 1)
        worth = ((codes - middle).to(scales.dtype) * scales).view(weight.shape)
        flat = codes.view(weight.shape)
        if not packed:
            return {f"{stem}.weight": flat.to(torch.int8), f"{stem}.weight_scale": scales[..., 0].contiguous()}, worth
        found = {
            f"{stem}.weight_packed": pack(flat + half, bits, axis=1),
            f"{stem}.weight_scale": scales[..., 0].contiguous(),
            f"{stem}.weight_shape": torch.tensor(weight.shape),
        }
        if zeros:
            found[f"{stem}.weight_zero_point"] = pack(middle[..., 0] + half, bits, axis=0)
        return found, worth

    return quantise


def _gptq(bits: int) -> Quantise:
    def quantise(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        groups = weight.unflatten(1, (-1, GROUP))
        scales = (groups.abs().amax(2, keepdim=True) / ((1 << bits - 1) - 1)).half()
        zeros = torch.randint((1 << bits - 1) - 2, (1 << bits - 1) + 1, scales.shape)
        codes = ((groups / scales).round().long() + zeros).clamp(0, (1 << bits) - 1)
        worth = ((codes - zeros).half() * scales).view(weight.shape)
        found = {
            f"{stem}.qweight": pack(codes.view(weight.shape).t(), bits, axis=0),
            f"{stem}.scales": scales[..., 0].t().contiguous(),
            f"{stem}.qzeros": pack(zeros[..., 0].t() - 1, bits, axis=1),
            f"{stem}.g_idx": (torch.arange(weight.shape[1]) // GROUP).int(),
        }
        return found, worth

    return quantise


def pack(codes: torch.Tensor, bits: int, *, axis: int) -> torch.Tensor:
    """Unsigned codes into 32-bit words, the lowest bits first along `axis`; the last word may not be full."""
    per_word = 32 // bits
    moved = codes.long().movedim(axis, -1)
    moved = torch.nn.functional.pad(moved, (0, -moved.shape[-1] % per_word)).unflatten(-1, (-1, per_word))
    words = (moved << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int().movedim(-1, axis).contiguous()


QUANTISERS: dict[str, Quantise] = {
    "fp8 blocks": _fp8("weight_scale_inv", BLOCK),
    "fp8 tensor": _fp8("weight_scale_inv", None),
    "fp8 rows": _fp8("weight_scale", (1, 0)),
    "int8 rows": _int(8, 0, packed=False),
    "int8 packed": _int(8, GROUP),
    "int4": _int(4, GROUP),
    "int4 with zeros": _int(4, GROUP, zeros=True),
    "gptq int4": _gptq(4),
    "gptq int8": _gptq(8),
}
