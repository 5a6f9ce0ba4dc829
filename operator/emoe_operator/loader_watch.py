"""What the loaders say, followed by one background task a resource for as long as its loader should run.

A view exists while its stream does: when the loader goes, so does what it said. `wake` is called when something of
weight changed; mere progress (bytes fetched, hits counted) asks for a later look only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from emoe.runtime.channels import open_channel
from emoe.runtime.reconnect import keep_connected
from emoe.v1 import loader_pb2
from emoe.v1.loader_pb2_grpc import LoaderServiceStub
from emoe_operator.cache import Key
from emoe_operator.loader_views import parse_model_view, parse_worker_views
from emoe_operator.observed import ModelPhase, ModelView, WorkerView

log = logging.getLogger(__name__)

BROKEN_PAUSE_SECONDS = 60.0


class Wake(Protocol):
    def __call__(self, key: Key, *, after_seconds: float | None = None) -> None: ...


@dataclasses.dataclass
class _Followed:
    """One loader; `task` ends it all."""

    key: Key
    address: str
    task: asyncio.Task[None] | None = None
    model: ModelView | None = None
    workers: tuple[WorkerView, ...] = ()
    ready: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class LoaderWatch:
    def __init__(
        self, group: asyncio.TaskGroup, *, wake: Wake, dial: Callable[[Key], str], progress_seconds: float
    ) -> None:
        self._group = group
        self._wake = wake
        self._dial = dial
        self._progress_seconds = progress_seconds
        self._followed: dict[Key, _Followed] = {}

    def follow(self, key: Key) -> None:
        """From now on, if not already."""
        if key in self._followed:
            return
        followed = _Followed(key=key, address=self._dial(key))
        self._followed[key] = followed
        followed.task = self._group.create_task(self._supervise(followed), name=f"loader of {key[0]}/{key[1]}")

    def leave(self, key: Key) -> None:
        followed = self._followed.pop(key, None)
        if followed is not None and followed.task is not None:
            followed.task.cancel()

    def leave_all(self) -> None:
        for key in list(self._followed):
            self.leave(key)

    def model(self, key: Key) -> ModelView | None:
        followed = self._followed.get(key)
        return followed.model if followed else None

    def workers(self, key: Key) -> tuple[WorkerView, ...]:
        followed = self._followed.get(key)
        return followed.workers if followed else ()

    async def _supervise(self, followed: _Followed) -> None:
        while True:
            try:
                await self._streams(followed)
            except* Exception:  # a loader that talks nonsense is that resource's trouble alone
                log.exception("following the loader at %s failed", followed.address)
            await asyncio.sleep(BROKEN_PAUSE_SECONDS)

    async def _streams(self, followed: _Followed) -> None:
        async with open_channel(followed.address) as channel, asyncio.TaskGroup() as group:
            # The generated types do not know that a call can be cancelled.
            stub: Any = LoaderServiceStub(channel)
            group.create_task(self._keep_model(followed, stub))
            group.create_task(self._keep_workers(followed, stub))

    async def _keep_model(self, followed: _Followed, stub: Any) -> NoReturn:
        async def stream() -> None:
            call = stub.WatchModel(loader_pb2.WatchModelRequest())
            try:
                async for message in call:
                    self._set_model(followed, parse_model_view(message))
            finally:
                call.cancel()
                self._set_model(followed, None)

        await keep_connected(f"the model of {followed.address}", stream)

    async def _keep_workers(self, followed: _Followed, stub: Any) -> NoReturn:
        async def stream() -> None:
            await followed.ready.wait()
            call = stub.WatchWorkers(loader_pb2.WatchWorkersRequest())
            try:
                async for message in call:
                    self._set_workers(followed, parse_worker_views(message))
            finally:
                call.cancel()
                self._set_workers(followed, ())

        await keep_connected(f"the workers of {followed.address}", stream)

    def _set_model(self, followed: _Followed, view: ModelView | None) -> None:
        before, followed.model = followed.model, view
        # A loader answers for its workers only once its model is ready.
        if view is not None and view.phase is ModelPhase.READY:
            followed.ready.set()
        else:
            followed.ready.clear()
        self._tell(followed, before != view, _weight(before) != _weight(view))

    def _set_workers(self, followed: _Followed, views: tuple[WorkerView, ...]) -> None:
        before, followed.workers = followed.workers, views
        weighty = [(view.name, view.ready) for view in before] != [(view.name, view.ready) for view in views]
        self._tell(followed, before != views, weighty)

    def _tell(self, followed: _Followed, changed: bool, weighty: bool) -> None:
        if self._followed.get(followed.key) is not followed:
            return
        if weighty:
            self._wake(followed.key)
        elif changed:
            self._wake(followed.key, after_seconds=self._progress_seconds)


def _weight(view: ModelView | None) -> object:
    """What is more than progress."""
    return view and (view.phase, view.revision, view.failure, view.geometry)
