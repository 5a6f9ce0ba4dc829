"""Which checkpoint keys are routed experts, by their names alone.

Two ways of publishing are read: a key an expert and part (`...experts.3.up_proj.weight`, in Mixtral `w1`, `w3`, `w2`),
and one key for all experts of a layer (`...experts.gate_up_proj`). Shared experts are no routed experts: their keys
match nothing here.
"""

from __future__ import annotations

import dataclasses
import re

_EXPERT_KEY = re.compile(
    r"(?P<prefix>(?:model\.)?layers)\.(?P<layer>[0-9]{1,6})\.(?P<module>\w+)\.experts\.(?P<rest>.+)"
)
_OF_ONE = re.compile(r"(?P<index>[0-9]{1,6})\.(?P<name>\w+)\.weight")
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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExpertKey:
    """`index` is None when the key holds all experts of its layer; `part` is None when the name is not understood."""

    layer: int
    index: int | None
    part: str | None
    template: str
    """The key with places for another layer and expert: what a missing neighbour would be called."""


def parse_expert_key(key: str) -> ExpertKey | None:
    """None: not a routed expert's key."""
    match = _EXPERT_KEY.fullmatch(key)
    if match is None:
        return None
    layer, rest = int(match["layer"]), match["rest"]
    stem = f"{match['prefix']}.{{layer}}.{match['module']}.experts."
    one = _OF_ONE.fullmatch(rest)
    if one is None:
        return ExpertKey(layer=layer, index=None, part=_PACKED_NAMES.get(rest), template=stem + rest)
    template = f"{stem}{{index}}.{one['name']}.weight"
    part = _ONE_EXPERT_NAMES.get(one["name"])
    return ExpertKey(layer=layer, index=int(one["index"]), part=part, template=template)


def expected_parts(key: ExpertKey, *, has_biases: bool) -> dict[str, str]:
    """The parts of every expert that is published the way `key` is: part -> template of its key."""
    stem, name = key.template.split(".experts.")
    if key.index is None:
        names = {part: name for name, part in _PACKED_NAMES.items() if has_biases or not part.endswith("_bias")}
    else:
        naming = _MIXTRAL_NAMES if name.split(".")[1] in _MIXTRAL_NAMES.values() else _PROJECTION_NAMES
        names = {part: f"{{index}}.{name}.weight" for part, name in naming.items()}
    return {part: f"{stem}.experts.{name}" for part, name in names.items()}


def layer_of(key: str) -> int | None:
    """The hidden layer that a key belongs to; None for embeddings, head and norms outside the layers."""
    match = _LAYER_KEY.match(key)
    return None if match is None else int(match[1])
