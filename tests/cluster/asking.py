"""Questions over gRPC, as a client asks them: one by one, or many streams at once until they are told to stop.

A refused or broken answer is an outcome like any other; nothing here raises for it. Every call has a deadline.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio

from emoe.v1 import generation_pb2, scheduler_pb2_grpc

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "My name is",
    "Water boils at",
    "The opposite of hot is",
    "A list of three colours:",
    "In the beginning",
    "To make tea, first",
)
"""The best token leads clearly in each answer: rounding, which differs with a batch's shape, turns none of them."""
DEADLINE_SECONDS = 120.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """`code` is "OK" or the gRPC status's name. Times are time.monotonic()."""

    prompt: str
    code: str
    details: str = ""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    task: str = ""
    worker_id: str = ""
    started: float
    first_token: float | None = None
    ended: float

    @property
    def is_ok(self) -> bool:
        return self.code == "OK"


def open_channel(address: str) -> grpc.aio.Channel:
    """Its own connection each time: a Service balances connections, not calls."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 1000)]
    return grpc.aio.insecure_channel(address, options=options)


async def ask(
    channel: grpc.aio.Channel, prompt: str, *, max_tokens: int = 16, seconds: float = DEADLINE_SECONDS
) -> Outcome:
    """Greedy, without the chat template; waits for a connection as long as the deadline allows."""
    request = generation_pb2.GenerateRequest(
        text=prompt, raw=True, sampling=generation_pb2.Sampling(max_tokens=max_tokens, temperature=0.0)
    )
    stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
    started = time.monotonic()
    first: generation_pb2.GenerateResponse | None = None
    first_token: float | None = None
    text, token_ids, code, details = "", list[int](), "NO_FINISH", "the stream ended without a finish reason"
    try:
        async for response in stub.Generate(request, timeout=seconds, wait_for_ready=True):
            first = first or response
            if response.token_ids and first_token is None:
                first_token = time.monotonic()
            text += response.text
            token_ids += response.token_ids
            if response.finish_reason:
                code, details = "OK", ""
    except grpc.aio.AioRpcError as error:
        code, details = error.code().name, error.details() or ""
    return Outcome(
        prompt=prompt,
        code=code,
        details=details,
        text=text,
        token_ids=tuple(token_ids),
        task=first.task if first else "",
        worker_id=first.worker_id if first else "",
        started=started,
        first_token=first_token,
        ended=time.monotonic(),
    )


async def ask_once(address: str, prompt: str, **options: float) -> Outcome:
    async with open_channel(address) as channel:
        return await ask(channel, prompt, **options)  # type: ignore[arg-type]


class Load:
    """Streams that ask one question after the other; `outcomes` grows."""

    def __init__(self, *, max_tokens: int) -> None:
        self.outcomes: list[Outcome] = []
        self._max_tokens = max_tokens
        self._stopping = asyncio.Event()
        self._grew = asyncio.Condition()

    async def keep_asking(self, channel: grpc.aio.Channel, prompts: Iterator[str]) -> None:
        while not self._stopping.is_set():
            outcome = await ask(channel, next(prompts), max_tokens=self._max_tokens)
            async with self._grew:
                self.outcomes.append(outcome)
                self._grew.notify_all()
            if outcome.code == "RESOURCE_EXHAUSTED":
                await asyncio.sleep(0.5)  # as the answer's retry delay asks

    async def until_answered(self, num: int, *, seconds: float = DEADLINE_SECONDS) -> None:
        """So many more answers, from now on, that were asked for from now on."""
        since = time.monotonic()
        async with asyncio.timeout(seconds), self._grew:
            await self._grew.wait_for(lambda: len([o for o in self.outcomes if o.is_ok and o.started > since]) >= num)

    def stop(self) -> None:
        self._stopping.set()

    def codes(self) -> dict[str, int]:
        return dict(collections.Counter(outcome.code for outcome in self.outcomes))

    def describe(self) -> str:
        codes = self.codes()
        shares = ", ".join(f"{code} {num} ({num / len(self.outcomes):.1%})" for code, num in sorted(codes.items()))
        return f"{len(self.outcomes)} requests: {shares}"


@contextlib.asynccontextmanager
async def load(address: str, *, num_streams: int, num_channels: int = 8, max_tokens: int = 16) -> AsyncIterator[Load]:
    """Runs beside the block; in the end every stream finishes its question or runs into its deadline."""
    asking = Load(max_tokens=max_tokens)
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(open_channel(address)) for _ in range(num_channels)]
        async with asyncio.TaskGroup() as streams:
            for index in range(num_streams):
                offset = index % len(PROMPTS)
                prompts = itertools.cycle(PROMPTS[offset:] + PROMPTS[:offset])
                streams.create_task(asking.keep_asking(channels[index % num_channels], prompts))
            try:
                yield asking
            finally:
                asking.stop()
