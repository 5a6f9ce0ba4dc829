"""Lays a user's pod template over ours the way the API server's strategic merge does.

Maps merge, null removes, lists of named things merge by name and keep our order, all other lists are replaced.
Containers merge field by field; a volume, a variable, a mount is replaced whole, or two sources of one thing would be
left in it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from emoe_operator.observed import UnservableError

_MERGED_BY: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
}
_REPLACED_BY: dict[str, tuple[str, ...]] = {
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "resourceClaims": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
_DEFAULTS = {"protocol": "TCP"}


def merge_template(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """A new template; neither argument is changed or shared with it. UnservableError for a list that is none."""
    return _merge_maps(copy.deepcopy(dict(ours)), copy.deepcopy(dict(theirs)))


def _merge_maps(ours: dict[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in theirs.items():
        if value is None:
            ours.pop(key, None)
        else:
            ours[key] = _merge_field(key, ours.get(key), value)
    return ours


def _merge_field(key: str, ours: Any, theirs: Any) -> Any:
    if isinstance(theirs, Mapping):
        return _merge_maps(ours if isinstance(ours, dict) else {}, theirs)
    if isinstance(theirs, list) and isinstance(ours, list):
        if identity := _MERGED_BY.get(key):
            return _merge_lists(ours, _objects(key, theirs), identity, whole=False)
        if identity := _REPLACED_BY.get(key):
            return _merge_lists(ours, _objects(key, theirs), identity, whole=True)
    return theirs


def _objects(key: str, items: list[Any]) -> list[dict[str, Any]]:
    if all(isinstance(item, dict) for item in items):
        return items
    raise UnservableError(
        "InvalidPodTemplate", f"podTemplate: every entry of {key} must be an object; see kubectl explain pod"
    )


def _merge_lists(
    ours: list[dict[str, Any]], theirs: Sequence[dict[str, Any]], identity: tuple[str, ...], *, whole: bool
) -> list[dict[str, Any]]:
    merged = {_key(item, identity): item for item in ours}
    for item in theirs:
        key = _key(item, identity)
        merged[key] = item if whole or key not in merged else _merge_maps(merged[key], item)
    return list(merged.values())


def _key(item: Mapping[str, Any], identity: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(item.get(field, _DEFAULTS.get(field)) for field in identity)
