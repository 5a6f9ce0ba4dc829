"""The closed loop of `emoe bench refresh` against a front door that answers as it was told."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from emoe.bench.failures import BenchmarkError
from emoe.bench.refresh_load import Ask, run_load
from emoe.eval.rows import EncodedRow
from emoe.v1 import generation_pb2 as pb
from emoe.v1 import scheduler_pb2_grpc

ASKS = [
    Ask(number=number, row=EncodedRow(task="code", token_ids=(5, 6, *answer), num_prompt_tokens=2))
    for number, answer in enumerate([(1, 2), (3,)])
]


class Door(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Each token is held as one half likely; `answers` by the request's number of tokens wanted."""

    def __init__(self, answers: dict[int, list[int]]) -> None:
        self.answers = answers

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        answer = self.answers.get(request.sampling.max_tokens)
        if answer is None:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
            return
        for token in answer:
            held = pb.TokenLogprob(token_id=token, logprob=math.log(0.5))
            yield pb.GenerateResponse(token_ids=[token], logprobs=[pb.TokenLogprobs(candidates=[held])])


@pytest.fixture
async def door() -> AsyncIterator[tuple[Door, str]]:
    server, service = grpc.aio.server(), Door({2: [1, 2], 1: [3]})
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield service, f"127.0.0.1:{port}"
    await server.stop(None)


async def test_answers_tokens_and_likelihoods_are_summed(door: tuple[Door, str]) -> None:
    result = await run_load(door[1], ASKS, clients=2)
    assert (result.num_prompt_tokens, result.num_tokens, len(result.ttft_seconds)) == (4, 3, 2)
    assert result.nll == pytest.approx(3 * math.log(2))
    assert result.wall_seconds > 0


async def test_an_answer_that_is_not_the_known_one_is_an_error(door: tuple[Door, str]) -> None:
    door[0].answers[1] = [4]
    with pytest.raises(BenchmarkError, match="1 known tokens and got 1, not all of them the same"):
        await run_load(door[1], ASKS, clients=2)


async def test_a_refused_request_is_told_with_its_reason(door: tuple[Door, str]) -> None:
    del door[0].answers[2]
    with pytest.raises(BenchmarkError, match="RESOURCE_EXHAUSTED: the queue is full"):
        await run_load(door[1], ASKS, clients=1)
