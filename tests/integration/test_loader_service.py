"""A real loader over a real checkpoint: subscriptions, plans, watchers, pulls, and what happens when neighbours go."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from emoe.core.experts import BoolGrid, ExpertGrid, ExpertId
from emoe.core.tasks import UNKNOWN
from emoe.loader import streams
from emoe.loader.main import serving
from emoe.loader.settings import LoaderSettings
from emoe.predictor.main import serving as serving_predictor
from emoe.predictor.settings import PredictorSettings
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import expert_to_proto, grid_to_proto, parse_grid, parse_set, set_to_proto
from emoe.runtime.lifecycle import ServiceHost
from emoe.store.store import ExpertStore, xxh3_64
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc as rpc
from emoe.v1 import predictor_pb2, predictor_pb2_grpc, residency_pb2

TIMEOUT_SECONDS = 10
NUM_LAYERS, NUM_EXPERTS, TOP_K = 2, 8, 2
ALL_EXPERTS = [ExpertId(layer, index) for layer in range(NUM_LAYERS) for index in range(NUM_EXPERTS)]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-MoE checkpoint as transformers saves it, with experts of more than one chunk."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        vocab_size=64,
        hidden_size=640,
        intermediate_size=64,
        moe_intermediate_size=160,
        shared_expert_intermediate_size=32,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("pristine")
    Qwen2MoeForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """A copy of one's own, to damage at will."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


@contextlib.asynccontextmanager
async def loader(
    checkpoint: Path, **settings: Any
) -> AsyncIterator[tuple[rpc.LoaderServiceAsyncStub, pb.GetModelResponse]]:
    async with running(checkpoint, **settings) as host, client(host.address) as (stub, model):
        yield stub, model


@contextlib.asynccontextmanager
async def running(checkpoint: Path, **settings: Any) -> AsyncIterator[ServiceHost]:
    async with serving(LoaderSettings(model=checkpoint, **settings)) as host:
        yield host


@contextlib.asynccontextmanager
async def client(address: str) -> AsyncIterator[tuple[rpc.LoaderServiceAsyncStub, pb.GetModelResponse]]:
    async with open_channel(address) as channel:
        stub = rpc.LoaderServiceStub(channel)
        yield stub, await stub.GetModel(pb.GetModelRequest(), timeout=TIMEOUT_SECONDS, wait_for_ready=True)


class FakeWorker:
    """Speaks a worker's half of Subscribe, and applies a plan when told to."""

    def __init__(
        self, stub: rpc.LoaderServiceAsyncStub, model: pb.GetModelResponse, worker_id: str = "w", num_slots: int = 6
    ) -> None:
        self.call: Any = stub.Subscribe()  # type: ignore[call-arg]  # written to, not iterated
        self.grid: ExpertGrid = parse_grid(model.grid)
        self.state = pb.WorkerState(
            worker_id=worker_id,
            address="127.0.0.1:9",
            model=model.model,
            num_slots=num_slots,
            resident=set_to_proto(np.zeros(self.grid.shape, dtype=np.bool_)),
            miss_policy="reroute",
            ready=True,
            counters=pb.WorkerCounters(),
        )

    async def beat(self) -> None:
        await self.call.write(pb.SubscribeRequest(state=self.state))

    async def plan(self) -> pb.SubscribeResponse:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            response = await self.call.read()
        assert isinstance(response, pb.SubscribeResponse)
        return response

    async def apply(self, plan: pb.SubscribeResponse) -> None:
        self.state.resident.CopyFrom(plan.wanted)
        self.state.applied_epoch = plan.epoch
        await self.beat()

    def wanted(self, plan: pb.SubscribeResponse) -> BoolGrid:
        return parse_set(plan.wanted, self.grid)

    async def leave(self) -> None:
        await self.call.done_writing()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert not isinstance(await self.call.read(), pb.SubscribeResponse)


async def code_of(call: Any) -> grpc.StatusCode:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        return grpc.StatusCode(await call.code())


async def watch_until(call: Any, wish: Callable[[list[pb.WorkerState]], bool]) -> list[pb.WorkerState]:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            workers = list((await call.read()).workers)
            if wish(workers):
                return workers


async def test_a_worker_gets_a_plan_as_soon_as_it_subscribes(checkpoint: Path) -> None:
    async with loader(checkpoint) as (stub, model):
        worker = FakeWorker(stub, model, num_slots=6)
        await worker.beat()
        plan = await worker.plan()
        wanted = worker.wanted(plan)
        assert plan.epoch == 1
        assert plan.model == model.model
        assert int(wanted.sum()) == 6
        assert all(worker.grid.rule.is_routable(wanted[layer]) for layer in worker.grid.moe_layers)
        assert len(plan.demand.values) == wanted.size


async def test_two_workers_get_plans_of_their_own_size(checkpoint: Path) -> None:
    async with loader(checkpoint) as (stub, model):
        small, large = FakeWorker(stub, model, "small", 4), FakeWorker(stub, model, "large", 12)
        await small.beat()
        await large.beat()
        assert int(small.wanted(await small.plan()).sum()) == 4
        assert int(large.wanted(await large.plan()).sum()) == 12


async def test_watchers_see_workers_come_beat_and_go(checkpoint: Path) -> None:
    async with loader(checkpoint) as (stub, model):
        watch: Any = stub.WatchWorkers(pb.WatchWorkersRequest())
        assert await watch_until(watch, lambda workers: not workers) == []
        worker = FakeWorker(stub, model)
        await worker.beat()
        (seen,) = await watch_until(watch, bool)
        assert seen == worker.state
        worker.state.num_running = 3
        worker.state.counters.stall_seconds = 1.5
        await worker.beat()
        (seen,) = await watch_until(watch, lambda workers: workers[0].num_running == 3)
        assert seen == worker.state
        await worker.plan()
        await worker.leave()
        assert await watch_until(watch, lambda workers: not workers) == []


async def test_a_worker_that_dies_is_removed(checkpoint: Path) -> None:
    async with running(checkpoint) as host, client(host.address) as (stub, model):
        watch: Any = stub.WatchWorkers(pb.WatchWorkersRequest())
        async with client(host.address) as (other, _):
            await FakeWorker(other, model).beat()
            await watch_until(watch, bool)
        assert await watch_until(watch, lambda workers: not workers) == []


async def test_a_worker_that_stops_beating_is_removed(checkpoint: Path) -> None:
    async with loader(checkpoint, heartbeat_timeout_seconds=0.05) as (stub, model):
        worker = FakeWorker(stub, model)
        await worker.beat()
        assert await code_of(worker.call) is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_that_subscribes_again_ends_its_older_stream(checkpoint: Path) -> None:
    async with loader(checkpoint) as (stub, model):
        first, second = FakeWorker(stub, model), FakeWorker(stub, model)
        await first.beat()
        await first.plan()
        await second.beat()
        await second.plan()
        assert await code_of(first.call) is grpc.StatusCode.UNAVAILABLE
        watch: Any = stub.WatchWorkers(pb.WatchWorkersRequest())
        assert len(await watch_until(watch, bool)) == 1


async def test_a_restarted_loader_recovers_when_workers_subscribe_again(checkpoint: Path) -> None:
    async with loader(checkpoint) as (stub, model):
        before = FakeWorker(stub, model)
        await before.beat()
        last = await before.plan()
    async with loader(checkpoint) as (stub, model):
        after = FakeWorker(stub, model)
        after.state.resident.CopyFrom(last.wanted)
        after.state.applied_epoch = 41
        await after.beat()
        plan = await after.plan()
    assert plan.epoch == 42
    assert plan.wanted == last.wanted, "uniform demand gives no reason to move anything"


async def test_draining_ends_subscriptions_and_watches(checkpoint: Path) -> None:
    async with running(checkpoint, drain_seconds=60) as host, client(host.address) as (stub, model):
        draining = asyncio.create_task(host.run())
        worker = FakeWorker(stub, model)
        await worker.beat()
        watch: Any = stub.WatchWorkers(pb.WatchWorkersRequest())
        await watch_until(watch, bool)
        await worker.plan()
        host.stop()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await draining
        assert await code_of(worker.call) is grpc.StatusCode.UNAVAILABLE
        assert await code_of(watch) is grpc.StatusCode.UNAVAILABLE


def bad_states() -> Iterator[tuple[str, Callable[[pb.WorkerState], None], grpc.StatusCode]]:
    invalid, refused = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
    yield "no worker id", lambda s: s.ClearField("worker_id"), invalid
    yield "no address", lambda s: s.ClearField("address"), invalid
    yield "no model", lambda s: s.ClearField("model"), invalid
    yield "another model", lambda s: setattr(s.model, "digest", "other"), refused
    yield "too few slots", lambda s: setattr(s, "num_slots", NUM_LAYERS * TOP_K - 1), refused
    yield "residents of another shape", lambda s: setattr(s.resident, "bits", b"\0" * 99), invalid
    yield "no such miss policy", lambda s: setattr(s, "miss_policy", "guess"), invalid


BAD_STATES = list(bad_states())


@pytest.mark.parametrize(("spoil", "code"), [bad[1:] for bad in BAD_STATES], ids=[bad[0] for bad in BAD_STATES])
async def test_a_bad_heartbeat_is_refused_and_registers_nothing(
    checkpoint: Path, spoil: Callable[[pb.WorkerState], None], code: grpc.StatusCode
) -> None:
    async with loader(checkpoint) as (stub, model):
        worker = FakeWorker(stub, model)
        spoil(worker.state)
        await worker.beat()
        assert await code_of(worker.call) is code
        watch: Any = stub.WatchWorkers(pb.WatchWorkersRequest())
        assert (await watch.read()).workers == []


async def test_a_later_bad_heartbeat_removes_the_worker(checkpoint: Path) -> None:
    async with loader(checkpoint) as (stub, model):
        worker = FakeWorker(stub, model)
        await worker.beat()
        await worker.plan()
        worker.state.worker_id = "somebody else"
        await worker.beat()
        assert await code_of(worker.call) is grpc.StatusCode.INVALID_ARGUMENT


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
    checkpoint: Path, **settings: Any
) -> AsyncIterator[tuple[rpc.LoaderServiceAsyncStub, pb.GetModelResponse, str]]:
    async with (
        serving_predictor(PredictorSettings()) as predictor,
        loader(checkpoint, predictor=predictor.address, **settings) as (stub, model),
    ):
        yield stub, model, predictor.address


async def test_plans_follow_the_tasks_that_the_scheduler_reports(checkpoint: Path) -> None:
    async with loader_and_predictor(checkpoint) as (stub, model, predictor):
        await teach(predictor, model, chat=5, code=6, math=7)
        worker = FakeWorker(stub, model, num_slots=NUM_LAYERS * TOP_K)
        report: Any = stub.ReportTasks()  # type: ignore[call-arg]  # written to, not iterated
        await report.write(load_of(1, code=100))
        await worker.beat()
        wanted = await plan_where(worker, lambda wanted: bool(wanted[:, 6].all()))
        assert not wanted[:, 7].any()
        await report.write(load_of(2, math=100))
        await plan_where(worker, lambda wanted: bool(wanted[:, 7].all()))


async def test_what_was_learnt_since_is_asked_for_after_the_interval(checkpoint: Path) -> None:
    async with loader_and_predictor(checkpoint, refresh_interval_prompts=5) as (stub, model, predictor):
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


async def test_plans_come_without_a_predictor_and_better_ones_once_it_is_there(
    checkpoint: Path, tmp_path: Path
) -> None:
    address = f"unix:{tmp_path}/predictor"
    async with loader(checkpoint, predictor=address, predictor_retry_seconds=0.05) as (stub, model):
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
async def test_a_bad_task_report_is_an_invalid_argument(checkpoint: Path, message: pb.ReportTasksRequest) -> None:
    async with loader(checkpoint) as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ReportTasks(iter([message]), timeout=TIMEOUT_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def pull(
    stub: rpc.LoaderServiceAsyncStub, model: residency_pb2.ModelId, experts: Iterable[ExpertId]
) -> list[pb.PullExpertsResponse]:
    request = pb.PullExpertsRequest(model=model, experts=[expert_to_proto(expert) for expert in experts])
    return [message async for message in stub.PullExperts(request, timeout=TIMEOUT_SECONDS)]


def assemble(messages: Iterable[pb.PullExpertsResponse]) -> list[tuple[ExpertId, bytes]]:
    """What a client makes of the stream, checking as it goes."""
    experts: list[tuple[ExpertId, bytes]] = []
    data = b""
    for message in messages:
        assert message.offset == len(data)
        data += message.data
        if message.last:
            assert xxh3_64(data) == message.xxh3
            experts.append((ExpertId(message.expert.layer, message.expert.index), data))
            data = b""
    assert not data
    return experts


async def test_the_model_is_described_as_the_store_sees_it(checkpoint: Path) -> None:
    async with loader(checkpoint) as (_, model):
        with ExpertStore.open(checkpoint) as store:
            assert model.model == residency_pb2.ModelId(digest=store.digest, family="qwen2_moe")
            assert model.grid == grid_to_proto(store.grid)
            assert model.path == str(checkpoint)


async def test_pulled_experts_are_the_stores_bytes_in_the_order_asked_for(checkpoint: Path) -> None:
    experts = [ExpertId(1, 7), ExpertId(0, 0), ExpertId(1, 7), *ALL_EXPERTS]
    async with loader(checkpoint) as (stub, model):
        messages = await pull(stub, model.model, experts[: len(ALL_EXPERTS)])
    assert max(len(message.data) for message in messages) == 1 << 20, "experts take more than one message"
    with ExpertStore.open(checkpoint) as store:
        assert assemble(messages) == [(expert, store.read(expert)) for expert in experts[: len(ALL_EXPERTS)]]


async def test_many_clients_pull_at_once_within_a_narrow_bound(checkpoint: Path) -> None:
    async with loader(checkpoint, max_pulled_bytes=1) as (stub, model):
        pulls = (pull(stub, model.model, ALL_EXPERTS) for _ in range(4))
        first, *others = [assemble(messages) for messages in await asyncio.gather(*pulls)]
    assert [expert for expert, _ in first] == ALL_EXPERTS
    assert others == [first] * 3


async def test_no_experts_are_an_empty_stream(checkpoint: Path) -> None:
    async with loader(checkpoint) as (stub, model):
        assert await pull(stub, model.model, []) == []


@pytest.mark.parametrize(
    ("digest", "experts", "code"),
    [
        ("other", [ExpertId(0, 0)], grpc.StatusCode.FAILED_PRECONDITION),
        ("", [ExpertId(0, 0)], grpc.StatusCode.INVALID_ARGUMENT),
        (None, [ExpertId(0, NUM_EXPERTS)], grpc.StatusCode.INVALID_ARGUMENT),
        (None, [ExpertId(NUM_LAYERS, 0)], grpc.StatusCode.INVALID_ARGUMENT),
        (None, [ExpertId(0, 0)] * 1000, grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=["another model", "no model", "no such expert", "no such layer", "more experts than there are"],
)
async def test_a_bad_pull_is_refused(
    checkpoint: Path, digest: str | None, experts: list[ExpertId], code: grpc.StatusCode
) -> None:
    async with loader(checkpoint) as (stub, model):
        wanted = model.model if digest is None else residency_pb2.ModelId(digest=digest)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pull(stub, wanted, experts)
    assert caught.value.code() is code


async def test_a_corrupt_expert_is_named_and_the_others_are_still_served(checkpoint: Path) -> None:
    bad, good = ExpertId(1, 2), ExpertId(1, 3)
    with ExpertStore.open(checkpoint) as store:
        expected = {expert: store.read(expert) for expert in ALL_EXPERTS}
    damage(checkpoint / "model.safetensors", expected[bad][-64:])
    async with loader(checkpoint) as (stub, model):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pull(stub, model.model, [bad])
        assert assemble(await pull(stub, model.model, [good])) == [(good, expected[good])]
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert "model.safetensors" in (caught.value.details() or "")
    assert "layers.1." in (caught.value.details() or "")


async def test_a_file_cut_short_while_serving_is_data_loss_for_its_experts_alone(checkpoint: Path) -> None:
    async with loader(checkpoint) as (stub, model):
        file = checkpoint / "model.safetensors"
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size // 2)
        codes = {await pulled_code(stub, model, expert) for expert in ALL_EXPERTS}
        assert codes == {grpc.StatusCode.OK, grpc.StatusCode.DATA_LOSS}


async def test_a_client_that_leaves_or_stops_reading_does_not_hold_up_others(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "WRITE_SECONDS", 0.2)
    async with running(checkpoint, max_pulled_bytes=1) as host, client(host.address) as (stub, model):
        request = pb.PullExpertsRequest(model=model.model, experts=[expert_to_proto(expert) for expert in ALL_EXPERTS])
        async with client(host.address) as (other, _):
            stuck: Any = other.PullExperts(request)
            await stuck.read()
            gone: Any = other.PullExperts(request)
            await gone.read()
            gone.cancel()
            assert len(assemble(await pull(stub, model.model, ALL_EXPERTS))) == len(ALL_EXPERTS)


async def test_it_is_ready_once_the_checkpoint_is_open(checkpoint: Path) -> None:
    async with running(checkpoint) as host, open_channel(host.health_address) as channel:
        request = health_pb2.HealthCheckRequest(service="emoe.v1.LoaderService")
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def pulled_code(
    stub: rpc.LoaderServiceAsyncStub, model: pb.GetModelResponse, expert: ExpertId
) -> grpc.StatusCode:
    request = pb.PullExpertsRequest(model=model.model, experts=[expert_to_proto(expert)])
    call: Any = stub.PullExperts(request, timeout=TIMEOUT_SECONDS)
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    return await code_of(call)


def damage(file: Path, needle: bytes) -> None:
    """One bit of one expert, where its last bytes lie."""
    content = bytearray(file.read_bytes())
    content[content.index(needle)] ^= 1
    file.write_bytes(content)
