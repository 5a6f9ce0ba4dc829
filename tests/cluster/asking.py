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
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

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
MAX_TOKENS = 16
DEADLINE_SECONDS = 240.0
"""Long enough for a queue of hundreds before a worker that has a share of one core."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """Asked greedily. Without a task the client names none; `raw` leaves out the chat template."""

    prompt: str
    task: str = ""
    raw: bool = True
    max_tokens: int = MAX_TOKENS
    with_leads: bool = False
    """Whether the answer should say by how much each token leads."""

    def to_request(self) -> generation_pb2.GenerateRequest:
        sampling = generation_pb2.Sampling(max_tokens=self.max_tokens, temperature=0.0)
        if self.with_leads:
            sampling.num_logprobs = 2
        return generation_pb2.GenerateRequest(text=self.prompt, task=self.task, raw=self.raw, sampling=sampling)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """`code` is "OK" or the gRPC status's name. Times are time.monotonic()."""

    prompt: str
    code: str
    details: str = ""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    leads_nats: tuple[float, ...] = ()
    """Of each token, if asked for: its log-probability less that of the best other token."""
    task: str = ""
    worker_id: str = ""
    queue_seconds: float = 0.0
    """In the scheduler's queue, for whom a worker began; 0 for the others."""
    started: float
    first_token: float | None = None
    ended: float

    @property
    def is_ok(self) -> bool:
        return self.code == "OK"

    def was_begun_after(self, at: float) -> bool:
        """Whether a worker got it later than that; when in doubt, not."""
        return self.first_token is not None and self.started + self.queue_seconds > at


class _Hearing:
    """One answer as it comes."""

    def __init__(self, question: Question) -> None:
        self.code, self.details = "NO_FINISH", "the stream ended without a finish reason"
        self._question = question
        self._started = time.monotonic()
        self._first: generation_pb2.GenerateResponse | None = None
        self._first_token: float | None = None
        self._text = ""
        self._token_ids: list[int] = []
        self._leads_nats: list[float] = []

    def take(self, response: generation_pb2.GenerateResponse) -> None:
        self._first = self._first or response
        if response.token_ids and self._first_token is None:
            self._first_token = time.monotonic()
        self._text += response.text
        self._token_ids += response.token_ids
        self._leads_nats += map(_lead_nats, response.logprobs)
        if response.finish_reason:
            self.code, self.details = "OK", ""

    def outcome(self) -> Outcome:
        first = self._first or generation_pb2.GenerateResponse()
        return Outcome(
            prompt=self._question.prompt,
            code=self.code,
            details=self.details,
            text=self._text,
            token_ids=tuple(self._token_ids),
            leads_nats=tuple(self._leads_nats),
            task=first.task,
            worker_id=first.worker_id,
            queue_seconds=first.queue_seconds,
            started=self._started,
            first_token=self._first_token,
            ended=time.monotonic(),
        )


def _lead_nats(logprobs: generation_pb2.TokenLogprobs) -> float:
    chosen, *best = logprobs.candidates
    return chosen.logprob - max(one.logprob for one in best if one.token_id != chosen.token_id)


def open_channel(address: str, *, service_config: str = "{}") -> grpc.aio.Channel:
    """Its own connection each time: a Service balances connections, not calls."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.service_config", service_config),
    ]
    return grpc.aio.insecure_channel(address, options=options)


async def ask(channel: grpc.aio.Channel, question: Question, *, seconds: float = DEADLINE_SECONDS) -> Outcome:
    """Waits for a connection as long as the deadline allows."""
    stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
    hearing = _Hearing(question)
    try:
        async for response in stub.Generate(question.to_request(), timeout=seconds, wait_for_ready=True):
            hearing.take(response)
    except grpc.aio.AioRpcError as error:
        hearing.code, hearing.details = error.code().name, error.details() or ""
    return hearing.outcome()


async def ask_once(
    address: str, prompt: str, *, max_tokens: int = MAX_TOKENS, seconds: float = DEADLINE_SECONDS
) -> Outcome:
    async with open_channel(address) as channel:
        return await ask(channel, Question(prompt=prompt, max_tokens=max_tokens), seconds=seconds)


async def ask_each(address: str, questions: Sequence[Question]) -> list[Outcome]:
    """One after the other: each has the worker to itself."""
    async with open_channel(address) as channel:
        return [await ask(channel, question) for question in questions]


class Load:
    """Streams that ask one question after the other; `outcomes` grows."""

    def __init__(self, num_streams: int) -> None:
        self.num_streams = num_streams
        self.outcomes: list[Outcome] = []
        self._stopping = asyncio.Event()
        self._grew = asyncio.Condition()

    async def keep_asking(self, channel: grpc.aio.Channel, questions: Iterator[Question]) -> None:
        while not self._stopping.is_set():
            outcome = await ask(channel, next(questions))
            async with self._grew:
                self.outcomes.append(outcome)
                self._grew.notify_all()
            if outcome.code == "RESOURCE_EXHAUSTED":
                await asyncio.sleep(0.5)  # as the answer's retry delay asks

    async def until_answered(self, num: int, *, seconds: float = DEADLINE_SECONDS) -> None:
        """So many more whole answers, to questions that a worker got from now on."""
        since = time.monotonic()
        await self.until(lambda one: one.is_ok and one.was_begun_after(since), num=num, seconds=seconds)

    async def until(
        self, is_so: Callable[[Outcome], bool], *, num: int = 1, seconds: float = DEADLINE_SECONDS
    ) -> list[Outcome]:
        """The outcomes of which it is so, once there are so many."""
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline, self._grew:
                await self._grew.wait_for(lambda: len(list(filter(is_so, self.outcomes))) >= num)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            found = len(list(filter(is_so, self.outcomes)))
            raise AssertionError(f"{found} of {num} within {seconds:g} s; {self.describe()}") from error
        return list(filter(is_so, self.outcomes))

    def stop(self) -> None:
        self._stopping.set()

    def codes(self) -> dict[str, int]:
        return dict(collections.Counter(outcome.code for outcome in self.outcomes))

    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.is_ok]

    def reasons(self) -> dict[tuple[str, str], int]:
        """Why answers are not whole, and how often."""
        return dict(collections.Counter((one.code, one.details) for one in self.failed()).most_common(5))

    def describe(self) -> str:
        shares = (f"{code} {num} ({num / len(self.outcomes):.1%})" for code, num in sorted(self.codes().items()))
        return f"{len(self.outcomes)} requests: {', '.join(shares)}"


@contextlib.asynccontextmanager
async def load(
    address: str,
    *,
    num_streams: int,
    num_channels: int = 8,
    questions: Sequence[Question] = tuple(Question(prompt=prompt) for prompt in PROMPTS),
    service_config: str = "{}",
) -> AsyncIterator[Load]:
    """Runs beside the block; in the end every stream finishes its question or runs into its deadline."""
    asking = Load(num_streams)
    async with contextlib.AsyncExitStack() as stack:
        opened = [open_channel(address, service_config=service_config) for _ in range(num_channels)]
        channels = [await stack.enter_async_context(channel) for channel in opened]
        async with asyncio.TaskGroup() as streams:
            for index in range(num_streams):
                mine = itertools.islice(itertools.cycle(questions), index % len(questions), None)
                streams.create_task(asking.keep_asking(channels[index % num_channels], mine))
            try:
                yield asking
            finally:
                asking.stop()
