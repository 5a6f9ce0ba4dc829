"""A generation's request and answer as messages: parsed once at the edge of the front door and of the worker.

Parsing applies the defaults of generation.proto and raises InvalidRequestError for what can never succeed. What only a
tokenizer can tell, such as the prompt's length in tokens, is left to the worker.
"""

from __future__ import annotations

import dataclasses

from emoe.core.errors import InvalidRequestError
from emoe.core.generation import FinishReason, Piece, Sampling, TokenLogprob, Usage
from emoe.core.slo import Slo
from emoe.core.tasks import UNKNOWN, parse_task, parse_task_name
from emoe.v1 import generation_pb2 as pb

MAX_REQUEST_ID_CHARACTERS = 128
MAX_TENANT_CHARACTERS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPrompt:
    text: str
    raw: bool
    """Tokenized as it is, without the chat template."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    messages: tuple[tuple[str, str], ...]
    """Role and content of each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenPrompt:
    token_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParsedRequest:
    """A GenerateRequest that is well formed. `request_id` is empty when the client gave none."""

    prompt: TextPrompt | ChatPrompt | TokenPrompt
    task: str
    slo: Slo
    sampling: Sampling
    request_id: str
    tenant: str = ""


def parse_request(message: pb.GenerateRequest, *, known_tasks: frozenset[str] | None = None) -> ParsedRequest:
    """`known_tasks`: None takes any well-formed task name, as a worker does."""
    if len(message.request_id) > MAX_REQUEST_ID_CHARACTERS:
        raise InvalidRequestError(f"request_id has more than {MAX_REQUEST_ID_CHARACTERS} characters")
    if len(message.tenant) > MAX_TENANT_CHARACTERS:
        raise InvalidRequestError(f"tenant has more than {MAX_TENANT_CHARACTERS} characters")
    return ParsedRequest(
        prompt=_parse_prompt(message),
        task=_parse_task(message.task, known_tasks),
        slo=parse_slo(message.slo),
        sampling=parse_sampling(message.sampling),
        request_id=message.request_id,
        tenant=message.tenant,
    )


def parse_sampling(message: pb.Sampling) -> Sampling:
    given = {field.name: value for field, value in message.ListFields()}
    return Sampling(**{**given, "stop": tuple(message.stop)})


def parse_slo(message: pb.Slo) -> Slo:
    return Slo(**{field.name: value for field, value in message.ListFields()})


def piece_to_proto(piece: Piece) -> pb.GenerateResponse:
    message = pb.GenerateResponse(text=piece.text, token_ids=piece.token_ids)
    for candidates in piece.logprobs:
        message.logprobs.add().candidates.extend(
            pb.TokenLogprob(token_id=one.token_id, text=one.text, logprob=one.logprob) for one in candidates
        )
    if piece.finish_reason is not None:
        message.finish_reason = _REASON_TO_PROTO[piece.finish_reason]
    if piece.usage is not None:
        message.usage.CopyFrom(pb.Usage(**dataclasses.asdict(piece.usage)))
    return message


def parse_piece(message: pb.GenerateResponse) -> Piece:
    return Piece(
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(
            tuple(TokenLogprob(token_id=c.token_id, text=c.text, logprob=c.logprob) for c in one.candidates)
            for one in message.logprobs
        ),
        finish_reason=_REASON_FROM_PROTO.get(message.finish_reason),
        usage=_parse_usage(message.usage) if message.HasField("usage") else None,
    )


def _parse_usage(message: pb.Usage) -> Usage:
    return Usage(**{field.name: getattr(message, field.name) for field in dataclasses.fields(Usage)})


def _parse_prompt(message: pb.GenerateRequest) -> TextPrompt | ChatPrompt | TokenPrompt:
    kind = message.WhichOneof("prompt")
    if message.raw and kind != "text":
        raise InvalidRequestError("raw goes with a text prompt only; a chat is always rendered by the template")
    if kind == "text" and message.text:
        return TextPrompt(text=message.text, raw=message.raw)
    if kind == "chat" and message.chat.messages:
        turns = tuple((turn.role, turn.content) for turn in message.chat.messages)
        if any(not role for role, _ in turns):
            raise InvalidRequestError("every chat message needs a role, such as user")
        return ChatPrompt(messages=turns)
    if kind == "token_ids" and message.token_ids.ids:
        return TokenPrompt(token_ids=tuple(message.token_ids.ids))
    raise InvalidRequestError("the prompt is empty; give text, chat messages or token ids")


def _parse_task(name: str, known: frozenset[str] | None) -> str:
    if known is not None:
        return parse_task(name, known)
    try:
        return parse_task_name(name) if name else UNKNOWN
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error


_REASON_TO_PROTO = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}
_REASON_FROM_PROTO = {number: reason for reason, number in _REASON_TO_PROTO.items()}
