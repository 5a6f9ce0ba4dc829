"""Whether a child that stands is what was rendered: pure comparison of dicts.

Only what was rendered counts: fields and list items of other writers are passed over, whatever the API server filled in
is no difference, quantities are equal by value. When the comparison cannot tell, it says "differs": applying once more
is harmless, and the executor remembers how the API server's answer looked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from emoe.core.quantity import parse_quantity

RENDERED_ANNOTATION = "emoe.dev/rendered"
"""On every child: what its rendering was. A field that is no longer rendered shows here alone."""

_ABSENT: Any = None
_QUANTITY_PARENTS = frozenset({"limits", "requests", "capacity"})
_QUANTITY_NAMES = frozenset({"sizeLimit", "divisor"})
_ITEM_KEYS = ("mountPath", "containerPort", "uid", "name")
"""What tells list items apart, the first that all of them have and no two share. Any other list is compared whole, such
as a NetworkPolicy's rules, where one more item would open a door."""


def rendered_hash(manifest: Mapping[str, Any]) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_hash(manifest: Mapping[str, Any]) -> dict[str, Any]:
    meta = dict(manifest["metadata"])
    meta["annotations"] = {**(meta.get("annotations") or {}), RENDERED_ANNOTATION: rendered_hash(manifest)}
    return {**manifest, "metadata": meta}


def hash_on(body: Mapping[str, Any]) -> str | None:
    annotations: Mapping[str, str] = body["metadata"].get("annotations") or {}
    return annotations.get(RENDERED_ANNOTATION)


def shown(rendered: Any, standing: Any) -> Any:
    """What stands, reduced to the shape of what was rendered."""
    if isinstance(rendered, Mapping) and rendered and isinstance(standing, Mapping):
        return {name: shown(value, standing.get(name, _ABSENT)) for name, value in rendered.items()}
    if _is_list(rendered) and rendered and _is_list(standing):
        return _shown_items(rendered, standing)
    return standing


def matches(rendered: Any, standing: Any) -> bool:
    return bool(_plain(rendered) == _plain(shown(rendered, standing)))


def _shown_items(rendered: Sequence[Any], standing: Sequence[Any]) -> list[Any]:
    key = _item_key(rendered)
    if key is None or _item_key(standing, key) is None:
        if len(rendered) != len(standing):
            return list(standing)
        return [shown(item, other) for item, other in zip(rendered, standing, strict=True)]
    by_key = {item[key]: item for item in standing}
    return [shown(item, by_key.get(item[key], _ABSENT)) for item in rendered]


def _item_key(items: Sequence[Any], *wanted: str) -> str | None:
    if not all(isinstance(item, Mapping) for item in items):
        return None
    for key in wanted or _ITEM_KEYS:
        values = [item.get(key) for item in items]
        if None not in values and len(set(map(str, values))) == len(values):
            return key
    return None


def _plain(value: Any, name: str = "", parent: str = "") -> Any:
    """One form for what means the same: empty is absent, quantities by value."""
    if isinstance(value, Mapping):
        inner = {key: _plain(item, key, name) for key, item in value.items()}
        return {key: item for key, item in inner.items() if item is not None} or None
    if _is_list(value):
        return [_plain(item, name, parent) for item in value] or None
    if name in _QUANTITY_NAMES or parent in _QUANTITY_PARENTS:
        return _quantity(value)
    return None if value == "" else value


def _quantity(value: Any) -> Any:
    try:
        return parse_quantity(str(value))
    except ValueError:
        return value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
