"""One answer from engine events: what is told when it ends, whatever the engine has done meanwhile."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from emoe.core.errors import GenerationError, NotReadyError
from emoe.core.generation import FinishReason, Sampling
from emoe.worker.answer import Answer
from emoe.worker.sequence import Sequence, TokenEvent

EOS = 0


class Letters:
    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(token_id) for token_id in token_ids if token_id != EOS)


def answer(*stop: str, max_tokens: int = 10) -> Answer:
    sequence = Sequence(
        sequence_id="r/1",
        task="chat",
        token_ids=[1, 2],
        num_prompt_tokens=2,
        sampling=Sampling(stop=stop, max_tokens=max_tokens),
        seed=0,
    )
    return Answer(sequence, Letters(), frozenset({EOS}))


def feed(to: Answer, text: str, *, ends: bool = False) -> None:
    """As the engine does: it appends to the sequence, then tells."""
    for place, char in enumerate(text):
        token_id = EOS if char == "$" else ord(char)
        to.sequence.token_ids.append(token_id)
        finished = ends and place == len(text) - 1
        to.take(TokenEvent(sequence=to.sequence, token_id=token_id, finished=finished))


async def test_tokens_behind_a_stop_string_are_neither_given_out_nor_counted() -> None:
    one = answer("END")
    feed(one, "abENDxyz")
    piece = await one.next_piece()
    assert (piece.text, len(piece.token_ids), piece.finish_reason) == ("ab", 5, FinishReason.STOP)
    assert piece.usage is not None
    assert piece.usage.num_completion_tokens == 5
    assert one.is_over


@pytest.mark.parametrize("text", ["abEND$", "ab$", "abEN$"], ids=["stop string, then end", "end", "half a stop string"])
async def test_the_end_token_means_stop_and_gives_no_text(text: str) -> None:
    one = answer("END")
    feed(one, text, ends=True)
    piece = await one.next_piece()
    assert piece.text == text.split("END")[0].rstrip("$")
    assert piece.finish_reason is FinishReason.STOP


async def test_the_last_token_allowed_means_length_and_gives_out_what_was_held_back() -> None:
    one = answer("END")
    feed(one, "abEN", ends=True)
    piece = await one.next_piece()
    assert (piece.text, piece.finish_reason) == ("abEN", FinishReason.LENGTH)


async def test_a_failure_names_the_request_and_the_reason() -> None:
    one = answer()
    one.take(TokenEvent(sequence=one.sequence, finished=True, error="the engine failed"))
    with pytest.raises(GenerationError, match=r"r/1 failed: the engine failed"):
        await one.next_piece()


async def test_a_failure_for_want_of_a_neighbour_may_be_tried_again() -> None:
    one = answer()
    one.take(TokenEvent(sequence=one.sequence, finished=True, error="the loader is away", is_for_want=True))
    with pytest.raises(NotReadyError, match=r"r/1 failed: the loader is away"):
        await one.next_piece()


async def test_the_span_tells_where_the_time_went_and_how_many_choices_hit() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    one = answer()
    one.sequence.started_seconds = one._began_seconds + 1
    one.sequence.num_expert_hits, one.sequence.num_expert_choices = 3, 4
    feed(one, "ab$", ends=True)
    await one.next_piece()
    with provider.get_tracer("t").start_as_current_span("call") as span:
        one.describe(span)
    attributes = dict(exporter.get_finished_spans()[0].attributes or {})
    assert attributes["emoe.engine_queue_seconds"] == pytest.approx(1)
    assert attributes["emoe.hit_ratio"] == 0.75
    assert attributes["emoe.num_completion_tokens"] == 3
    assert {"emoe.ttft_seconds", "emoe.prefill_seconds", "emoe.decode_seconds"} <= attributes.keys()
    provider.shutdown()
