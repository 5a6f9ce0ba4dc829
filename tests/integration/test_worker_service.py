"""WorkerService over real gRPC: answers, bad requests, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.checkpoints import save_with_tokenizer
from support.workers import running_worker, stub_of

from emoe.core.schedule.step_cost_fit import MIN_STEPS
from emoe.v1 import generation_pb2 as pb
from emoe.v1 import worker_pb2

WAIT_SECONDS = 20.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_tokenizer("qwen2_moe", tmp_path_factory.mktemp("model"))


@pytest.fixture
async def worker(folder: Path, tmp_path: Path) -> AsyncIterator[Any]:
    async with running_worker(folder, tmp_path, expert_memory="60%") as channel:
        yield stub_of(channel)


def request(text: str = "hello", **sampling: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=text, sampling=pb.Sampling(**{"max_tokens": 8, **sampling}))


async def answer(worker: Any, message: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    return [piece async for piece in worker.Generate(message, timeout=WAIT_SECONDS)]


async def state(worker: Any) -> Any:
    return (await worker.GetState(worker_pb2.GetStateRequest(), timeout=WAIT_SECONDS)).state


async def test_an_answer_streams_and_ends_with_reason_and_usage(worker: Any) -> None:
    pieces = await answer(worker, request())
    assert [piece.finish_reason for piece in pieces[:-1]] == [pb.FINISH_REASON_UNSPECIFIED] * (len(pieces) - 1)
    last = pieces[-1]
    assert last.finish_reason in (pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP)
    assert last.usage.num_completion_tokens == sum(len(piece.token_ids) for piece in pieces) <= 8
    assert last.usage.num_prompt_tokens == len("<bos>") - 4 + len("hello") + 1
    assert 0 < last.usage.num_expert_hits < last.usage.num_expert_choices


async def test_the_same_seed_gives_the_same_answer_and_another_one_another(worker: Any) -> None:
    def tokens(pieces: list[pb.GenerateResponse]) -> list[int]:
        return [token for piece in pieces for token in piece.token_ids]

    first, again, other = [
        tokens(await answer(worker, request(temperature=1.5, seed=seed, max_tokens=16))) for seed in (1, 1, 2)
    ]
    assert first == again
    assert first != other


async def test_log_probabilities_come_with_every_token(worker: Any) -> None:
    pieces = await answer(worker, request(num_logprobs=2))
    for piece in pieces:
        assert len(piece.logprobs) == len(piece.token_ids)
        for token, logprobs in zip(piece.token_ids, piece.logprobs, strict=True):
            assert logprobs.candidates[0].token_id == token
            assert len(logprobs.candidates) == 3
            assert all(candidate.logprob <= 0 for candidate in logprobs.candidates)


async def test_a_stop_string_ends_the_answer_before_it(worker: Any) -> None:
    whole = "".join(piece.text for piece in await answer(worker, request(max_tokens=24)))
    assert len(whole) > 4
    stop = whole[3:5]
    pieces = await answer(worker, request(max_tokens=24, stop=[stop]))
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == pb.FINISH_REASON_STOP


async def test_requests_that_run_together_all_end_with_their_own_answers(worker: Any) -> None:
    alone = {text: await answer(worker, request(text)) for text in ("a", "bb", "a longer prompt", "dddd")}
    together = await asyncio.gather(*(answer(worker, request(text)) for text in alone))
    assert all(pieces[-1].usage.num_prompt_tokens == alone[text][-1].usage.num_prompt_tokens
               for text, pieces in zip(alone, together, strict=True))  # fmt: skip
    assert all(pieces[-1].finish_reason for pieces in together)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (request("x" * 70), "must fit the context of 64"),
        (request(max_tokens=64), "must fit the context of 64"),
        (request(max_tokens=-1), "max_tokens"),
        (request(temperature=-0.5), "temperature"),
        (request(temperature=float("nan")), "temperature"),
        (request(top_p=0.0), "top_p"),
        (request(top_k=-3), "top_k"),
        (request(num_logprobs=500), "num_logprobs"),
        (request(""), "empty"),
        (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 300])), "token id 300"),
        (pb.GenerateRequest(text="x", task="No Such Task"), "task"),
        (pb.GenerateRequest(text="x", slo=pb.Slo(ttft_seconds=-1)), "ttft_seconds"),
        (pb.GenerateRequest(text="x", request_id="r" * 200), "request_id"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_request_that_can_never_succeed_is_refused_by_name(
    worker: Any, message: pb.GenerateRequest, complaint: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await answer(worker, message)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert complaint in (refused.value.details() or "")


async def test_a_huge_payload_is_refused_and_the_worker_stays_up(worker: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await answer(worker, request("x" * (5 * 1024 * 1024)))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await answer(worker, request()))[-1].finish_reason


async def test_a_client_that_leaves_frees_its_place(worker: Any) -> None:
    calls = [worker.Generate(request(max_tokens=50), timeout=WAIT_SECONDS) for _ in range(4)]
    await asyncio.gather(*(call.read() for call in calls))
    for call in calls:
        call.cancel()
    async with asyncio.timeout(WAIT_SECONDS):
        now = await state(worker)
        while now.num_running or now.free_sequences < 4:
            now = await state(worker)
    assert now.counters.num_completion_tokens < 4 * 50


async def test_more_requests_than_may_wait_are_refused_with_a_delay(folder: Path, tmp_path: Path) -> None:
    async with running_worker(folder, tmp_path, max_concurrency=1, max_waiting=0) as channel:
        worker = stub_of(channel)
        first = worker.Generate(request(max_tokens=50), timeout=WAIT_SECONDS)
        await first.read()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await answer(worker, request())
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()


async def test_a_model_without_a_chat_template_refuses_chats_and_takes_text(tmp_path: Path) -> None:
    folder = save_with_tokenizer("olmoe", tmp_path / "model", chat_template=None)
    async with running_worker(folder, tmp_path) as channel:
        worker = stub_of(channel)
        chat = pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="hi")])
        with pytest.raises(grpc.aio.AioRpcError, match="no chat template"):
            await answer(worker, pb.GenerateRequest(chat=chat))
        assert (await answer(worker, request()))[-1].finish_reason


async def test_the_state_tells_residency_and_counters(worker: Any) -> None:
    await answer(worker, request())
    now = await state(worker)
    assert now.ready
    assert now.counters.num_prompts == 1
    assert now.counters.num_expert_choices > 0
    assert now.num_slots < 24
    assert now.miss_policy == "reroute"


async def test_the_state_tells_what_steps_take_once_enough_have_run(worker: Any) -> None:
    assert not (await state(worker)).HasField("step_costs")
    while not (now := await state(worker)).HasField("step_costs"):
        await answer(worker, request(max_tokens=20))
    assert now.step_costs.num_steps >= MIN_STEPS
    assert now.step_costs.step_tokens > 0
    assert now.step_costs.missed_token_seconds == 0
