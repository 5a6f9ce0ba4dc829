"""What training a calibration takes in memory, and what there is: asked before anything is loaded.

The model is whole in memory here, in the dtype it is trained in, unlike in serving.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from emoe.core.errors import BudgetError
from emoe.store.calibration import GATE, CalibrationShape
from emoe.store.store import ExpertStore
from emoe.store.tensors import DTYPE_BITS
from emoe.train.calibrate_loss import MAX_LOGITS

TRAINED_BYTES = 16
"""A parameter that is trained: itself, its gradient, and two moments of AdamW, in float32."""
PROCESS_BYTES = 600 * 2**20
"""torch, transformers and a tokenizer without a model. Measured, and rounded up."""
HIDDEN_COPIES = 16
"""A layer's activations that wait for the backward pass, in hidden sizes a token beside the experts' own."""
LOGIT_COPIES = 5
"""Of a token's logits in float32. With the above 205 kB a token of the model that ships; measured are 170."""
_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def estimate_bytes(store: ExpertStore, shape: CalibrationShape, *, tokens_per_batch: int, dtype: torch.dtype) -> int:
    """Of weights, of what is trained, and of one batch's activations; the last two are about."""
    held = sum(entry.num_bytes for entry in store.base_tensors.values())
    held += store.grid.num_experts_total * store.grid.expert_bytes
    weights = held * 8 // DTYPE_BITS[store.dtype] * dtype.itemsize
    token = dtype.itemsize * _count(store.config, "num_hidden_layers") * _activations(store)
    vocab_size = _count(store.config, "vocab_size")
    logits = min(tokens_per_batch * vocab_size, max(MAX_LOGITS, vocab_size)) * LOGIT_COPIES * 4
    trained = len(store.grid.moe_layers) * _trained_in_layer(store, shape) * TRAINED_BYTES
    return weights + trained + tokens_per_batch * token + logits + PROCESS_BYTES


def check_memory(needed_bytes: int, device: torch.device, *, shown: str) -> None:
    """BudgetError when there is less, with both figures. `shown`: what is to be trained."""
    available = available_bytes(device)
    if available is not None and needed_bytes > available:
        raise BudgetError(
            f"to calibrate {shown} takes about {needed_bytes / 2**30:.1f} GiB on {device}, where "
            f"{available / 2**30:.1f} GiB are free: use a larger machine, bfloat16 (half the weights) or smaller "
            "batches"
        )


def available_bytes(device: torch.device) -> int | None:
    """None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    return min([free, *_limits()])


def _limits() -> list[int]:
    found = []
    for path in _CGROUP_LIMITS:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return found


def expert_width(store: ExpertStore) -> int:
    """F of its experts."""
    down = next(part for part in store.layout.parts if part.name == "down")
    return down.shape[0] * down.shape[1] // _count(store.config, "hidden_size")


def _trained_in_layer(store: ExpertStore, shape: CalibrationShape) -> int:
    """Numbers. Corrections of dense linears are counted as if each layer had eight square ones."""
    hidden, num_experts = _count(store.config, "hidden_size"), store.grid.rule.num_experts
    gate = num_experts * (shape.gate_rank or hidden) + shape.gate_rank * hidden if GATE in shape.parts else 0
    return 3 * shape.standin_width * hidden + gate + 16 * shape.linear_rank * hidden + hidden + num_experts


def _activations(store: ExpertStore) -> int:
    """Numbers a token and layer that wait for the backward pass."""
    hidden, top_k = _count(store.config, "hidden_size"), store.grid.rule.top_k
    return HIDDEN_COPIES * hidden + top_k * (3 * hidden + 6 * expert_width(store))


def _count(config: Mapping[str, object], key: str) -> int:
    value = config.get(key)
    return value if type(value) is int else 1
