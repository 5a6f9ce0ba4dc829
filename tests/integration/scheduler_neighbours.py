"""A loader and workers as the scheduler sees them: real servers behind the real contracts, answering by script."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from opentelemetry import trace

from emoe.core.errors import EmoeError, QueueFullError
from emoe.runtime.channels import open_channel, server_options
from emoe.runtime.interceptors import CallInterceptor, StandingCalls
from emoe.runtime.lifecycle import ServiceHost
from emoe.runtime.telemetry import Telemetry
from emoe.scheduler.main import open_scheduler
from emoe.scheduler.settings import SchedulerSettings
from emoe.v1 import generation_pb2, loader_pb2, scheduler_pb2, worker_pb2
from emoe.v1.loader_pb2_grpc import LoaderServiceServicer, add_LoaderServiceServicer_to_server
from emoe.v1.scheduler_pb2_grpc import SchedulerServiceStub
from emoe.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

PATIENCE_SECONDS = 20.0


class ScriptedWorker(WorkerServiceServicer):
    """Answers "0 1 2 ..." word by word. With `stepwise`, each word waits for one `step`."""

    def __init__(self, worker_id: str = "worker-1", *, num_sequences: int = 2, stepwise: bool = False) -> None:
        self.worker_id = worker_id
        self.num_sequences = num_sequences
        self.num_words = 3
        self.prompts: list[str] = []
        self.requests: list[generation_pb2.GenerateRequest] = []
        self.deadlines: list[float] = []
        self.most_at_once = 0
        self.started = asyncio.Semaphore(0)
        self.ended = asyncio.Semaphore(0)
        self.error: EmoeError | None = None
        self.num_refusals_to_come = 0
        self.refusal_seconds = 0.01
        self.hung = False
        self._stepwise = stepwise
        self._steps = asyncio.Semaphore(0)
        self._num_running = 0
        self.address = ""
        self.server: grpc.aio.Server | None = None

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._steps.release()

    async def add_to(self, server: grpc.aio.Server) -> None:
        add_WorkerServiceServicer_to_server(self, server)
        self.health = health.aio.HealthServicer()
        await self.say_serving(True)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)

    async def say_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self.health.set("", status.SERVING if serving else status.NOT_SERVING)

    def state(self) -> loader_pb2.WorkerState:
        return loader_pb2.WorkerState(
            worker_id=self.worker_id,
            address=self.address,
            free_sequences=max(0, self.num_sequences - self._num_running),
            num_running=self._num_running,
            max_tokens_per_sequence=256,
            ready=True,
        )

    async def Generate(self, request, context):
        self._num_running += 1
        self.most_at_once = max(self.most_at_once, self._num_running)
        self.prompts.append(request.text)
        self.requests.append(request)
        self.deadlines.append(context.time_remaining())
        self.started.release()
        try:
            if self.num_refusals_to_come:
                self.num_refusals_to_come -= 1
                raise QueueFullError("there are requests enough", retry_after_seconds=self.refusal_seconds)
            if self.error is not None:
                raise self.error
            async for message in self._words(request):
                yield message
        finally:
            self._num_running -= 1
            self.ended.release()

    async def GetState(self, request, context):
        if self.hung:
            await asyncio.Event().wait()
        return worker_pb2.GetStateResponse(state=self.state())

    async def _words(self, request) -> AsyncIterator[generation_pb2.GenerateResponse]:
        for index in range(self.num_words):
            if self._stepwise:
                await self._steps.acquire()
            message = generation_pb2.GenerateResponse(text=f"{index} ", token_ids=[index])
            if index == self.num_words - 1:
                message.finish_reason = generation_pb2.FINISH_REASON_STOP
                message.usage.num_prompt_tokens = 7
                message.usage.num_completion_tokens = self.num_words
            yield message


class ListingLoader(LoaderServiceServicer):
    """Lists the workers it was told of, keeps every task report, and gives `profile` in small parts."""

    def __init__(self) -> None:
        self.profile = b""
        self.profile_asked = asyncio.Semaphore(0)
        self.gives_profile = True
        self.reports: asyncio.Queue[loader_pb2.ReportTasksRequest] = asyncio.Queue()
        self.coverage: dict[str, dict[str, float]] = {}
        """Worker -> task -> share, sent with the next list."""
        self._workers: list[loader_pb2.WorkerState] = []
        self._changed = asyncio.Condition()

    async def list_workers(self, workers: Iterable[loader_pb2.WorkerState]) -> None:
        async with self._changed:
            self._workers = list(workers)
            self._changed.notify_all()

    async def WatchWorkers(self, request, context):
        async with self._changed:
            while True:
                coverage = [
                    loader_pb2.WorkerCoverage(worker_id=worker_id, task_coverage=tasks)
                    for worker_id, tasks in self.coverage.items()
                ]
                yield loader_pb2.WatchWorkersResponse(workers=self._workers, coverage=coverage)
                await self._changed.wait()

    async def GetProfile(self, request, context):
        self.profile_asked.release()
        if not self.gives_profile:
            await asyncio.Event().wait()
        for offset in range(0, len(self.profile), 1000):
            yield loader_pb2.GetProfileResponse(data=self.profile[offset : offset + 1000])

    async def ReportTasks(self, request_iterator, context):
        async for report in request_iterator:
            await self.reports.put(report)
        return loader_pb2.ReportTasksResponse()


class Neighbourhood:
    """Everything of one test; what it starts ends with it."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self.loader = ListingLoader()
        self.loader_address = "127.0.0.1:0"
        self._loader_server: grpc.aio.Server | None = None
        self._workers: list[ScriptedWorker] = []
        self._stack = stack

    async def start_loader(self) -> None:
        """Again on the same port, if it ran before."""
        server = grpc.aio.server(options=server_options())
        add_LoaderServiceServicer_to_server(self.loader, server)
        port = server.add_insecure_port(self.loader_address)
        self.loader_address = f"127.0.0.1:{port}"
        await server.start()
        self._loader_server = server
        self._stack.push_async_callback(server.stop, None)

    async def stop_loader(self) -> None:
        assert self._loader_server is not None
        await self._loader_server.stop(None)

    async def start_worker(self, worker: ScriptedWorker, *, telemetry: Telemetry | None = None) -> ScriptedWorker:
        """Up and listed."""
        await self.restart_worker(worker, "127.0.0.1:0", telemetry=telemetry)
        self._workers.append(worker)
        await self.relist()
        return worker

    async def restart_worker(self, worker: ScriptedWorker, address: str, *, telemetry: Telemetry | None = None) -> None:
        tracer = (telemetry or Telemetry(trace.NoOpTracerProvider())).tracer
        interceptor = CallInterceptor(tracer=tracer, standing=StandingCalls(), max_call_seconds=60)
        worker.server = grpc.aio.server(interceptors=[interceptor], options=server_options())
        await worker.add_to(worker.server)
        worker.address = f"127.0.0.1:{worker.server.add_insecure_port(address)}"
        await worker.server.start()
        self._stack.push_async_callback(worker.server.stop, None)

    async def relist(self, *, without: ScriptedWorker | None = None) -> None:
        await self.loader.list_workers(worker.state() for worker in self._workers if worker is not without)

    async def start_process(self, *arguments: str) -> asyncio.subprocess.Process:
        """A Python process; killed at the end if it still runs."""
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments)

        async def end() -> None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

        self._stack.push_async_callback(end)
        return process

    async def start_scheduler(
        self, *, telemetry: Telemetry | None = None, num_workers: int | None = None, **settings: object
    ) -> FrontDoor:
        """Once it knows the workers that were started, or as many as are said to be listed."""
        if self._loader_server is None:
            await self.start_loader()
        merged = {"probe_interval_seconds": 0.05, "probe_timeout_seconds": 0.2, "drain_seconds": 0.0, **settings}
        host = await self._stack.enter_async_context(
            open_scheduler(SchedulerSettings(loader=self.loader_address, **merged), telemetry=telemetry)
        )
        channel = await self._stack.enter_async_context(open_channel(host.address))
        door = FrontDoor(channel, host)
        await door.until(num_workers=len(self._workers) if num_workers is None else num_workers)
        return door


class FrontDoor:
    """A client of the scheduler."""

    def __init__(self, channel: grpc.aio.Channel, host: ServiceHost | None = None) -> None:
        self.channel = channel
        self.host = host
        self.stub = SchedulerServiceStub(channel)

    def generate(self, text: str, *, timeout: float | None = PATIENCE_SECONDS, metadata=None, **fields):
        request = generation_pb2.GenerateRequest(text=text, **fields)
        return self.stub.Generate(request, timeout=timeout, metadata=metadata)

    async def answer(self, text: str, **fields) -> list[generation_pb2.GenerateResponse]:
        return [message async for message in self.generate(text, **fields)]

    async def until(self, **wanted: int) -> None:
        """Until GetStatus says so."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                status = await self.stub.GetStatus(scheduler_pb2.GetSchedulerStatusRequest())
                if all(getattr(status, name) == value for name, value in wanted.items()):
                    return
