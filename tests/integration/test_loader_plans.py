"""A real loader plans for its subscribers: at once, for their size, and for what the scheduler and predictor tell."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from loader_clients import FakeWorker, code_of, loader, watch_until
from loader_models import NUM_EXPERTS, NUM_LAYERS, TOP_K
from loader_source import TIMEOUT_SECONDS

from emoe.core.experts import BoolGrid
from emoe.core.tasks import UNKNOWN
from emoe.predictor.main import serving as serving_predictor
from emoe.predictor.settings import PredictorSettings
from emoe.runtime.channels import open_channel
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc as rpc
from emoe.v1 import predictor_pb2, predictor_pb2_grpc, residency_pb2


async def test_a_worker_gets_a_plan_as_soon_as_it_subscribes(own_model: Path) -> None:
    async with loader(own_model) as (stub, model):
        worker = FakeWorker(stub, model, num_slots=6)
        await worker.beat()
        plan = await worker.plan()
        wanted = worker.wanted(plan)
        assert plan.epoch == 1
        assert plan.model == model.model
        assert int(wanted.sum()) == 6
        assert all(worker.grid.rule.is_routable(wanted[layer]) for layer in worker.grid.moe_layers)
        assert len(plan.demand.values) == wanted.size


async def test_two_workers_get_plans_of_their_own_size(own_model: Path) -> None:
    async with loader(own_model) as (stub, model):
        small, large = FakeWorker(stub, model, "small", 4), FakeWorker(stub, model, "large", 12)
        await small.beat()
        await large.beat()
        assert int(small.wanted(await small.plan()).sum()) == 4
        assert int(large.wanted(await large.plan()).sum()) == 12


async def test_a_restarted_loader_recovers_when_workers_subscribe_again(own_model: Path) -> None:
    async with loader(own_model) as (stub, model):
        before = FakeWorker(stub, model)
        await before.beat()
        last = await before.plan()
    async with loader(own_model) as (stub, model):
        after = FakeWorker(stub, model)
        after.state.resident.CopyFrom(last.wanted)
        after.state.applied_epoch = 41
        await after.beat()
        plan = await after.plan()
    assert plan.epoch == 42
    assert plan.wanted == last.wanted, "uniform demand gives no reason to move anything"


def load_of(num_prompts: int, **task_tokens: int) -> pb.ReportTasksRequest:
    loads = [pb.TaskLoad(task=task, num_running=1, num_expected_tokens=n) for task, n in task_tokens.items()]
    return pb.ReportTasksRequest(scheduler_id="s", loads=loads, num_prompts=num_prompts)


async def teach(address: str, model: pb.GetModelResponse, **experts_of: int) -> None:
    """The predictor learns that each task's tokens want one expert of each layer alone."""

    def reports() -> Iterator[predictor_pb2.ReportRoutingRequest]:
        for task, index in experts_of.items():
            counts = np.zeros((NUM_LAYERS, NUM_EXPERTS), dtype=np.int64)
            counts[:, index] = 100_000
            yield predictor_pb2.ReportRoutingRequest(
                model=model.model,
                grid=model.grid,
                task=task,
                counts=residency_pb2.ExpertCounts(values=counts.reshape(-1).tolist()),
            )

    async with open_channel(address) as channel:
        stub = predictor_pb2_grpc.PredictorServiceStub(channel)
        await stub.ReportRouting(reports(), timeout=TIMEOUT_SECONDS)


async def plan_where(worker: FakeWorker, wish: Callable[[BoolGrid], bool]) -> BoolGrid:
    while True:
        plan = await worker.plan()
        await worker.apply(plan)
        if wish(worker.wanted(plan)):
            return worker.wanted(plan)


@contextlib.asynccontextmanager
async def loader_and_predictor(
    own_model: Path, **settings: Any
) -> AsyncIterator[tuple[rpc.LoaderServiceAsyncStub, pb.GetModelResponse, str]]:
    async with (
        serving_predictor(PredictorSettings()) as predictor,
        loader(own_model, predictor=predictor.address, **settings) as (stub, model),
    ):
        yield stub, model, predictor.address


async def test_plans_follow_the_tasks_that_the_scheduler_reports(own_model: Path) -> None:
    async with loader_and_predictor(own_model) as (stub, model, predictor):
        await teach(predictor, model, chat=5, code=6, math=7)
        worker = FakeWorker(stub, model, num_slots=NUM_LAYERS * TOP_K)
        report: Any = stub.ReportTasks()  # type: ignore[call-arg]  # written to, not iterated
        await report.write(load_of(1, code=100))
        await worker.beat()
        wanted = await plan_where(worker, lambda wanted: bool(wanted[:, 6].all()))
        assert not wanted[:, 7].any()
        await report.write(load_of(2, math=100))
        await plan_where(worker, lambda wanted: bool(wanted[:, 7].all()))


async def test_what_was_learnt_since_is_asked_for_after_the_interval(own_model: Path) -> None:
    async with loader_and_predictor(own_model, refresh_interval_prompts=5) as (stub, model, predictor):
        worker = FakeWorker(stub, model, num_slots=NUM_LAYERS * TOP_K)
        report: Any = stub.ReportTasks()  # type: ignore[call-arg]  # written to, not iterated
        await report.write(load_of(0, code=100))
        await worker.beat()
        plan = await worker.plan()
        assert len(set(plan.demand.values)) == 1, "nothing was learnt yet"
        await worker.apply(plan)
        await teach(predictor, model, code=5)
        await report.write(load_of(5, code=100))
        await plan_where(worker, lambda wanted: bool(wanted[:, 5].all()))


async def test_plans_come_without_a_predictor_and_better_ones_once_it_is_there(own_model: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/predictor"
    async with loader(own_model, predictor=address, predictor_retry_seconds=0.05) as (stub, model):
        worker = FakeWorker(stub, model, num_slots=NUM_LAYERS * TOP_K)
        await worker.beat()
        plan = await worker.plan()
        assert len(set(plan.demand.values)) == 1
        await worker.apply(plan)
        async with serving_predictor(PredictorSettings(listen=address)):
            await teach(address, model, **{UNKNOWN: 3})
            report: Any = stub.ReportTasks()  # type: ignore[call-arg]  # written to, not iterated
            await report.write(load_of(0, code=1))
            await report.write(load_of(1000, code=1))
            await plan_where(worker, lambda wanted: bool(wanted[:, 3].all()))


BAD_REPORTS = {
    "no scheduler id": pb.ReportTasksRequest(num_prompts=1),
    "a task that is no label": pb.ReportTasksRequest(scheduler_id="s", loads=[pb.TaskLoad(task="Not A Task")]),
    "too many tasks": pb.ReportTasksRequest(scheduler_id="s", loads=[pb.TaskLoad(task=f"t{n}") for n in range(999)]),
}


@pytest.mark.parametrize("message", BAD_REPORTS.values(), ids=BAD_REPORTS.keys())
async def test_a_bad_task_report_is_an_invalid_argument(own_model: Path, message: pb.ReportTasksRequest) -> None:
    async with loader(own_model) as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ReportTasks(iter([message]), timeout=TIMEOUT_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def sent(num_prompts: int, **task_of: str) -> pb.ReportTasksRequest:
    """Worker -> the task whose requests run there."""
    report = load_of(num_prompts, **dict.fromkeys(task_of.values(), 100))
    for worker_id, task in task_of.items():
        running = [pb.TaskLoad(task=task, num_running=1, num_expected_tokens=100)]
        report.workers.add(worker_id=worker_id, running=running, recent={task: 5.0})
    return report


async def test_each_worker_is_planned_for_the_tasks_that_it_is_sent_and_its_coverage_is_told(own_model: Path) -> None:
    async with loader_and_predictor(own_model) as (stub, model, predictor):
        await teach(predictor, model, code=4, math=6)
        await teach(predictor, model, code=5, math=7)
        first, second = (FakeWorker(stub, model, name, num_slots=NUM_LAYERS * TOP_K) for name in ("a", "b"))
        report: Any = stub.ReportTasks()  # type: ignore[call-arg]  # written to, not iterated
        await report.write(sent(2, a="code", b="math"))
        await first.beat()
        await second.beat()
        await plan_where(first, lambda wanted: bool(wanted[:, 4:6].all()))
        await plan_where(second, lambda wanted: bool(wanted[:, 6:].all()))
        watch: Any = stub.WatchWorkers(pb.WatchWorkersRequest())
        told: dict[str, dict[str, float]] = {}
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not told or told["a"]["code"] < 0.9 or told["b"]["math"] < 0.9:
                coverage = (await watch.read()).coverage
                told = {one.worker_id: dict(one.task_coverage) for one in coverage}
        assert told["a"]["math"] < 0.1
        assert told["b"]["code"] < 0.1


async def test_step_costs_are_handed_on_as_the_worker_measured_them(own_model: Path) -> None:
    async with loader(own_model) as (stub, model):
        worker = FakeWorker(stub, model)
        worker.state.step_costs.CopyFrom(pb.StepCosts(base_seconds=0.25, step_tokens=64, num_steps=99))
        await worker.beat()
        watch: Any = stub.WatchWorkers(pb.WatchWorkersRequest())
        (seen,) = await watch_until(watch, bool)
        assert seen.step_costs == worker.state.step_costs


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one: one.recent.update({"code": -1.0}),
        lambda one: one.recent.update({"code": float("nan")}),
        lambda one: one.recent.update({"No Task!": 1.0}),
        lambda one: one.ClearField("worker_id"),
    ],
    ids=["fewer than none", "not a number", "no task's name", "no worker"],
)
async def test_tasks_of_a_worker_that_cannot_be_are_refused(
    own_model: Path, spoil: Callable[[pb.WorkerTasks], None]
) -> None:
    async with loader(own_model) as (stub, _model):
        message = sent(1, a="code")
        spoil(message.workers[0])
        report: Any = stub.ReportTasks()  # type: ignore[call-arg]  # written to, not iterated
        await report.write(message)
        assert await code_of(report) is grpc.StatusCode.INVALID_ARGUMENT
