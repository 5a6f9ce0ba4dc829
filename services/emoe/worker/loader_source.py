"""Expert bytes pulled from the loader, for a worker that does not see the checkpoint's files: in bulk, else by a call.

Called on the transfer's threads, so it speaks blocking gRPC. Every expert's xxh3 is checked; a neighbour that is away
is asked again until the deadline. What is wrong with an expert's bytes, the call says by name.
"""

from __future__ import annotations

import logging
import threading
import time

import grpc

from emoe.core.errors import CheckpointError, NotReadyError
from emoe.core.experts import ExpertId
from emoe.runtime.channels import CHANNEL_OPTIONS
from emoe.runtime.grids import ModelId, expert_to_proto, model_to_proto
from emoe.store.store import xxh3_64
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc
from emoe.worker.bulk import BulkPulls
from emoe.worker.bulk_connection import Ticket, is_seen

log = logging.getLogger(__name__)

CALL_SECONDS = 30.0
GIVE_UP_SECONDS = 60.0
RETRY_SECONDS = 0.25
WORTH_ANOTHER_TRY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    # What a stream ends with whose server stops or is killed.
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
)
MAX_DAMAGED = 3


class _DamagedError(Exception):
    """Bytes that are not what the loader read; sent again they may be."""


class LoaderSource:
    def __init__(self, loader: str, model: ModelId, *, give_up_seconds: float = GIVE_UP_SECONDS) -> None:
        self._loader = loader
        self._host = host_of(loader)
        self._model = model
        self._give_up_seconds = give_up_seconds
        self._away_since: float | None = None
        self._closed = threading.Event()
        self._channel = grpc.insecure_channel(loader, options=CHANNEL_OPTIONS)
        self._stub = loader_pb2_grpc.LoaderServiceStub(self._channel)
        self._bulk = BulkPulls(self._open_bulk)

    def read_into(self, expert: ExpertId, buffer: memoryview) -> None:
        """NotReadyError once the loader has been away for GIVE_UP_SECONDS, whichever expert found that out: while it
        stays away, each further expert costs one try."""
        num_damaged = 0
        while not self._closed.is_set():
            try:
                if not self._bulk.pull(expert, buffer):
                    self._pull(expert, buffer)
            except grpc.RpcError as error:
                self._check(expert, error)
            except _DamagedError as error:
                num_damaged += 1
                if num_damaged == MAX_DAMAGED:
                    raise CheckpointError(f"{error}, {num_damaged} times in turn; check the network") from error
            else:
                self._away_since = None
                return
            self._closed.wait(RETRY_SECONDS)
        raise NotReadyError("this worker is shutting down")

    def close(self) -> None:
        self._closed.set()
        self._bulk.close()
        self._channel.close()

    @property
    def num_pulled_in_bulk(self) -> int:
        return self._bulk.num_pulled

    def _check(self, expert: ExpertId, error: grpc.RpcError) -> None:
        """Returns where another try may help."""
        if self._closed.is_set():
            return
        if error.code() not in WORTH_ANOTHER_TRY:
            raise CheckpointError(f"the loader refuses expert {expert}: {error.details()}") from error
        now = time.monotonic()
        if self._away_since is None:
            log.warning("the loader at %s is away (%s); its experts are waited for", self._loader, error.details())
        since = self._away_since = self._away_since or now
        if now - since > self._give_up_seconds:
            raise NotReadyError(f"the loader at {self._loader} is away: {error.details()}") from error

    def _open_bulk(self) -> Ticket | None:
        try:
            answer = self._stub.OpenBulk(pb.OpenBulkRequest(model=model_to_proto(self._model)), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # a loader from before there was one
                return None
            raise
        port = answer.port if self._host else 0
        if not port and not is_seen(answer.socket_path):
            return None
        return Ticket(host=self._host or "", port=port, secret=answer.ticket, socket_path=answer.socket_path)

    def _pull(self, expert: ExpertId, buffer: memoryview) -> None:
        request = pb.PullExpertsRequest(model=model_to_proto(self._model), experts=[expert_to_proto(expert)])
        num_received, checksum = 0, None
        for chunk in self._stub.PullExperts(request, timeout=CALL_SECONDS):
            end = chunk.offset + len(chunk.data)
            if end > len(buffer):
                raise CheckpointError(f"the loader sent {end} bytes of expert {expert}, which has {len(buffer)}")
            buffer[chunk.offset : end] = chunk.data
            num_received += len(chunk.data)
            if chunk.last:
                checksum = chunk.xxh3
        if num_received != len(buffer) or checksum != xxh3_64(buffer):
            raise _DamagedError(
                f"expert {expert} arrived damaged: {num_received} of {len(buffer)} bytes, checksum {checksum}"
            )


def host_of(address: str) -> str | None:
    """Of `host:port` or `[::1]:port`; None of a Unix socket."""
    host = address.rpartition(":")[0].strip("[]")
    return None if address.startswith("unix:") else host or None
