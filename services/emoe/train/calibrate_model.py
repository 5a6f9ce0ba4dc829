"""The model that a calibration is trained on: transformers' own, whole in memory, over flat batches.

Its weights stay as published. With masks set it routes among the residents and is corrected: the student; without, it
is the teacher, from the same memory. Attention and experts are functions registered under the name `emoe_flat`.
T tokens, N examples, L layers, E experts, K choices a token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from emoe.train.calibrate_batches import FlatBatch
from emoe.worker.attention import attend_causally
from emoe.worker.calibration import CalibratedLayer, Calibration, RouterOutput
from emoe.worker.calibration_hooks import attach_calibration
from emoe.worker.families import Family
from emoe.worker.loading import router_modules

NAME = "emoe_flat"


class StudentModel:
    """`wanted`: after a pass, each MoE layer's published choice [T, K], resident or not."""

    def __init__(self, model: Any, family: Family, calibration: Calibration) -> None:
        self.model = model
        self.wanted: dict[int, torch.Tensor] = {}
        self._masks_NLE: torch.Tensor | None = None
        self._owner_T: torch.Tensor | None = None
        self._lacks_T1: torch.Tensor | None = None
        layers = attach_calibration(calibration, model, family, lacking=self._lacking)
        for layer, router in router_modules(model, family).items():
            router.register_forward_hook(self._hook(layer, layers[layer]))

    def states(self, batch: FlatBatch, masks_NLE: torch.Tensor | None = None) -> torch.Tensor:
        """Last hidden states [T, D], of the teacher without masks, of the student with them."""
        self._masks_NLE, self._owner_T = masks_NLE, batch.owner
        if masks_NLE is not None:
            lacks_N = (~masks_NLE).flatten(1).any(1)
            self._lacks_T1 = lacks_N.index_select(0, batch.owner)[:, None]
        states: torch.Tensor = self.model.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, emoe_flat=batch
        ).last_hidden_state[0]
        return states

    @property
    def head(self) -> torch.nn.Module:
        head: torch.nn.Module = self.model.get_output_embeddings()
        return head

    def _hook(self, layer: int, calibrated: CalibratedLayer) -> Any:
        def choose(router: torch.nn.Module, args: tuple[torch.Tensor], output: RouterOutput) -> RouterOutput:
            self.wanted[layer] = output[2]
            if self._masks_NLE is None or self._owner_T is None:
                return output
            resident_TE = self._masks_NLE[:, layer].index_select(0, self._owner_T)
            return calibrated.choose(router, args[0], output, resident_TE)

        return choose

    def _lacking(self) -> torch.Tensor | bool:
        return False if self._masks_NLE is None or self._lacks_T1 is None else self._lacks_T1


def open_model(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Frozen, in evaluation mode."""
    with _without_bars():
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    model.config._attn_implementation = NAME
    model.config._experts_implementation = NAME
    return model.to(device).requires_grad_(requires_grad=False).eval()


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Progress is told by whoever called."""
    were_on = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            transformers.utils.logging.enable_progress_bar()


def flat_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - transformers passes None for this implementation
    *,
    scaling: float,
    emoe_flat: FlatBatch,
    s_aux: torch.Tensor | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """query, key, value [1, heads, T, head_dim] -> [1, T, heads, value dim]; examples of like length together."""
    window = options.get("sliding_window", getattr(module, "sliding_window", None))
    assert window is None or isinstance(window, int)
    outputs = []
    for group in emoe_flat.groups:
        q, k, v = (_gather(x, group) for x in (query, key, value))
        out = attend_causally(q, k, v, num_past=0, window=window, scaling=scaling, sinks=s_aux)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, emoe_flat.places)[None], None


def _gather(x: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """[1, heads, T, head_dim] -> [examples, heads, longest, head_dim]."""
    rows = x[0].transpose(0, 1).index_select(0, group.reshape(-1))
    return rows.view(*group.shape, *rows.shape[1:]).transpose(1, 2)


def flat_experts(
    module: Any, hidden_TD: torch.Tensor, topk_ids_TK: torch.Tensor, topk_weights_TK: torch.Tensor
) -> torch.Tensor:
    """Expert by expert over tokens that are sorted by expert: no gradient of weights that are frozen."""
    num_topk = topk_ids_TK.shape[1]
    order_R = torch.argsort(topk_ids_TK.reshape(-1), stable=True)
    counts = torch.bincount(topk_ids_TK.reshape(-1), minlength=module.num_experts).tolist()
    tokens_R = order_R // num_topk
    up = "gate_up_proj" if module.has_gate else "up_proj"
    outputs = []
    for expert, rows in enumerate(hidden_TD.index_select(0, tokens_R).split(counts)):
        if len(rows):
            hidden = _linear(module, up, expert, rows)
            active = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
            outputs.append(_linear(module, "down_proj", expert, active))
    weighted_RD = torch.cat(outputs) * topk_weights_TK.reshape(-1).index_select(0, order_R)[:, None]
    return torch.zeros_like(hidden_TD).index_add(0, tokens_R, weighted_RD.to(hidden_TD.dtype))


def _linear(module: Any, name: str, expert: int, rows: torch.Tensor) -> torch.Tensor:
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return F.linear(rows, weight.t() if module.is_transposed else weight, bias)


ALL_ATTENTION_FUNCTIONS.register(NAME, flat_attention)
ALL_EXPERTS_FUNCTIONS.register(NAME, flat_experts)
