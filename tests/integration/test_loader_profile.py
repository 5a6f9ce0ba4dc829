"""A real loader reads the profile beside its model, gives it to schedulers and to the predictor, and plans without."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from loader_clients import FakeWorker, loader
from loader_models import NUM_EXPERTS, NUM_LAYERS, TOP_K
from loader_source import TIMEOUT_SECONDS
from support.profiles import write_beside

from emoe.core.sequence_predictor import PREFIX
from emoe.loader.profile import open_profile
from emoe.predictor.main import serving as serving_predictor
from emoe.predictor.settings import PredictorSettings
from emoe.runtime import parts as parts_of_files
from emoe.runtime.channels import open_channel
from emoe.store.learned import read_arrays, write_arrays
from emoe.store.profile import LEARNED_FILE, parse_profile
from emoe.store.store import ExpertStore
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc as rpc
from emoe.v1 import predictor_pb2, predictor_pb2_grpc

SLOTS = NUM_LAYERS * TOP_K


async def given(stub: rpc.LoaderServiceAsyncStub) -> list[bytes]:
    return [message.data async for message in stub.GetProfile(pb.GetProfileRequest(), timeout=TIMEOUT_SECONDS)]


async def test_schedulers_get_the_profile_that_lies_beside_the_model(
    own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_beside(own_model, code=5, math=6)
    monkeypatch.setattr(parts_of_files, "PART_BYTES", 500)
    async with loader(own_model) as (stub, _):
        received = await given(stub)
    assert len(received) > 1
    sent, stored = parse_profile(b"".join(received)), parse_profile(path.read_bytes())
    assert (sent.digest, sent.fingerprint, sent.tasks.keys()) == (stored.digest, stored.fingerprint, {"code", "math"})
    assert sent.tasks["code"].answer_frequencies == pytest.approx(stored.tasks["code"].answer_frequencies, abs=1e-5)


async def test_a_model_without_a_profile_gives_no_message(own_model: Path) -> None:
    async with loader(own_model) as (stub, _):
        assert await given(stub) == []


def damage(folder: Path) -> None:
    write_beside(folder, code=5).write_bytes(b"torn")


def foreign(folder: Path) -> None:
    path = write_beside(folder, code=5)
    with ExpertStore.open(folder) as store:
        path.write_bytes(path.read_bytes().replace(store.fingerprint().encode(), b"0" * 64))


def without_what_was_learned(folder: Path) -> None:
    write_beside(folder, code=5, learned_sha256="0" * 64)


def unreadable_arrays(folder: Path) -> None:
    (folder / LEARNED_FILE).write_bytes(b"torn")
    write_beside(folder, code=5, learned_sha256=hashlib.sha256(b"torn").hexdigest())


BAD = {
    "torn": (damage, "make it anew with `emoe profile`, or remove it"),
    "of other weights": (foreign, "was made from other weights"),
    "without its learned file": (without_what_was_learned, "names it"),
    "with a torn learned file": (unreadable_arrays, LEARNED_FILE),
}


@pytest.mark.parametrize(("spoil", "advice"), BAD.values(), ids=BAD.keys())
async def test_a_bad_profile_is_logged_and_left_out(
    own_model: Path, spoil, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(own_model)
    async with loader(own_model) as (stub, model):
        assert await given(stub) == []
        worker = FakeWorker(stub, model, num_slots=SLOTS)
        await worker.beat()
        assert (await worker.plan()).epoch == 1
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage().startswith("the model is served without a task profile: ")
    assert advice in record.getMessage()


def test_only_the_predictors_own_arrays_are_kept(own_model: Path) -> None:
    arrays = {PREFIX + "centre": np.ones(3, np.float32), "own_routing/mean": np.zeros(1000, np.float32)}
    learned = write_arrays(arrays)
    (own_model / LEARNED_FILE).write_bytes(learned)
    write_beside(own_model, code=5, learned_sha256=hashlib.sha256(learned).hexdigest())
    with ExpertStore.open(own_model) as store:
        opened = open_profile(store)
    assert opened is not None
    assert {name: array.tolist() for name, array in read_arrays(opened.sequence).items()} == {
        PREFIX + "centre": [1.0, 1.0, 1.0]
    }


@contextlib.asynccontextmanager
async def asked_for(stub: rpc.LoaderServiceAsyncStub, task: str) -> AsyncIterator[None]:
    """While a scheduler reports tokens of the task."""
    report = stub.ReportTasks()  # type: ignore[call-arg]  # written to, not iterated
    load = pb.TaskLoad(task=task, num_running=1, num_expected_tokens=100)
    await report.write(pb.ReportTasksRequest(scheduler_id="s", loads=[load]))  # type: ignore[attr-defined]
    yield
    report.cancel()  # type: ignore[attr-defined]


async def plan_for(worker: FakeWorker, index: int) -> None:
    """Until a plan wants this expert of every layer."""
    while True:
        plan = await worker.plan()
        await worker.apply(plan)
        if worker.wanted(plan)[:, index].all():
            return


async def test_the_first_plans_follow_the_profile_though_nothing_was_counted(own_model: Path) -> None:
    write_beside(own_model, code=5, math=6)
    async with (
        serving_predictor(PredictorSettings()) as predictor,
        loader(own_model, predictor=predictor.address) as (stub, model),
        asked_for(stub, "code"),
    ):
        worker = FakeWorker(stub, model, num_slots=SLOTS)
        await worker.beat()
        await plan_for(worker, 5)


async def ask(address: str, model: pb.GetModelResponse) -> predictor_pb2.PredictResponse:
    async with open_channel(address) as channel:
        request = predictor_pb2.PredictRequest(model=model.model, grid=model.grid)
        return await predictor_pb2_grpc.PredictorServiceStub(channel).Predict(request, timeout=TIMEOUT_SECONDS)


async def test_a_predictor_that_began_anew_is_given_the_profile_again(own_model: Path, tmp_path: Path) -> None:
    write_beside(own_model, code=5)
    address = f"unix:{tmp_path}/predictor"
    settings = PredictorSettings(listen=address)
    async with loader(own_model, predictor=address, predictor_retry_seconds=0.05) as (stub, model):
        worker = FakeWorker(stub, model, num_slots=SLOTS)
        async with serving_predictor(settings):
            await worker.beat()
            await worker.plan()
            assert (await ask(address, model)).has_profile
        async with serving_predictor(settings):
            assert not (await ask(address, model)).has_profile
            async with asked_for(stub, "law"), asyncio.timeout(TIMEOUT_SECONDS):
                while not (await ask(address, model)).has_profile:
                    pass


class Refusing(predictor_pb2_grpc.PredictorServiceServicer):
    """Answers questions, and takes no profile: refuses it, or reads nothing of it."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs = hangs
        self.given = asyncio.Semaphore(0)

    async def LoadProfile(self, request_iterator, context):
        self.given.release()
        if self.hangs:
            await asyncio.Event().wait()
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not this one")

    async def Predict(self, request, context):
        values = [1.0 if cell % NUM_EXPERTS == 3 else 0.0 for cell in range(NUM_LAYERS * NUM_EXPERTS)]
        return predictor_pb2.PredictResponse(demand={"values": values})


@contextlib.asynccontextmanager
async def serving(predictor: Refusing) -> AsyncIterator[str]:
    server = grpc.aio.server()
    predictor_pb2_grpc.add_PredictorServiceServicer_to_server(predictor, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.mark.parametrize("hangs", [False, True], ids=["refused", "not read"])
async def test_plans_come_from_a_predictor_that_takes_no_profile(
    own_model: Path, hangs: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("emoe.loader.client.PROFILE_DEADLINE_SECONDS", 0.2)
    write_beside(own_model, code=5)
    predictor = Refusing(hangs=hangs)
    async with serving(predictor) as address, loader(own_model, predictor=address) as (stub, model):
        worker = FakeWorker(stub, model, num_slots=SLOTS)
        await worker.beat()
        await plan_for(worker, 3)
        async with asked_for(stub, "law"), asyncio.timeout(TIMEOUT_SECONDS):
            for _ in range(2):
                await predictor.given.acquire()
    told = [record for record in caplog.records if "did not take the model's profile" in record.getMessage()]
    assert [record.levelno for record in told][:1] == [logging.WARNING]
    assert sum(record.levelno == logging.WARNING for record in told) == 1, "once, though it was tried again"
