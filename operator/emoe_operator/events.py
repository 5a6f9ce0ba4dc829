"""Kubernetes Events of a resource: one for each change of a condition, so that `kubectl describe` tells the story.

Bounded a resource, and best effort: an event that cannot be written is a log line and nothing more.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from emoe_operator.client import FIELD_MANAGER, KubeApi
from emoe_operator.errors import ApiError
from emoe_operator.kinds import EVENT, MOED
from emoe_operator.observed import Body

log = logging.getLogger(__name__)

BURST = 12
REFILL_SECONDS = 20.0
MAX_NOTE_CHARACTERS = 1000
_UNTOLD_TYPES = frozenset({"Progressing"})
_WAITING_REASONS = frozenset(
    {
        *("Applying", "RollingOut", "Starting", "Loading", "LoaderNotAnswering", "NoWorkerReady", "NoSchedulerReady"),
        *("WaitingForModel", "WaitingForWorkers", "ModelResolving", "ModelFetching", "ModelVerifying"),
        *("Suspended", "ScaledToZero", "Paused"),
    }
)
"""What passes by itself, or was wished for."""
_INSTANCE = os.environ.get("HOSTNAME") or socket.gethostname()


class Recorder:
    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self._buckets: dict[str, _Bucket] = {}

    async def record(self, resource: Body, before: Body, after: Body) -> None:
        """What differs between the conditions of two statuses."""
        bucket = self._buckets.setdefault(resource["metadata"]["uid"], _Bucket())
        for condition in changed_conditions(before, after):
            if not bucket.take(asyncio.get_running_loop().time()):
                log.debug("no event for %s: too many of late", condition["type"])
                return
            await self._write(resource, condition, warning=is_warning(condition, before))

    def forget(self, uids: set[str]) -> None:
        """Of all resources but these."""
        for uid in set(self._buckets) - uids:
            del self._buckets[uid]

    async def _write(self, resource: Body, condition: Body, *, warning: bool) -> None:
        event = describe(resource, condition, warning=warning, now=datetime.datetime.now(datetime.UTC))
        try:
            await self._api.create_event(resource["metadata"]["namespace"], event)
        except ApiError as error:
            log.info("an event could not be written: %s", error)


class _Bucket:
    """So many at once, then one every so often."""

    def __init__(self) -> None:
        self._left = float(BURST)
        self._last_seconds: float | None = None

    def take(self, now_seconds: float) -> bool:
        if self._last_seconds is not None:
            self._left = min(BURST, self._left + (now_seconds - self._last_seconds) / REFILL_SECONDS)
        self._last_seconds = now_seconds
        if self._left < 1:
            return False
        self._left -= 1
        return True


def changed_conditions(before: Body, after: Body) -> Iterator[Body]:
    """Those whose status or reason is new; a message alone, which may count bytes, is no news. Nor is a condition that
    nobody knows anything of yet."""
    known = {one["type"]: (one["status"], one["reason"]) for one in before.get("conditions") or ()}
    told: set[tuple[str, str]] = set()
    for one in after.get("conditions") or ():
        now = (one["status"], one["reason"])
        is_news = known.get(one["type"]) != now and (one["type"] in known or one["status"] != "Unknown")
        # Ready sums up: what it repeats of another condition, or that of it, is told once.
        if is_news and one["type"] not in _UNTOLD_TYPES and now not in told:
            told.add(now)
            yield one


def is_warning(condition: Body, before: Body) -> bool:
    """Somebody has to act, or requests are no longer served."""
    if condition["status"] == "True":
        return False
    served = any(one["type"] == "Available" and one["status"] == "True" for one in before.get("conditions") or ())
    return condition["reason"] not in _WAITING_REASONS or (condition["type"] == "Available" and served)


def describe(resource: Body, condition: Body, *, warning: bool, now: datetime.datetime) -> dict[str, Any]:
    meta: Mapping[str, Any] = resource["metadata"]
    holds = {"True": "", "False": "not ", "Unknown": "perhaps "}[condition["status"]]
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {"name": f"{meta['name']}.{uuid.uuid4().hex[:16]}", "namespace": meta["namespace"]},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": FIELD_MANAGER,
        "reportingInstance": _INSTANCE[:128],
        "action": "Reconcile",
        "type": "Warning" if warning else "Normal",
        "reason": condition["reason"][:128],
        "note": f"{holds}{condition['type']}: {condition.get('message', '')}"[:MAX_NOTE_CHARACTERS],
        "regarding": {
            "apiVersion": MOED.api_version,
            "kind": MOED.name,
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
        },
    }
