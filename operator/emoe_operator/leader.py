"""One replica works at a time: the one that holds a Lease. The others wait, and take over when it is given back or no
longer renewed.

The Kubernetes client's election does the protocol. Around it stands what it leaves open: a request that hangs or fails
without an HTTP answer, a holder that does not notice that another has taken over, giving the lease back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import uuid
from collections.abc import Coroutine
from typing import Any, NoReturn

import aiohttp
from kubernetes.aio.client import ApiClient, V1Lease, V1ObjectMeta
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from emoe_operator.errors import LeaseLostError
from emoe_operator.supervision import first_to_end

log = logging.getLogger(__name__)
# Losing a race for the lease is no error, and needs no traceback.
logging.getLogger("kubernetes.aio.leaderelection.resourcelock.leaselock").setLevel(logging.CRITICAL)

LEASE_SECONDS = 15
RENEW_SECONDS = 10
RETRY_SECONDS = 2
REQUEST_SECONDS = 4.0
RELEASE_SECONDS = 2.0
FENCE_SECONDS = 12.0
"""Without a renewal for so long, it is over: what is left of the lease is for ending the work."""
_LOOK_SECONDS = 0.5


class Leadership:
    """Of this process, by the name `identity`."""

    def __init__(self, client: ApiClient, *, name: str, namespace: str, identity: str | None = None) -> None:
        self.identity = identity or f"{socket.gethostname()}_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        self._lock = _Lock(name, namespace, self.identity, client)
        self._election = LeaderElection(
            Config(
                self._lock,
                lease_duration=LEASE_SECONDS,
                renew_deadline=RENEW_SECONDS,
                retry_period=RETRY_SECONDS,
                onstarted_leading=_nothing,
                onstopped_leading=_nothing,
            )
        )

    async def acquire(self) -> None:
        """However long it takes."""
        await self._election.acquire()
        log.info("%s leads", self.identity)

    async def keep(self) -> None:
        """Renew for as long as this process leads, then raise LeaseLostError."""
        await first_to_end(self._renew(), self._fence())

    async def release(self) -> None:
        """Give the lease back, so that another need not wait for its end. If that fails, it has to wait."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._lock.release()

    async def _renew(self) -> NoReturn:
        await self._election.renew_loop()
        raise LeaseLostError(f"{self.identity} could not renew its lease within {RENEW_SECONDS} s")

    async def _fence(self) -> NoReturn:
        """The renewing itself looks at the clock only between two requests."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._lock.seconds_since_renewed() > FENCE_SECONDS:
                raise LeaseLostError(f"{self.identity} did not renew its lease in time")
            if self._lock.taken_by_other:
                raise LeaseLostError("another replica holds the lease")


class _Lock(LeaseLock):
    """With deadlines; every failure is one that the election tries again."""

    def __init__(self, name: str, namespace: str, identity: str, client: ApiClient) -> None:
        super().__init__(name, namespace, identity, client)
        self.taken_by_other = False
        self._renewed_seconds: float | None = None

    async def get(self, name: str, namespace: str) -> Any:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                answer: tuple[bool, Any] = await super().get(name, namespace)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return False, ApiException(status=0, reason=f"no answer: {str(error) or type(error).__name__}")
        found, record = answer
        if found and self._renewed_seconds is not None:
            self.taken_by_other = record.holder_identity not in (None, self.identity)
        return answer

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        return await self._write(self._create(name, namespace, election_record))

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        return await self._write(super().update(name, namespace, updated_record))

    async def _create(self, name: str, namespace: str, record: LeaderElectionRecord) -> bool:
        # The client's own sends an argument that the client itself refuses (kubernetes 37).
        lease = V1Lease(metadata=V1ObjectMeta(name=name), spec=self.update_lease(record))
        try:
            await self.api_instance.create_namespaced_lease(namespace, lease)
        except ApiException as error:
            log.info("the lease could not be made: %s", error.reason)
            return False
        return True

    async def release(self) -> None:
        found, record = await self.get(self.name, self.namespace)
        if not found or record.holder_identity != self.identity or self.lease_reference is None:
            return
        lease: Any = self.lease_reference
        lease.spec.holder_identity = ""
        try:
            await self.api_instance.replace_namespaced_lease(self.name, self.namespace, lease)
        except (ApiException, aiohttp.ClientError, OSError) as error:
            log.warning("could not give the lease back (%s); it ends by itself", error)

    def seconds_since_renewed(self) -> float:
        assert self._renewed_seconds is not None, "only a holder asks"
        return asyncio.get_running_loop().time() - self._renewed_seconds

    async def _write(self, request: Coroutine[Any, Any, bool]) -> bool:
        began_seconds = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                written = await request
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            log.warning("the lease could not be written: %s", str(error) or type(error).__name__)
            return False
        if written:
            self._renewed_seconds = began_seconds
        return written


async def _nothing() -> None:
    """The election's callbacks: who leads is told by `acquire` and `keep`."""
