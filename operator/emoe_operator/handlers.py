"""The only place that kopf calls: it watches, and each event becomes a call of `Sink`. No decision is made here.

Index handlers take in every object, event handlers only what was deleted: kopf holds the latter back until all kinds
were listed, so the first one says that the picture is whole. Neither makes kopf write to an object: no annotations, no
finalizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import kopf

from emoe.api.names import OWNER_LABEL
from emoe_operator.kinds import LABELLED, WATCHED, Kind
from emoe_operator.observed import Body

_REQUEST_SECONDS = 30.0
_DELETED = "DELETED"


class Sink(Protocol):
    """Called in kopf's thread."""

    def seen(self, kind: Kind, body: Body) -> None: ...
    def deleted(self, kind: Kind, body: Body) -> None: ...
    def complete(self) -> None:
        """All that stood at the start was seen."""
        ...


def build_registry(sink: Sink) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    for kind in WATCHED:
        _watch(registry, kind, sink)
    return registry


def _watch(registry: kopf.OperatorRegistry, kind: Kind, sink: Sink) -> None:
    async def take_in(body: kopf.Body, **_: Any) -> None:
        sink.seen(kind, dict(body))

    async def follow(event: kopf.RawEvent, **_: Any) -> None:
        sink.complete()
        if event["type"] == _DELETED:
            sink.deleted(kind, event["object"])

    where: Any = {"group": kind.group, "version": kind.version, "plural": kind.plural, "registry": registry}
    kopf.index(**where, id=f"take-in-{kind.plural}")(take_in)
    kopf.on.event(**where, id=f"follow-{kind.plural}")(follow)


def watch_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.networking.request_timeout = _REQUEST_SECONDS
    settings.queueing.exit_timeout = 0.5
    settings.process.ultimate_exiting_timeout = None
    labelled = {(kind.group, kind.plural) for kind in LABELLED}
    settings.watching.label_selectors[lambda resource: (resource.group, resource.plural) in labelled] = OWNER_LABEL
    return settings


def watched_paths(namespaces: Sequence[str]) -> tuple[str, ...]:
    return tuple(kind.path(namespace) for kind in WATCHED for namespace in (namespaces or (None,)))
