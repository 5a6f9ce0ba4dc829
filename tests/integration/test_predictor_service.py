"""A real predictor on a port: it learns from streams, predicts, refuses nonsense, and outlives its process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from emoe.core.experts import ExpertGrid, RoutingRule
from emoe.predictor.main import serving
from emoe.predictor.settings import PredictorSettings
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import grid_to_proto
from emoe.v1 import predictor_pb2 as pb
from emoe.v1 import predictor_pb2_grpc as rpc
from emoe.v1 import residency_pb2

GRID = ExpertGrid(num_layers=3, moe_layers=(1, 2), rule=RoutingRule(num_experts=4, top_k=2), expert_bytes=64)
MODEL = residency_pb2.ModelId(digest="a" * 64, family="qwen2_moe")
TIMEOUT_SECONDS = 10


def report(task: str, index: int, num_choices: int = 1000) -> pb.ReportRoutingRequest:
    counts = np.zeros(GRID.shape, dtype=np.int64)
    counts[1:, index] = num_choices
    return pb.ReportRoutingRequest(
        model=MODEL,
        grid=grid_to_proto(GRID),
        task=task,
        counts=residency_pb2.ExpertCounts(values=counts.reshape(-1).tolist()),
        worker_id="w",
    )


def question(**task_tokens: float) -> pb.PredictRequest:
    return pb.PredictRequest(model=MODEL, grid=grid_to_proto(GRID), task_tokens=task_tokens)


def row(response: pb.PredictResponse, layer: int) -> list[float]:
    width = GRID.rule.num_experts
    return list(response.demand.values)[layer * width : (layer + 1) * width]


@contextlib.asynccontextmanager
async def stub_of(address: str) -> AsyncIterator[rpc.PredictorServiceAsyncStub]:
    async with open_channel(address) as channel:
        yield rpc.PredictorServiceStub(channel)


@contextlib.asynccontextmanager
async def predictor(settings: PredictorSettings | None = None) -> AsyncIterator[rpc.PredictorServiceAsyncStub]:
    async with serving(settings or PredictorSettings()) as host, stub_of(host.address) as stub:
        yield stub


async def send(stub: rpc.PredictorServiceAsyncStub, *reports: pb.ReportRoutingRequest) -> int:
    answer = await stub.ReportRouting(iter(reports), timeout=TIMEOUT_SECONDS)
    return int(answer.num_reports)


@contextlib.asynccontextmanager
async def open_report_stream(stub: rpc.PredictorServiceAsyncStub) -> AsyncIterator[Any]:
    """A stream whose first report was learnt, and that is still open."""
    call: Any = stub.ReportRouting()  # type: ignore[call-arg]  # written to, not iterated
    await call.write(report("code", 1))
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not (await stub.Predict(question(code=8.0))).num_choices_learnt:
            pass
    yield call
    call.cancel()


async def test_demand_follows_what_the_workers_report() -> None:
    async with predictor() as stub:
        assert await send(stub, report("code", 1), report("math", 3), report("code", 1)) == 3
        answer = await stub.Predict(question(code=8.0), timeout=TIMEOUT_SECONDS)
    assert int(np.argmax(row(answer, 1))) == 1
    assert sum(row(answer, 1)) == pytest.approx(8.0)
    assert row(answer, 0) == [0.0] * 4, "layer 0 is dense"
    assert answer.num_choices_learnt == 4000


async def test_an_unknown_model_has_uniform_demand_and_nothing_learnt() -> None:
    async with predictor() as stub:
        answer = await stub.Predict(question(code=8.0), timeout=TIMEOUT_SECONDS)
    assert row(answer, 1) == [2.0] * 4
    assert answer.num_choices_learnt == 0


async def test_reports_count_while_their_stream_is_still_open() -> None:
    async with predictor() as stub, open_report_stream(stub):
        pass


BAD_GRIDS = {
    "no experts": residency_pb2.ExpertGrid(num_layers=1, moe_layers=[0]),
    "a layer too many": residency_pb2.ExpertGrid(
        num_layers=1, moe_layers=[1], rule=residency_pb2.RoutingRule(num_experts=4, top_k=2)
    ),
    "huge": residency_pb2.ExpertGrid(
        num_layers=1 << 30, moe_layers=[0], rule=residency_pb2.RoutingRule(num_experts=1 << 30, top_k=2)
    ),
}


def without_model() -> pb.PredictRequest:
    request = question()
    request.ClearField("model")
    return request


BAD_QUESTIONS = {
    **{name: pb.PredictRequest(model=MODEL, grid=grid) for name, grid in BAD_GRIDS.items()},
    "no model": without_model(),
    "negative tokens": question(code=-1.0),
    "infinite tokens": question(code=float("inf")),
    "not a number": question(code=float("nan")),
    "a task that is no label": question(**{"Not A Task": 1.0}),
    "too many tasks": question(**{f"task{n}": 1.0 for n in range(1000)}),
}


@pytest.mark.parametrize("request_message", BAD_QUESTIONS.values(), ids=BAD_QUESTIONS.keys())
async def test_a_bad_question_is_an_invalid_argument(request_message: pb.PredictRequest) -> None:
    async with predictor() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Predict(request_message, timeout=TIMEOUT_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def bad_reports() -> Iterator[tuple[str, pb.ReportRoutingRequest]]:
    short = report("code", 1)
    del short.counts.values[-1]
    yield "counts of another shape", short
    dense = report("code", 1)
    dense.counts.values[0] = 1
    yield "counts in a dense layer", dense
    yield "a task that is no label", report("Not A Task", 1)
    no_grid = report("code", 1)
    no_grid.ClearField("grid")
    yield "no grid", no_grid
    other_grid = report("code", 1)
    other_grid.grid.rule.top_k = 3
    yield "the digest with another grid", other_grid


BAD_REPORTS = dict(bad_reports())


@pytest.mark.parametrize("bad", BAD_REPORTS.values(), ids=BAD_REPORTS.keys())
async def test_a_bad_report_ends_its_stream_and_unlearns_nothing(bad: pb.ReportRoutingRequest) -> None:
    async with predictor() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await send(stub, report("code", 1), bad, report("code", 2))
        answer = await stub.Predict(question(code=1.0), timeout=TIMEOUT_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.num_choices_learnt == 2000


async def test_what_was_learnt_survives_an_orderly_restart(tmp_path: Path) -> None:
    settings = PredictorSettings(state_dir=tmp_path / "state", save_interval_seconds=3600)
    async with predictor(settings) as stub:
        await send(stub, report("code", 1), report("math", 3))
        before = await stub.Predict(question(code=3.0, math=1.0), timeout=TIMEOUT_SECONDS)
    async with predictor(settings) as stub:
        after = await stub.Predict(question(code=3.0, math=1.0), timeout=TIMEOUT_SECONDS)
    assert before == after


async def test_a_damaged_state_file_does_not_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "predictor.state").write_bytes(b"damaged")
    async with predictor(PredictorSettings(state_dir=tmp_path)) as stub:
        answer = await stub.Predict(question(code=8.0), timeout=TIMEOUT_SECONDS)
    assert answer.num_choices_learnt == 0
    assert (tmp_path / "predictor.state.corrupt").exists()


async def test_it_is_ready_once_it_answers() -> None:
    async with serving(PredictorSettings()) as host, open_channel(host.health_address) as channel:
        for service in ("", "emoe.v1.PredictorService"):
            request = health_pb2.HealthCheckRequest(service=service)
            answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_open_report_streams_do_not_hold_up_the_end() -> None:
    async with serving(PredictorSettings(drain_seconds=60)) as host, stub_of(host.address) as stub:
        running = asyncio.create_task(host.run())
        async with open_report_stream(stub) as call, asyncio.timeout(TIMEOUT_SECONDS):
            host.stop()
            await running
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@contextlib.asynccontextmanager
async def predictor_process(state_dir: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    environment = os.environ | {
        "EMOE_PREDICTOR_STATE_DIR": str(state_dir),
        "EMOE_PREDICTOR_SAVE_INTERVAL_SECONDS": "0.05",
        "EMOE_PREDICTOR_LOG_LEVEL": "debug",
        "EMOE_PREDICTOR_LOG_FORMAT": "json",
        "EMOE_PREDICTOR_ANNOUNCE_FILE": str(state_dir / "announced"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "emoe.predictor.main", env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        await log_line(process, "listens on")
        yield process, json.loads((state_dir / "announced").read_text())["address"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def log_line(process: asyncio.subprocess.Process, text: str) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while text not in (line := (await process.stderr.readline()).decode()):
            assert line, f"the process ended before it logged {text!r}"


async def test_a_kill_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    async with predictor_process(tmp_path) as (process, address), stub_of(address) as stub:
        await send(stub, report("code", 1))
        await log_line(process, "saved what 1 reports taught")
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with predictor(PredictorSettings(state_dir=tmp_path)) as stub:
        answer = await stub.Predict(question(code=1.0), timeout=TIMEOUT_SECONDS)
    assert answer.num_choices_learnt == 2000


async def test_sigterm_saves_and_ends_with_zero(tmp_path: Path) -> None:
    async with predictor_process(tmp_path) as (process, address), stub_of(address) as stub:
        await send(stub, report("code", 1))
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await process.communicate()
        assert process.returncode == 0
    assert (tmp_path / "predictor.state").exists()
