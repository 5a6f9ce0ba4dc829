"""config.json's `quantization_config` -> a `Quantisation`, or why this one cannot be paged and what to use instead.

Untrusted: what is written there is parsed once, here. A setting that changes numbers and that emoe does not honour is a
refusal, never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from emoe.core.errors import UnsupportedModelError
from emoe.store.quantisation import MX_BLOCK, Component, Quantisation

Values = Mapping[str, object]

READ = (
    "mxfp4 (gpt-oss), fp8 (DeepSeek-V3, Qwen3-MoE), compressed-tensors (int4 and int8 packed, int8, fp8) and gptq "
    "(int4, int8)"
)
_INSTEAD = f"emoe pages {READ}, or a checkpoint in bfloat16, float16 or float32"


def parse_quantisation(found: object, *, family: str) -> Quantisation | None:
    """None for a checkpoint that is not quantised. UnsupportedModelError names what emoe does not have."""
    if not found:
        return None
    values = found if isinstance(found, Mapping) else {}
    method = values.get("quant_method", "unnamed")
    parse = _METHODS.get(method) if isinstance(method, str) else None
    if parse is None:
        raise _refusal(family, method, _HINTS.get(str(method), "this method is not supported"))
    if (method == "mxfp4") != (family == "gpt_oss"):
        raise _refusal(family, method, f"{family} is not published this way")
    try:
        return parse(values)
    except _RefusedError as refused:
        raise _refusal(family, method, str(refused)) from None


class _RefusedError(Exception):
    """Why, without the names of model and method."""


def _refusal(family: str, method: object, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"model_type {family}: quantised weights ({method}): {reason}; {_INSTEAD}")


def _mxfp4(values: Values) -> Quantisation:  # noqa: ARG001 - one signature for all
    leaves: dict[str, Component | None] = {"blocks": "codes", "scales": "scales"}
    return Quantisation(scheme="mxfp4", label="MXFP4", bits=4, block=(1, MX_BLOCK), leaves=leaves)


def _fp8(values: Values) -> Quantisation:
    _insist(values, "activation_scheme", "dynamic", default="dynamic")
    _insist(values, "fmt", "e4m3", default="e4m3")
    _insist(values, "expert_dtype", "fp8", default="fp8")
    block = values.get("weight_block_size", (128, 128))
    leaves: dict[str, Component | None] = {"weight": "codes", "weight_scale_inv": "scales"}
    if block is None:
        return Quantisation(scheme="fp8", label="FP8", bits=8, block=(0, 0), leaves=leaves)
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(_is_count(side) for side in block):
        raise _RefusedError(f"weight_block_size {block!r:.40} is not two sizes")
    label = f"FP8 in blocks of {block[0]} x {block[1]}"
    return Quantisation(scheme="fp8", label=label, bits=8, block=(block[0], block[1]), leaves=leaves)


def _compressed(values: Values) -> Quantisation:
    groups = values.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise _RefusedError("config_groups must be one group, so that all linears are quantised alike")
    (group,) = groups.values()
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if values.get(key):
            raise _RefusedError(f"{key} is not supported")
    weights, inputs = _part(group, "weights"), _part(group, "input_activations")
    if inputs and inputs.get("dynamic") is not True:
        raise _RefusedError("activations with static scales are not supported")
    if weights.get("dynamic") or weights.get("actorder") in {"group", True}:
        raise _RefusedError("weights in activation order (actorder: group) are not supported")
    layout = (group.get("format") if isinstance(group, Mapping) else None) or values.get("format")
    kind, bits = weights.get("type", "int"), weights.get("num_bits")
    block, grouped = _strategy(weights)
    if layout == "pack-quantized" and kind == "int" and bits in {4, 8}:
        return _packed(weights, bits, block, grouped)
    scheme = {"int-quantized": "int", "float-quantized": "float", "naive-quantized": kind}.get(str(layout))
    if scheme != kind or bits != 8:
        raise _RefusedError(f"format {layout!r} of {bits} bits ({kind}) is not supported")
    if not weights.get("symmetric", True):
        raise _RefusedError(f"format {layout!r} with zero points is not supported")
    leaves: dict[str, Component | None] = {"weight": "codes", "weight_scale": "scales"}
    if kind == "float":
        return Quantisation(scheme="fp8", label=f"FP8 {grouped}", bits=8, block=block, leaves=leaves)
    return Quantisation(scheme="int8", label=f"INT8 {grouped}", bits=8, block=block, leaves=leaves)


def _packed(weights: Values, bits: int, block: tuple[int, int], grouped: str) -> Quantisation:
    leaves: dict[str, Component | None] = {"weight_packed": "codes", "weight_scale": "scales", "weight_shape": None}
    if not weights.get("symmetric", True):
        leaves["weight_zero_point"] = "zeros"
    return Quantisation(scheme="packed", label=f"INT{bits} {grouped}", bits=bits, block=block, leaves=leaves)


def _strategy(weights: Values) -> tuple[tuple[int, int], str]:
    size, strategy = weights.get("group_size"), weights.get("strategy")
    strategy = strategy or ("group" if _is_count(size) else "channel" if size == -1 else "tensor")
    if strategy == "tensor":
        return (0, 0), "a tensor"
    if strategy == "channel":
        return (1, 0), "a row"
    if strategy == "group" and type(size) is int and size > 0:
        return (1, size), f"in groups of {size}"
    sides = weights.get("block_structure")
    if strategy == "block" and isinstance(sides, list) and len(sides) == 2 and all(map(_is_count, sides)):
        return (sides[0], sides[1]), f"in blocks of {sides[0]} x {sides[1]}"
    raise _RefusedError(f"strategy {strategy!r} with group_size {size!r} is not supported")


def _gptq(values: Values) -> Quantisation:
    bits, size = values.get("bits"), values.get("group_size", 128)
    if bits not in {4, 8} or type(bits) is not int:
        raise _RefusedError(f"{bits!r} bits are not supported, only 4 and 8 are")
    if type(size) is not int or not (size == -1 or size > 0):
        raise _RefusedError(f"group_size {size!r} is not supported")
    if values.get("desc_act"):
        raise _RefusedError("weights in activation order (desc_act) are not supported")
    layout = values.get("checkpoint_format", "gptq")
    if layout not in {"gptq", "gptq_v2"}:
        raise _RefusedError(f"checkpoint_format {layout!r} is not supported, only gptq and gptq_v2 are")
    rules = values.get("dynamic")
    if isinstance(rules, Mapping) and any(not str(rule).startswith("-:") for rule in rules):
        raise _RefusedError("modules quantised differently (dynamic) are not supported")
    leaves: dict[str, Component | None] = {"qweight": "codes", "scales": "scales", "qzeros": "zeros", "g_idx": None}
    label = f"INT{bits} GPTQ " + (f"in groups of {size}" if size > 0 else "a row")
    block = (1, size if size > 0 else 0)
    offset = 1 if layout == "gptq" else 0
    return Quantisation(scheme="gptq", label=label, bits=bits, block=block, leaves=leaves, zero_offset=offset)


def _insist(values: Values, key: str, wanted: str, *, default: str) -> None:
    if values.get(key, default) != wanted:
        raise _RefusedError(f"{key} {values[key]!r} is not supported, only {wanted!r} is")


def _part(group: object, key: str) -> Values:
    value = group.get(key) if isinstance(group, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


_METHODS: Mapping[str, Callable[[Values], Quantisation]] = {
    "mxfp4": _mxfp4,
    "fp8": _fp8,
    "compressed-tensors": _compressed,
    "gptq": _gptq,
}

_BITSANDBYTES = (
    "its experts are not plain tensors an expert (its quantised state belongs to its own kernels); quantise the "
    "original with compressed-tensors or GPTQ instead"
)
_HINTS: Mapping[str, str] = {
    "bitsandbytes": _BITSANDBYTES,
    "torchao": "its weights are tensor subclasses, flattened; quantise the original with compressed-tensors instead",
    "awq": "its interleaved nibbles are not read; take the same model as compressed-tensors or GPTQ",
    "auto-round": "take the same model exported in the format auto_gptq",
}
