"""Builds a transformers model around slots: every weight but the experts is loaded, the experts stay in the store.

The model is made on the meta device, so expert weights are never materialised; base tensors are read by position
straight into their own memory.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from emoe.core.errors import CheckpointError, UnsupportedModelError
from emoe.store.store import ExpertStore
from emoe.worker import attention, experts
from emoe.worker.arena import DTYPES
from emoe.worker.families import Family, family_of
from emoe.worker.transfer import bytes_view


def load_model(store: ExpertStore, device: torch.device) -> transformers.PreTrainedModel:
    """A causal language model in evaluation mode whose experts modules hold no parameters."""
    family = family_of(store.family)
    config = transformers.AutoConfig.from_pretrained(store.folder)
    config._attn_implementation = attention.NAME
    config._experts_implementation = experts.NAME
    config.dtype = DTYPES[store.dtype]
    with torch.device("meta"):
        model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    for module in experts_modules(model).values():
        for name in [name for name, _ in module.named_parameters(recurse=False)]:
            delattr(module, name)
    _load_base(model, store, family, device)
    _rebuild_buffers(model, device)
    model.requires_grad_(requires_grad=False)
    model.eval()
    return model


def experts_modules(model: torch.nn.Module) -> dict[int, torch.nn.Module]:
    """layer -> the module that transformers' experts registry dispatches."""
    found: dict[int, torch.nn.Module] = {}
    for name, module in model.named_modules():
        if hasattr(module, "is_transposed") and hasattr(module, "has_gate"):
            found[_layer_in(name)] = module
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no experts that transformers dispatches by its registry"
        )
    return found


def router_modules(model: torch.nn.Module, family: Family) -> dict[int, torch.nn.Module]:
    return {
        _layer_in(name): module
        for name, module in model.named_modules()
        if type(module).__name__ == family.router_class
    }


def _layer_in(module_name: str) -> int:
    return int(next(piece for piece in module_name.split(".") if piece.isdigit()))


def _load_base(model: Any, store: ExpertStore, family: Family, device: torch.device) -> None:
    state: dict[str, torch.Tensor] = {}
    expected = model.state_dict()
    kept: set[str] = set(model._keep_in_fp32_modules_strict or ())
    if model.dtype == torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())
    for key, entry in store.base_tensors.items():
        name = key
        for published, own in family.key_renames:
            name = name.replace(published, own)
        if name not in expected:
            continue
        tensor = torch.empty(entry.shape, dtype=DTYPES.get(entry.dtype, torch.float32))
        store.read_tensor_into(key, bytes_view(tensor))
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{entry.file}: {key} has shape {tuple(tensor.shape)}, the model's configuration says "
                f"{tuple(expected[name].shape)}"
            )
        dtype = torch.float32 if any(part in name for part in kept) else expected[name].dtype
        state[name] = tensor.to(device=device, dtype=dtype)
    missing = model.load_state_dict(state, strict=False, assign=True).missing_keys
    model.tie_weights()
    absent = [name for name in missing if model.state_dict()[name].is_meta]
    if absent:
        raise CheckpointError(
            f"{store.folder} lacks {absent[0]}" + (f" and {len(absent) - 1} more" if len(absent) > 1 else "")
        )


def _rebuild_buffers(model: torch.nn.Module, device: torch.device) -> None:
    """Buffers that no checkpoint keeps (rotary frequencies): their module is made anew, and computes them."""
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            parent, _, child = name.rpartition(".")
            config: Any = module.config
            with torch.device(device):
                setattr(model.get_submodule(parent), child, type(module)(config))
