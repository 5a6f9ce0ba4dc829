"""What the watches tell, put into the cache, and the resources that it concerns into the queue.

Nothing is queued before all kinds were listed: a plan made from half a picture would apply what stands already.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import NoReturn

from emoe.api.names import OWNER_LABEL
from emoe_operator.cache import Cache, Key
from emoe_operator.client import KubeApi
from emoe_operator.errors import ApiError
from emoe_operator.kinds import MOED, WATCHED, Kind
from emoe_operator.observed import Body
from emoe_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

RELIST_SECONDS = 600.0


class Intake:
    def __init__(self, cache: Cache, queue: WorkQueue) -> None:
        self._cache = cache
        self._queue = queue
        self._early: set[Key] = set()
        self.is_complete = False

    def seen(self, kind: Kind, body: Body) -> None:
        self._wake(self._cache.put(kind, body))

    def deleted(self, kind: Kind, body: Body) -> None:
        self._wake(self._cache.remove(kind, body))

    def complete(self) -> None:
        if self.is_complete:
            return
        self.is_complete = True
        early, self._early = self._early, set()
        for key in early:
            self._wake(key)

    def relisted(self, kind: Kind, bodies: list[Body], *, namespace: str | None, version: int) -> None:
        for key in self._cache.replace(kind, bodies, namespace=namespace, version=version):
            self._wake(key)

    def _wake(self, key: Key | None) -> None:
        if key is None:
            return
        if self.is_complete:
            self._queue.add(key)
        else:
            self._early.add(key)


async def relist_for_ever(
    api: KubeApi, intake: Intake, *, namespaces: Sequence[str], every_seconds: float = RELIST_SECONDS
) -> NoReturn:
    """A watch that had to start anew says nothing of what was deleted meanwhile. A few requests, however many resources
    there are, find it out."""
    while True:
        await asyncio.sleep(every_seconds * random.uniform(0.9, 1.1))
        try:
            await relist(api, intake, namespaces=namespaces)
        except ApiError as error:
            log.warning("could not list anew: %s; the next time will do", error)


async def relist(api: KubeApi, intake: Intake, *, namespaces: Sequence[str]) -> None:
    for kind in WATCHED:
        for namespace in namespaces or (None,):
            selector = "" if kind == MOED else OWNER_LABEL
            bodies, version = await api.list(kind, namespace=namespace, selector=selector)
            intake.relisted(kind, bodies, namespace=namespace, version=version)
