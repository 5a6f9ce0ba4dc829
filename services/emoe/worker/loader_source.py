"""Expert bytes pulled from the loader over gRPC, for a worker that does not see the checkpoint's files.

Called on the transfer's threads, so it speaks blocking gRPC. Every expert's xxh3 is checked; a neighbour that is away
is asked again until the deadline.
"""

from __future__ import annotations

import time

import grpc

from emoe.core.errors import CheckpointError, NotReadyError
from emoe.core.experts import ExpertId
from emoe.runtime.channels import CHANNEL_OPTIONS
from emoe.runtime.grids import ModelId, expert_to_proto, model_to_proto
from emoe.store.store import xxh3_64
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc

CALL_SECONDS = 30.0
GIVE_UP_SECONDS = 60.0
RETRY_SECONDS = 0.25
WORTH_ANOTHER_TRY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


class LoaderSource:
    def __init__(self, loader: str, model: ModelId) -> None:
        self._loader = loader
        self._model = model
        self._channel = grpc.insecure_channel(loader, options=CHANNEL_OPTIONS)
        self._stub = loader_pb2_grpc.LoaderServiceStub(self._channel)

    def read_into(self, expert: ExpertId, buffer: memoryview) -> None:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while True:
            try:
                return self._pull(expert, buffer)
            except grpc.RpcError as error:
                code = error.code()
                if code not in WORTH_ANOTHER_TRY:
                    raise CheckpointError(f"the loader refuses expert {expert}: {error.details()}") from error
                if time.monotonic() > deadline:
                    raise NotReadyError(f"the loader at {self._loader} is away: {error.details()}") from error
            time.sleep(RETRY_SECONDS)

    def close(self) -> None:
        self._channel.close()

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
            raise CheckpointError(
                f"expert {expert} arrived damaged: {num_received} of {len(buffer)} bytes, checksum {checksum}"
            )
