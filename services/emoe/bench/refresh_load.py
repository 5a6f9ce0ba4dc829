"""The load of `emoe bench refresh`: rows of all tasks in equal shares, asked in a closed loop for their own answers.

Each client sends the next request once its last one is answered; what is left is any client's, so none idles before the
end. Knows the front door's contract, and of the worker behind it only that a seed names the answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from emoe.bench.failures import BenchmarkError
from emoe.bench.refresh_answers import FIRST_SEED
from emoe.core.errors import InvalidRequestError
from emoe.eval.rows import EncodedRow, encode_rows, read_rows
from emoe.runtime.channels import open_channel
from emoe.store.store import ExpertStore
from emoe.v1 import generation_pb2, scheduler_pb2_grpc
from emoe.worker.build import read_eos_token_ids
from emoe.worker.prompts import PromptEncoder, vocab_size_of

ANSWER_SECONDS = 600.0
SPARE = 1.2
"""So many times the rows that are needed are read: some may be too long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask:
    """`number`: whose answer it gets, as `write_answers` counts them."""

    number: int
    row: EncodedRow

    @property
    def answer(self) -> tuple[int, ...]:
        return self.row.token_ids[self.row.num_prompt_tokens :]


@dataclasses.dataclass(kw_only=True)
class LoadResult:
    """Of one turn. `nll`: the sum over the answers' tokens, in nats."""

    wall_seconds: float = 0.0
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    nll: float = 0.0
    ttft_seconds: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Encoding:
    encoder: PromptEncoder
    eos_token_ids: frozenset[int]
    max_context: int


def read_turns(
    store: ExpertStore, data: Path, *, num_turns: int, num_requests: int, max_context: int, seed: int
) -> list[list[Ask]]:
    """As many lists of different rows of data/test, each with every task in equal shares. InvalidRequestError if there
    are too few."""
    encoder = PromptEncoder.open(store.folder, vocab_size=vocab_size_of(store), max_context=max_context)
    encoding = _Encoding(encoder=encoder, eos_token_ids=read_eos_token_ids(store), max_context=max_context)
    num_rows = num_turns * num_requests
    rows = encode_rows(encoding, read_rows(data, "test", max_rows=round(SPARE * num_rows) + 1))
    chosen = _in_equal_shares(rows, num_turns, num_requests)
    if len(chosen) < num_rows:
        raise InvalidRequestError(
            f"{data}/test has rows for {len(chosen)} of the {num_rows} requests: ask for fewer repeats or requests"
        )
    asks = [Ask(number=number, row=row) for number, row in enumerate(chosen)]
    turns = [asks[num_requests * turn :][:num_requests] for turn in range(num_turns)]
    for turn in turns:
        random.Random(seed).shuffle(turn)
    return turns


def _in_equal_shares(rows: Mapping[str, Sequence[EncodedRow]], num_turns: int, num_requests: int) -> list[EncodedRow]:
    """Task by task in turns, as long as every task has one."""
    dealt = [row for rank in zip(*rows.values(), strict=False) for row in rank]
    return dealt[: num_turns * num_requests]


async def run_load(address: str, asks: Sequence[Ask], *, clients: int) -> LoadResult:
    """BenchmarkError if a request fails, or its answer is not the forced one."""
    result, waiting = LoadResult(), iter(asks)
    async with open_channel(address) as channel:
        await channel.channel_ready()
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        began = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as clients_group:
                for _ in range(clients):
                    clients_group.create_task(_run_client(stub, waiting, result))
        except ExceptionGroup as group:
            raise _failure(group) from group.exceptions[0]
        result.wall_seconds = time.perf_counter() - began
    return result


def _failure(group: ExceptionGroup) -> Exception:
    """The first that went wrong, in words where it is a call's."""
    first = group.exceptions[0]
    if isinstance(first, grpc.aio.AioRpcError):
        return BenchmarkError(f"a request failed: {first.code().name}: {first.details()}")
    return BenchmarkError(str(first)) if isinstance(first, BenchmarkError) else group


async def _run_client(stub: Any, waiting: Iterator[Ask], result: LoadResult) -> None:
    for ask in waiting:
        await _follow(stub, ask, result)


async def _follow(stub: Any, ask: Ask, result: LoadResult) -> None:
    began = time.perf_counter()
    given: list[int] = []
    async for response in stub.Generate(_request(ask), timeout=ANSWER_SECONDS):
        if not given and response.token_ids:
            result.ttft_seconds.append(time.perf_counter() - began)
        given += response.token_ids
        result.nll -= sum(one.candidates[0].logprob for one in response.logprobs)
    if tuple(given) != ask.answer:
        raise BenchmarkError(
            f"a {ask.row.task} request was to be answered with {len(ask.answer)} known tokens and got {len(given)}, "
            "not all of them the same: is its worker one of this benchmark?"
        )
    result.num_tokens += len(given)
    result.num_prompt_tokens += ask.row.num_prompt_tokens


def _request(ask: Ask) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(
        token_ids=generation_pb2.TokenIds(ids=ask.row.token_ids[: ask.row.num_prompt_tokens]),
        task=ask.row.task,
        sampling=generation_pb2.Sampling(
            max_tokens=len(ask.answer), temperature=0.0, seed=FIRST_SEED + ask.number, num_logprobs=0, ignore_eos=True
        ),
    )
