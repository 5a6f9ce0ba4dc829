"""The base model's linear layers in oneDNN's order, on a CPU: attention's projections, the head, dense layers.

Products of several rows take 0.3 to 0.7 of a plain weight's time, those of one row as long. The numbers are the same in
both miss policies and at each budget, since every worker packs alike. Knows nothing of slots.
"""

from __future__ import annotations

import torch

from emoe.worker import onednn


class PackedLinear(torch.nn.Linear):
    """[..., C] -> [..., R]. The weight is a buffer: whoever copies or counts a model's tensors finds it."""

    def __init__(self, packed: torch.Tensor, bias_R: torch.Tensor | None) -> None:
        torch.nn.Module.__init__(self)  # a Linear's own would make a plain weight
        self.out_features, self.in_features = packed.shape
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("bias", bias_R, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return onednn.linear(x, self.weight, self.bias)


def pack_linears(model: torch.nn.Module) -> int:
    """Exchanges the linear layers that packing pays for, one by one: never more than one is in memory in both forms.

    -> how many. A weight that another layer shares (a tied head's) stays plain, and so does one that would grow.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    names = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    return sum(_pack(model, name) for name in names if owners[id(model.get_submodule(name).weight)] == 1)


def _pack(model: torch.nn.Module, name: str) -> bool:
    linear = model.get_submodule(name)
    assert isinstance(linear, torch.nn.Linear)
    weight, bias = linear.weight.detach(), linear.bias
    if not onednn.packable(weight):
        return False
    packed = onednn.pack(weight)
    if onednn.num_bytes(packed) > weight.nbytes:
        return False
    model.set_submodule(name, PackedLinear(packed, None if bias is None else bias.detach()))
    return True
