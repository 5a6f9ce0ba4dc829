"""One request through the scheduler's front door, as the command sends it: text out as it comes, figures at the end."""

from __future__ import annotations

import dataclasses
import enum
import time
from collections.abc import Callable

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from emoe.cli.failures import RemoteError
from emoe.cli.view import hit_rate
from emoe.core.generation import FinishReason, Sampling, Usage
from emoe.runtime.errors import retry_after_seconds
from emoe.v1 import generation_pb2, scheduler_pb2_grpc

MIN_TIMED_TOKENS = 4
SERVICE = "emoe.v1.SchedulerService"
CHECK_SECONDS = 5.0


class PromptForm(enum.Enum):
    """How the prompt reaches the model."""

    TEXT = "text"
    """As one user message if the model has a chat template, else as it is."""
    CHAT = "chat"
    """As one user message; an error if the model has no chat template."""
    RAW = "raw"
    """As it is, whatever the model has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    prompt: str
    task: str = ""
    form: PromptForm = PromptForm.TEXT
    sampling: Sampling = dataclasses.field(default_factory=Sampling)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """Times are the client's own: from sending to the first and to the last token."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    request_id: str
    task: str
    worker_id: str
    queue_seconds: float
    ttft_seconds: float
    total_seconds: float

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Of the tokens after the first; None if they are too few to time: some arrive together."""
        num_later_tokens = self.usage.num_completion_tokens - 1
        seconds = self.total_seconds - self.ttft_seconds
        return num_later_tokens / seconds if num_later_tokens >= MIN_TIMED_TOKENS and seconds > 0 else None

    @property
    def hit_rate(self) -> float | None:
        return hit_rate(self.usage.num_expert_hits, self.usage.num_expert_choices)


async def check_scheduler(channel: grpc.aio.Channel, target: str, *, timeout_seconds: float) -> None:
    """RemoteError at once when nothing answers at `target`, or when it says that it is not ready: the request would
    else wait for its whole deadline. What cannot be asked, through a gateway say, is left to the request to find out.
    """
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    seconds = min(timeout_seconds, CHECK_SECONDS)
    try:
        response = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=seconds)
    except grpc.aio.AioRpcError as error:
        code, details = error.code(), error.details() or "no reason given"
        if code is grpc.StatusCode.UNAVAILABLE and channel.get_state() is not grpc.ChannelConnectivity.READY:
            raise RemoteError(
                f"nothing that speaks gRPC can be reached at {target}: {details}", code=code.name
            ) from error
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise RemoteError(f"{target} did not answer within {seconds:g} s", code=code.name) from error
        return
    if response.status != health_pb2.HealthCheckResponse.SERVING:
        raise RemoteError(
            f"the scheduler at {target} is not ready: it has not found a ready worker, or it is shutting down;"
            " try again later",
            code=grpc.StatusCode.UNAVAILABLE.name,
        )


async def ask(
    channel: grpc.aio.Channel,
    question: Question,
    *,
    timeout_seconds: float,
    on_text: Callable[[str], None] = lambda _text: None,
    clock: Callable[[], float] = time.monotonic,
) -> Answer:
    """Streams one answer; RemoteError when a service refuses it or fails."""
    stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
    started = clock()
    first: generation_pb2.GenerateResponse | None = None
    first_token_seconds: float | None = None
    texts: list[str] = []
    try:
        async for response in stub.Generate(_request_from(question), timeout=timeout_seconds):
            first = first or response
            if first_token_seconds is None and (response.token_ids or response.text):
                first_token_seconds = clock() - started
            if response.text:
                texts.append(response.text)
                on_text(response.text)
            if response.finish_reason:
                return _answer_from(
                    first, response, text="".join(texts), ttft=first_token_seconds, total=clock() - started
                )
    except grpc.aio.AioRpcError as error:
        raise _remote_error(error) from error
    raise RemoteError("the answer's stream ended without a finish reason; the text is not whole", code="DATA_LOSS")


def _request_from(question: Question) -> generation_pb2.GenerateRequest:
    sampling = question.sampling
    request = generation_pb2.GenerateRequest(
        task=question.task,
        raw=question.form is PromptForm.RAW,
        sampling=generation_pb2.Sampling(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
            stop=sampling.stop,
        ),
    )
    if question.form is PromptForm.CHAT:
        request.chat.messages.add(role="user", content=question.prompt)
    else:
        request.text = question.prompt
    return request


def _answer_from(
    first: generation_pb2.GenerateResponse,
    last: generation_pb2.GenerateResponse,
    *,
    text: str,
    ttft: float | None,
    total: float,
) -> Answer:
    reasons = {
        generation_pb2.FINISH_REASON_STOP: FinishReason.STOP,
        generation_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    }
    if last.finish_reason not in reasons:
        raise RemoteError(f"the answer ended for reason {last.finish_reason}, unknown to this client", code="UNKNOWN")
    return Answer(
        text=text,
        finish_reason=reasons[last.finish_reason],
        usage=Usage(
            num_prompt_tokens=last.usage.num_prompt_tokens,
            num_completion_tokens=last.usage.num_completion_tokens,
            num_expert_hits=last.usage.num_expert_hits,
            num_expert_choices=last.usage.num_expert_choices,
        ),
        request_id=first.request_id,
        task=first.task,
        worker_id=first.worker_id,
        queue_seconds=first.queue_seconds,
        ttft_seconds=total if ttft is None else ttft,
        total_seconds=total,
    )


def _remote_error(error: grpc.aio.AioRpcError) -> RemoteError:
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return RemoteError(f"what answers there is no emoe scheduler: it has no {SERVICE}", code=error.code().name)
    delay = retry_after_seconds(error)
    hint = "" if delay is None else f" (try again in {delay:g} s)"
    return RemoteError(
        f"{error.code().name}: {error.details() or 'no reason given'}{hint}",
        code=error.code().name,
        retry_after_seconds=delay,
    )
