"""Workers at the scheduler's gRPC edge, in this process: they answer, and die, hang, drain and are full at random."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Iterator

import grpc

from emoe.core.schedule.costs import StepCosts
from emoe.scheduler.client import ReportedWorker
from emoe.v1 import generation_pb2

NUM_SEQUENCES = 8
TOKEN_SECONDS = 0.02
REFUSAL_PROBABILITY = 0.02
VERDICT_PROBABILITY = 0.01
COSTS = StepCosts(base_seconds=0.005, prompt_token_seconds=1e-4, sequence_seconds=0.002)


def failure(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


class SoakWorker:
    """One process: gone for good when it is dead."""

    def __init__(self, worker_id: str, address: str, rng: random.Random, running: set[str]) -> None:
        self.worker_id = worker_id
        self.address = address
        self.dead = self.hung = self.draining = False
        self.running: dict[str, SoakCall] = {}
        self.num_tokens = 0
        self._rng = rng
        self._all_running = running
        """Ids on any worker: none may be there twice."""
        self._changed = asyncio.Event()

    def change(self, *, dead: bool = False, hung: bool = False, draining: bool = False) -> None:
        self.dead, self.hung, self.draining = dead, hung, draining
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if dead:
            for call in list(self.running.values()):
                call.fail(failure(grpc.StatusCode.UNAVAILABLE, "connection reset"))

    def report(self) -> ReportedWorker:
        num_free = max(0, NUM_SEQUENCES - len(self.running))
        return ReportedWorker(
            worker_id=self.worker_id,
            address=self.address,
            ready=True,
            free_sequences=num_free,
            num_sequences=len(self.running),
            max_tokens_per_sequence=4096,
            num_tokens=self.num_tokens,
            costs=COSTS,
            coverage={"qa": 0.5, "code": 1.0},
        )

    async def answers(self, timeout_seconds: float) -> None:
        if self.dead:
            raise failure(grpc.StatusCode.UNAVAILABLE, "connection refused")
        if self.hung:
            await asyncio.sleep(timeout_seconds)
            raise failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    async def take(self, call: SoakCall) -> None:
        """Raises what a worker says to a request that it does not take."""
        await self.awake()
        if self.dead:
            raise failure(grpc.StatusCode.UNAVAILABLE, "connection refused")
        if self.draining:
            raise failure(grpc.StatusCode.UNAVAILABLE, "the worker is shutting down")
        if len(self.running) >= NUM_SEQUENCES or self._rng.random() < REFUSAL_PROBABILITY:
            raise failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "there are requests enough")
        if self._rng.random() < VERDICT_PROBABILITY:
            raise failure(grpc.StatusCode.INTERNAL, "the sampler met a NaN")
        assert call.request_id not in self._all_running, f"{call.request_id} runs twice"
        self.running[call.request_id] = call
        self._all_running.add(call.request_id)

    async def awake(self) -> None:
        while self.hung:
            await self._changed.wait()

    def drop(self, call: SoakCall) -> None:
        if self.running.get(call.request_id) is call:
            del self.running[call.request_id]
            self._all_running.discard(call.request_id)

    async def watch(self) -> AsyncIterator[bool]:
        while True:
            if self.dead:
                raise failure(grpc.StatusCode.UNAVAILABLE, "connection reset")
            if not self.hung:
                yield not self.draining
            await self._changed.wait()


class SoakCall:
    """As grpc.aio has it: messages to iterate, CancelledError once it was cancelled."""

    def __init__(self, worker: SoakWorker | None, request: generation_pb2.GenerateRequest, *, seconds: float) -> None:
        self.request_id = request.request_id
        self._worker = worker
        self._num_tokens = request.sampling.max_tokens
        self._ends_seconds = asyncio.get_running_loop().time() + seconds
        self._step: asyncio.Future[generation_pb2.GenerateResponse] | None = None
        self._error: BaseException | None = None

    def cancel(self) -> None:
        self.fail(asyncio.CancelledError())

    def fail(self, error: BaseException) -> None:
        self._error = self._error or error
        if self._worker is not None:
            self._worker.drop(self)
        if self._step is not None and not self._step.done():
            self._step.cancel()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for index in range(-1, self._num_tokens):
            self._step = asyncio.ensure_future(self._run(index))
            try:
                message = await self._step
            except asyncio.CancelledError:
                raise (self._error or asyncio.CancelledError()) from None
            if index >= 0:
                yield message.SerializeToString()
        if self._worker is not None:
            self._worker.drop(self)

    async def _run(self, index: int) -> generation_pb2.GenerateResponse:
        """-1 is the request's way to the engine."""
        try:
            async with asyncio.timeout_at(self._ends_seconds):
                return await self._step_of(index)
        except TimeoutError:
            raise failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None

    async def _step_of(self, index: int) -> generation_pb2.GenerateResponse:
        worker = self._worker
        if worker is None:
            raise failure(grpc.StatusCode.UNAVAILABLE, "connection refused")
        if index < 0:
            await worker.take(self)
            return generation_pb2.GenerateResponse()
        await asyncio.sleep(TOKEN_SECONDS)
        await worker.awake()
        worker.num_tokens += 1
        message = generation_pb2.GenerateResponse(text=f"{index} ", token_ids=[index])
        if index == self._num_tokens - 1:
            message.finish_reason = generation_pb2.FINISH_REASON_LENGTH
            message.usage.num_prompt_tokens = 7
            message.usage.num_completion_tokens = self._num_tokens
        return message


class SoakClient:
    """In place of a WorkerClient: what answers at an address now."""

    def __init__(self, address: str, processes: dict[str, SoakWorker]) -> None:
        self._address = address
        self._processes = processes

    def generate(self, request: bytes, *, timeout_seconds: float) -> SoakCall:
        message = generation_pb2.GenerateRequest.FromString(request)
        return SoakCall(self._processes.get(self._address), message, seconds=timeout_seconds)

    async def get_state(self, *, timeout_seconds: float) -> ReportedWorker:
        worker = self._worker()
        await worker.answers(timeout_seconds)
        return dataclasses.replace(worker.report(), coverage=None)

    async def check_health(self, *, timeout_seconds: float) -> bool:
        worker = self._worker()
        await worker.answers(timeout_seconds)
        return not worker.draining

    async def watch_health(self) -> AsyncIterator[bool]:
        async for is_serving in self._worker().watch():
            yield is_serving

    async def close(self) -> None:
        """Nothing is open."""

    def _worker(self) -> SoakWorker:
        worker = self._processes.get(self._address)
        if worker is None:
            raise failure(grpc.StatusCode.UNAVAILABLE, "connection refused")
        return worker


class Fleet:
    """The processes, and what befalls them."""

    def __init__(self, rng: random.Random, *, num_workers: int) -> None:
        self.processes: dict[str, SoakWorker] = {}
        self.events: dict[str, int] = dict.fromkeys(("died", "hung", "drained", "loader was lost"), 0)
        self._rng = rng
        self._running: set[str] = set()
        self._ports: Iterator[int] = iter(range(1, 10**9))
        for index in range(num_workers):
            self.start(f"worker-{index}")

    def start(self, worker_id: str) -> None:
        address = f"10.0.0.1:{next(self._ports)}"
        self.processes[address] = SoakWorker(worker_id, address, self._rng, self._running)

    def connect(self, address: str) -> SoakClient:
        return SoakClient(address, self.processes)

    def reports(self) -> list[ReportedWorker]:
        """What a loader would list: it does not see that a worker hangs before it has been silent for long."""
        return [worker.report() for worker in self.processes.values() if not worker.dead]

    async def suffer(self, *, mean_seconds: float) -> None:
        """For ever: one worker at a time, each back under its name after a while."""
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self._rng.expovariate(1 / mean_seconds))
                well = [one for one in self.processes.values() if not (one.dead or one.hung or one.draining)]
                if len(well) > 1:
                    victim = self._rng.choice(well)
                    fate = self._rng.choice((self._die, self._hang, self._drain))
                    group.create_task(fate(victim))

    async def _die(self, worker: SoakWorker) -> None:
        self.events["died"] += 1
        worker.change(dead=True)
        await self._replace(worker)

    async def _hang(self, worker: SoakWorker) -> None:
        """For less than a probe, or for longer than its calls are left to it; some come back, some die."""
        self.events["hung"] += 1
        worker.change(hung=True)
        await asyncio.sleep(self._rng.choice((0.5, 3.0, 30.0)))
        if self._rng.random() < 0.5:
            worker.change(dead=True)
            await self._replace(worker)
        else:
            worker.change()

    async def _drain(self, worker: SoakWorker) -> None:
        self.events["drained"] += 1
        worker.change(draining=True)
        await asyncio.sleep(2.0)
        worker.change(dead=True)
        await self._replace(worker)

    async def _replace(self, worker: SoakWorker) -> None:
        await asyncio.sleep(self._rng.uniform(0.1, 5.0))
        del self.processes[worker.address]
        self.start(worker.worker_id)
