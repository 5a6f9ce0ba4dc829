"""kill -9 of each service while requests run: no hang, no wrong token, a clear status, recovery without help."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import grpc
import pytest
from cli_models import save_small_model
from support.up import running_up

from emoe.runtime.channels import open_channel
from emoe.v1 import generation_pb2, scheduler_pb2_grpc

DEADLINE_SECONDS = 40.0
MAX_TOKENS = 120
CLEAR = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"))


async def ask(address: str, *, started: asyncio.Event | None = None) -> tuple[list[int], grpc.StatusCode]:
    """The tokens that came, and how it ended."""
    request = generation_pb2.GenerateRequest(
        text="the same question", sampling=generation_pb2.Sampling(max_tokens=MAX_TOKENS)
    )
    tokens: list[int] = []
    async with open_channel(address) as channel:
        try:
            async for piece in scheduler_pb2_grpc.SchedulerServiceStub(channel).Generate(
                request, timeout=DEADLINE_SECONDS
            ):
                tokens += piece.token_ids
                if started is not None and tokens:
                    started.set()
        except grpc.aio.AioRpcError as error:
            return tokens, error.code()
    return tokens, grpc.StatusCode.OK


async def answered(address: str, expected: list[int]) -> None:
    """Until a request is answered in full again; clear refusals meanwhile are borne, wrong tokens are not."""
    async with asyncio.timeout(90):
        while True:
            tokens, code = await ask(address)
            assert tokens == expected[: len(tokens)]
            if code is grpc.StatusCode.OK:
                assert tokens == expected
                return
            assert code in CLEAR
            await asyncio.sleep(0.2)


async def test_every_service_may_die_while_requests_run(model: Path, tmp_path: Path) -> None:
    options = ("--miss-policy=load", "--expert-memory=25%", "--max-context=256", "--max-concurrency=4")
    async with running_up(model, tmp_path, *options) as up:
        scheduler = (await up.until(event="ready"))["scheduler"]
        expected, code = await ask(scheduler)
        assert code is grpc.StatusCode.OK
        assert len(expected) == MAX_TOKENS
        for service in ("predictor", "loader", "worker", "scheduler"):
            started = asyncio.Event()
            running = [asyncio.create_task(ask(scheduler, started=started)) for _ in range(3)]
            await asyncio.wait_for(started.wait(), DEADLINE_SECONDS)
            announced = json.loads((tmp_path / "announce" / f"{service}.json").read_text())
            os.kill(announced["pid"], signal.SIGKILL)
            async with asyncio.timeout(DEADLINE_SECONDS + 10):
                outcomes = await asyncio.gather(*running)
            for tokens, code in outcomes:
                assert tokens == expected[: len(tokens)], service
                assert code is grpc.StatusCode.OK or (code in CLEAR and service in ("worker", "scheduler")), service
            await up.until(event="service", name=service, state="ready")
            await answered(scheduler, expected)
