"""What stands in the cluster, as the watches last said it: resources by key, children and pods by owner.

Only the newest version of an object is kept, wherever it came from (a watch, a list, the answer to an apply), so that a
late event never undoes what an answer told. Knows neither kopf nor the API server.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from emoe.api.names import OWNER_LABEL
from emoe_operator.kinds import MOED, POD, Kind
from emoe_operator.observed import Body, ChildKey

Key = tuple[str, str]
"""(namespace, name) of a MoEDeployment."""


class Cache:
    def __init__(self) -> None:
        self._resources: dict[Key, Body] = {}
        self._owned: defaultdict[Key, dict[ChildKey, Body]] = defaultdict(dict)

    def resources(self) -> list[Body]:
        return list(self._resources.values())

    def resource(self, key: Key) -> Body | None:
        return self._resources.get(key)

    def children(self, key: Key) -> dict[ChildKey, Body]:
        return {child: body for child, body in self._owned.get(key, {}).items() if child[0] != POD.name}

    def pods(self, key: Key) -> tuple[Body, ...]:
        return tuple(body for child, body in self._owned.get(key, {}).items() if child[0] == POD.name)

    def put(self, kind: Kind, body: Body) -> Key | None:
        """The key of the resource that it concerns; None if it concerns none or is older than what is known."""
        key, table, slot = self._place(kind, body)
        if key is None or not _is_newer(body, table.get(slot)):
            return None
        table[slot] = _trimmed(kind, body)
        return key

    def remove(self, kind: Kind, body: Body) -> Key | None:
        key, table, slot = self._place(kind, body)
        standing = table.get(slot)
        if key is None or standing is None or standing["metadata"]["uid"] != body["metadata"]["uid"]:
            return key
        del table[slot]
        if not self._owned.get(key, True):
            del self._owned[key]
        return key

    def replace(self, kind: Kind, bodies: Iterable[Body], *, namespace: str | None, version: int) -> set[Key]:
        """What a list of all objects of a kind told: ghosts go, what was missed comes. The keys that it changed.

        `version` is the list's own: it can say nothing about what is newer."""
        listed = list(bodies)
        changed = {self.put(kind, body) for body in listed}
        alive = {body["metadata"]["uid"] for body in listed}
        unlisted = [body for body in self._all(kind, namespace) if body["metadata"]["uid"] not in alive]
        ghosts = [body for body in unlisted if _version(body) <= version]
        changed |= {self.remove(kind, body) for body in ghosts}
        return {key for key in changed if key is not None}

    def _all(self, kind: Kind, namespace: str | None) -> Iterator[Body]:
        if kind == MOED:
            bodies = list(self._resources.values())
        else:
            bodies = [body for owned in self._owned.values() for child, body in owned.items() if child[0] == kind.name]
        return (body for body in bodies if namespace in (None, body["metadata"]["namespace"]))

    def _place(self, kind: Kind, body: Body) -> tuple[Key | None, dict[Any, Body], Any]:
        meta = body["metadata"]
        if kind == MOED:
            key = (meta["namespace"], meta["name"])
            return key, self._resources, key
        owner = (meta.get("labels") or {}).get(OWNER_LABEL)
        if owner is None:
            return None, {}, None
        key = (meta["namespace"], owner)
        return key, self._owned[key], (kind.name, meta["name"])


def _is_newer(body: Body, standing: Body | None) -> bool:
    if standing is None or standing["metadata"]["uid"] != body["metadata"]["uid"]:
        return True
    return _version(body) > _version(standing)


def _version(body: Body) -> int:
    return int(body["metadata"].get("resourceVersion", 0))


def _trimmed(kind: Kind, body: Body) -> Body:
    """Without the field managers' book-keeping, which is as long as the object; a list's items get their kind."""
    meta = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return {"apiVersion": kind.api_version, "kind": kind.name, **body, "metadata": meta}
