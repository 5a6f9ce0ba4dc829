"""WorkerService: the gRPC edge of one engine.

A request is parsed, tokenized and measured here; what the engine gets always fits. A client that leaves cancels its
sequence before the next step.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator
from typing import Any

from opentelemetry import trace

from emoe.core.errors import NotReadyError, QueueFullError
from emoe.runtime.messages import parse_request, piece_to_proto
from emoe.v1 import generation_pb2, loader_pb2, worker_pb2, worker_pb2_grpc
from emoe.worker.answer import Answer
from emoe.worker.prompts import PromptEncoder
from emoe.worker.runner import EngineRunner
from emoe.worker.sequence import Sequence
from emoe.worker.state import EngineState, WorkerIdentity, read_engine, state_to_proto

RETRY_AFTER_SECONDS = 1.0
STATE_SECONDS = 1.0
"""How long a state waits for the end of a step before the last one does."""
MAX_ENCODED_INLINE_BYTES = 16 * 1024
"""Longer prompts are tokenized on a thread: other answers stream meanwhile."""


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    identity: WorkerIdentity
    """Set once the server's address is known, before the worker is ready."""

    def __init__(self, *, runner: EngineRunner, encoder: PromptEncoder, eos_token_ids: frozenset[int]) -> None:
        self.ready = False
        self._runner = runner
        self._encoder = encoder
        self._eos_token_ids = eos_token_ids
        self._numbers = itertools.count()
        self._last_state: EngineState | None = None

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        answer = await self._start(request)
        try:
            while not answer.is_over:
                yield piece_to_proto(await answer.next_piece())
        finally:
            self._runner.cancel(answer.sequence.sequence_id)
            answer.describe(trace.get_current_span())

    async def GetState(self, request: worker_pb2.GetStateRequest, context: Any) -> worker_pb2.GetStateResponse:
        return worker_pb2.GetStateResponse(state=await self.state())

    async def state(self) -> loader_pb2.WorkerState:
        """As of now, or as last known while a step takes long: heartbeats go on. NotReadyError before the first."""
        try:
            self._last_state = await self._runner.ask(read_engine, timeout_seconds=STATE_SECONDS)
        except NotReadyError:
            if self._last_state is None:
                raise
        return state_to_proto(
            self.identity,
            self._last_state,
            num_requests=self._runner.num_requests,
            ready=self.ready,
            step_costs=self._runner.step_costs,
        )

    async def _start(self, request: generation_pb2.GenerateRequest) -> Answer:
        if not self.ready:
            raise NotReadyError("this worker is not ready; its health says when it is")
        parsed = parse_request(request)
        if request.ByteSize() > MAX_ENCODED_INLINE_BYTES:
            token_ids = await asyncio.to_thread(self._encoder.encode, parsed)
        else:
            token_ids = self._encoder.encode(parsed)
        if self._runner.num_requests >= self.identity.max_concurrency + self.identity.max_waiting:
            raise QueueFullError(
                f"worker {self.identity.worker_id} has {self._runner.num_requests} requests already",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        seed = parsed.sampling.seed
        sequence = Sequence(
            sequence_id=f"{parsed.request_id or 'request'}/{next(self._numbers)}",
            task=parsed.task,
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids),
            sampling=parsed.sampling,
            seed=secrets.randbits(62) if seed is None else seed,
        )
        answer = Answer(sequence, self._encoder.tokenizer, self._eos_token_ids)
        self._runner.submit(sequence, answer.take)
        return answer
