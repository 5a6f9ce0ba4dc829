"""Which checkpoint keys are routed experts, by their names alone.

Two ways of publishing are read: a key an expert and part (`...experts.3.up_proj.weight`, in Mixtral `w1`, `w3`, `w2`),
and one key for all experts of a layer (`...experts.gate_up_proj`). A quantised part is several tensors, each with its
own leaf (`...up_proj.weight_scale_inv`, `...gate_up_proj_blocks`). Shared experts are no routed experts: their keys
match nothing here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from emoe.store.quantisation import Component, Quantisation, part_name

_EXPERT_KEY = re.compile(
    r"(?P<prefix>(?:model\.)?layers)\.(?P<layer>[0-9]{1,6})\.(?P<module>\w+)\.experts\.(?P<rest>.+)"
)
_OF_ONE = re.compile(r"(?P<index>[0-9]{1,6})\.(?P<name>\w+)\.(?P<leaf>\w+)")
_LAYER_KEY = re.compile(r"(?:model\.)?layers\.([0-9]{1,6})\.")

_PROJECTION_NAMES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_MIXTRAL_NAMES = {"gate": "w1", "up": "w3", "down": "w2"}
_ONE_EXPERT_NAMES = {name: part for naming in (_PROJECTION_NAMES, _MIXTRAL_NAMES) for part, name in naming.items()}
_PACKED_NAMES = {
    "gate_up_proj": "gate_up",
    "gate_up_proj_bias": "gate_up_bias",
    "down_proj": "down",
    "down_proj_bias": "down_bias",
}
_PLAIN_LEAF = "weight"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExpertKey:
    """`index` is None when the key holds all experts of its layer; `part` is None when the name is not understood."""

    layer: int
    index: int | None
    part: str | None
    template: str
    """The key with places for another layer and expert: what a missing neighbour would be called."""
    is_needless: bool = False
    """Whether the tensor says nothing that the configuration does not: it is left where it lies."""


def parse_expert_key(key: str, quantisation: Quantisation | None = None) -> ExpertKey | None:
    """None: not a routed expert's key."""
    match = _EXPERT_KEY.fullmatch(key)
    if match is None:
        return None
    layer, rest = int(match["layer"]), match["rest"]
    stem = f"{match['prefix']}.{{layer}}.{match['module']}.experts."
    one = _OF_ONE.fullmatch(rest)
    leaves: Mapping[str, Component | None] = quantisation.leaves if quantisation else {}
    if one is None:
        part = _packed_names(quantisation).get(rest)
        return ExpertKey(layer=layer, index=None, part=part, template=stem + rest)
    name, leaf = one["name"], one["leaf"]
    part = _ONE_EXPERT_NAMES.get(name)
    if part is not None:
        component = leaves.get(leaf)
        plain = part if quantisation is None and leaf == _PLAIN_LEAF else None
        part = part_name(part, component) if component else plain
    template = f"{stem}{{index}}.{name}.{leaf}"
    is_needless = name in _ONE_EXPERT_NAMES and leaf in leaves and leaves[leaf] is None
    return ExpertKey(layer=layer, index=int(one["index"]), part=part, template=template, is_needless=is_needless)


def expected_parts(key: ExpertKey, *, has_biases: bool, quantisation: Quantisation | None = None) -> dict[str, str]:
    """The parts of every expert that is published the way `key` is: part -> template of its key."""
    stem, name = key.template.split(".experts.")
    if key.index is None:
        packed = _packed_names(quantisation).items()
        names = {part: name for name, part in packed if has_biases or not part.endswith("_bias")}
    else:
        naming = _MIXTRAL_NAMES if name.split(".")[1] in _MIXTRAL_NAMES.values() else _PROJECTION_NAMES
        names = {
            published: f"{{index}}.{name}.{leaf}"
            for part, name in naming.items()
            for published, leaf in _leaves_of(part, quantisation)
        }
    return {part: f"{stem}.experts.{name}" for part, name in names.items()}


def _packed_names(quantisation: Quantisation | None) -> dict[str, str]:
    """What stands behind `.experts.` where one key holds a layer's experts -> the part."""
    if quantisation is None:
        return _PACKED_NAMES
    named: dict[str, str] = {}
    for name, part in _PACKED_NAMES.items():
        if part.endswith("_bias"):
            named[name] = part
        else:
            named |= {f"{name}_{leaf}": published for published, leaf in _leaves_of(part, quantisation)}
    return named


def _leaves_of(part: str, quantisation: Quantisation | None) -> list[tuple[str, str]]:
    """(part of the layout, end of its key) of each tensor that stands for `part`."""
    if quantisation is None:
        return [(part, _PLAIN_LEAF)]
    return [(part_name(part, component), quantisation.leaf(component)) for component in quantisation.components]


def layer_of(key: str) -> int | None:
    """The hidden layer that a key belongs to; None for embeddings, head and norms outside the layers."""
    match = _LAYER_KEY.match(key)
    return None if match is None else int(match[1])
