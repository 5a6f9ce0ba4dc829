"""JSON from files that we did not write: one place that turns every way of being bad into ValueError."""

from __future__ import annotations

import json
from collections import Counter


def parse_object(raw: bytes) -> dict[str, object]:
    """A JSON object without repeated keys. ValueError says what else it is."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is expected, not {type(value).__name__}")  # noqa: TRY004 - one error for callers
    return value


def is_count(value: object) -> bool:
    """A whole number of zero or more; JSON's true and 1.0 are not."""
    return type(value) is int and value >= 0


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {repeated!r} stands there twice")
    return found
