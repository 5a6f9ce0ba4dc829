"""Which weights outside the experts are quantised too: several published tensors stand for one, by their keys alone.

They stay in memory as the model's own dtype: counted so by `footprint`, made so once by the worker when it loads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from emoe.store.quantisation import Component, Quantisation
from emoe.store.tensors import TensorEntry


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantisedLinear:
    """`shape` is [rows, columns], as torch.nn.Linear has it; `keys` names each published tensor."""

    shape: tuple[int, int]
    keys: Mapping[Component, str]


def find_linears(base: Mapping[str, TensorEntry], quantisation: Quantisation | None) -> dict[str, QuantisedLinear]:
    """The model's name of each weight (`...q_proj.weight`) -> what is published for it."""
    if quantisation is None or quantisation.scheme == "mxfp4":
        return {}
    codes_leaf, scales_leaf = (quantisation.leaf(component) for component in ("codes", "scales"))
    found: dict[str, QuantisedLinear] = {}
    for key, entry in base.items():
        stem, _, leaf = key.rpartition(".")
        if leaf == codes_leaf and f"{stem}.{scales_leaf}" in base and len(entry.shape) == 2:
            keys = {component: f"{stem}.{quantisation.leaf(component)}" for component in quantisation.components}
            shape = quantisation.weight_shape(entry.shape)
            found[f"{stem}.weight"] = QuantisedLinear(shape=shape, keys=keys)
    return found


def held_base_bytes(base: Mapping[str, TensorEntry], linears: Mapping[str, QuantisedLinear], *, dtype_bits: int) -> int:
    """What the base tensors take once loaded."""
    spread = {key for linear in linears.values() for key in linear.keys.values()}
    held = sum(entry.num_bytes for key, entry in base.items() if key not in spread)
    return held + sum(linear.shape[0] * linear.shape[1] * dtype_bits // 8 for linear in linears.values())
