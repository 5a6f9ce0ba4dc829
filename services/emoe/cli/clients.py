"""The command's side of health, loader and scheduler: asks, and turns the messages into `view` values.

A part that is restarting is an absent value here, never an exception: the live view goes on without it.
"""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from emoe.cli.view import Counters, QueueView, WorkerView
from emoe.runtime.channels import open_channel
from emoe.v1 import loader_pb2, loader_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc

ASK_SECONDS = 2.0
WATCH_SECONDS = 30.0
RECONNECT_SECONDS = 0.5


async def is_serving(health_address: str) -> bool:
    """Whether the process behind this health port says SERVING; False for a dead or silent one."""
    request = health_pb2.HealthCheckRequest(service="")
    async with open_channel(health_address) as channel:
        try:
            response = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=ASK_SECONDS)
        except grpc.aio.AioRpcError:
            return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


class LoaderWatch:
    """The loader's latest worker list. `follow` keeps it fresh over restarts of the loader."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.num_experts: int | None = None
        self.workers: tuple[WorkerView, ...] = ()
        self._changed = asyncio.Event()

    async def worker(self, worker_id: str) -> WorkerView:
        """Waits until the loader lists it; the caller sets the deadline."""
        while True:
            for worker in self.workers:
                if worker.worker_id == worker_id:
                    return worker
            self._changed.clear()
            await self._changed.wait()

    async def follow(self) -> None:
        """Runs until cancelled."""
        async with open_channel(self._address) as channel:
            stub = loader_pb2_grpc.LoaderServiceStub(channel)
            while True:
                try:
                    await self._follow_once(stub)
                except grpc.aio.AioRpcError:
                    self.workers = ()
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _follow_once(self, stub: loader_pb2_grpc.LoaderServiceAsyncStub) -> None:
        model = await stub.GetModel(loader_pb2.GetModelRequest(), timeout=ASK_SECONDS)
        self.num_experts = len(model.grid.moe_layers) * model.grid.rule.num_experts
        try:
            async for response in stub.WatchWorkers(loader_pb2.WatchWorkersRequest(), timeout=WATCH_SECONDS):
                self.workers = tuple(_worker_from(state) for state in response.workers)
                self._changed.set()
        except grpc.aio.AioRpcError as error:
            # The deadline makes us ask anew now and then, so that a loader that hangs is not believed for ever.
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise


async def ask_queue(channel: grpc.aio.Channel) -> QueueView | None:
    """The scheduler's figures; None while it cannot be asked."""
    stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
    try:
        status = await stub.GetStatus(scheduler_pb2.GetSchedulerStatusRequest(), timeout=ASK_SECONDS)
    except grpc.aio.AioRpcError:
        return None
    return QueueView(
        num_waiting=status.num_waiting,
        num_running=status.num_running,
        num_workers=status.num_workers,
        max_queued_requests=status.max_queued_requests,
        max_queued_bytes=status.max_queued_bytes,
    )


def _worker_from(state: loader_pb2.WorkerState) -> WorkerView:
    return WorkerView(
        worker_id=state.worker_id,
        address=state.address,
        ready=state.ready,
        miss_policy=state.miss_policy,
        num_resident=int.from_bytes(state.resident.bits, "little").bit_count(),
        num_slots=state.num_slots,
        slot_bytes=state.slot_bytes,
        num_running=state.num_running,
        num_waiting=state.num_waiting,
        counters=_counters_from(state.counters),
    )


def _counters_from(counters: loader_pb2.WorkerCounters) -> Counters:
    return Counters(
        num_expert_hits=counters.num_expert_hits,
        num_expert_choices=counters.num_expert_choices,
        num_prompt_tokens=counters.num_prompt_tokens,
        num_completion_tokens=counters.num_completion_tokens,
        num_experts_loaded=counters.num_experts_loaded,
        num_bytes_loaded=counters.num_bytes_loaded,
        stall_seconds=counters.stall_seconds,
    )
