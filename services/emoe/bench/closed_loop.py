"""Clients of `Generate`, each with a connection of its own: the next request goes out when the last one is answered."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from emoe.bench.failures import BenchmarkError
from emoe.bench.rows import LoopSample
from emoe.runtime.channels import open_channel
from emoe.v1 import generation_pb2, scheduler_pb2_grpc, worker_pb2_grpc

ANSWER_SECONDS = 1800.0
STUBS: dict[str, Callable[[grpc.aio.Channel], Any]] = {
    "scheduler": scheduler_pb2_grpc.SchedulerServiceStub,
    "worker": worker_pb2_grpc.WorkerServiceStub,
}


async def run_loop(service: str, address: str, prompts: list[list[list[int]]], *, new_tokens: int) -> LoopSample:
    """`prompts[client]` are that client's, in order. BenchmarkError if a request fails or its answer is short."""
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(open_channel(address)) for _ in prompts]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        stubs = [STUBS[service](channel) for channel in channels]
        began = time.perf_counter()
        try:
            ttfts = await asyncio.gather(
                *(_run_client(stub, own, new_tokens) for stub, own in zip(stubs, prompts, strict=True))
            )
        except grpc.aio.AioRpcError as error:
            raise BenchmarkError(f"the {service} failed a request: {error.code().name}: {error.details()}") from error
        wall_seconds = time.perf_counter() - began
    num_requests = sum(map(len, prompts))
    return LoopSample(
        num_tokens=num_requests * new_tokens,
        wall_seconds=wall_seconds,
        ttft_seconds=tuple(seconds for own in ttfts for seconds in own),
    )


async def _run_client(stub: Any, prompts: list[list[int]], new_tokens: int) -> list[float]:
    return [await _ask(stub, prompt, new_tokens) for prompt in prompts]


async def _ask(stub: Any, prompt: list[int], new_tokens: int) -> float:
    """The answer's time to first token."""
    request = generation_pb2.GenerateRequest(
        token_ids=generation_pb2.TokenIds(ids=prompt),
        sampling=generation_pb2.Sampling(max_tokens=new_tokens, temperature=0.0, ignore_eos=True),
    )
    began = time.perf_counter()
    first_seconds: float | None = None
    num_tokens = 0
    async for response in stub.Generate(request, timeout=ANSWER_SECONDS):
        num_tokens += len(response.token_ids)
        if first_seconds is None and num_tokens:
            first_seconds = time.perf_counter() - began
    if first_seconds is None or num_tokens != new_tokens:
        raise BenchmarkError(f"an answer has {num_tokens} tokens, not {new_tokens}; the rates cannot be compared")
    return first_seconds
