"""Generation messages: defaults, and answers that survive the wire. What is refused: test_scheduler_bad_requests."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.core.errors import InvalidRequestError
from emoe.core.generation import FinishReason, Piece, Sampling, TokenLogprob, Usage
from emoe.core.slo import Slo
from emoe.runtime.messages import (
    ChatPrompt,
    TextPrompt,
    TokenPrompt,
    parse_piece,
    parse_request,
    parse_sampling,
    piece_to_proto,
)
from emoe.v1 import generation_pb2 as pb


def test_unset_fields_take_the_documented_defaults() -> None:
    request = parse_request(pb.GenerateRequest(text="hi"))

    assert request.prompt == TextPrompt(text="hi", raw=False)
    assert request.task == "unknown"
    assert request.slo == Slo()
    assert request.sampling == Sampling()
    assert request.request_id == ""


def test_explicit_zeros_are_values_and_not_defaults() -> None:
    message = pb.Sampling(temperature=0, top_k=0, seed=0, num_logprobs=0)

    assert parse_sampling(message) == Sampling(temperature=0.0, top_k=0, seed=0, num_logprobs=0)


def test_each_kind_of_prompt_is_told_apart() -> None:
    chat = pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="hi")])

    assert parse_request(pb.GenerateRequest(text="a", raw=True)).prompt == TextPrompt(text="a", raw=True)
    assert parse_request(pb.GenerateRequest(chat=chat)).prompt == ChatPrompt(messages=(("user", "hi"),))
    assert parse_request(pb.GenerateRequest(token_ids=pb.TokenIds(ids=[3, 1]))).prompt == TokenPrompt(token_ids=(3, 1))


def test_task_must_be_known_where_tasks_are_known_and_well_formed_elsewhere() -> None:
    known = frozenset({"qa"})

    assert parse_request(pb.GenerateRequest(text="a", task="qa"), known_tasks=known).task == "qa"
    assert parse_request(pb.GenerateRequest(text="a", task="poetry")).task == "poetry"
    with pytest.raises(InvalidRequestError, match="poetry"):
        parse_request(pb.GenerateRequest(text="a", task="poetry"), known_tasks=known)
    with pytest.raises(InvalidRequestError, match="must match"):
        parse_request(pb.GenerateRequest(text="a", task="No Label"))


tokens = st.integers(0, 2**32 - 1)
counts = st.integers(0, 2**32 - 1)
logprobs = st.builds(TokenLogprob, token_id=tokens, text=st.text(), logprob=st.floats(allow_nan=False))
usages = st.builds(
    Usage, num_prompt_tokens=counts, num_completion_tokens=counts, num_expert_hits=counts, num_expert_choices=counts
)


@settings(deadline=None)
@given(
    st.builds(
        Piece,
        text=st.text(),
        token_ids=st.lists(tokens).map(tuple),
        logprobs=st.lists(st.lists(logprobs).map(tuple)).map(tuple),
        finish_reason=st.none() | st.sampled_from(FinishReason),
        usage=st.none() | usages,
    )
)
def test_piece_survives_the_wire(piece: Piece) -> None:
    assert parse_piece(pb.GenerateResponse.FromString(piece_to_proto(piece).SerializeToString())) == piece
