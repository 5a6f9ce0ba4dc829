"""One request's answer on the event loop: engine events in, pieces of text out.

Tokens wait in a list that a slow client may let grow to the answer's own length, no further; what waits together goes
out together.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from opentelemetry import trace

from emoe.core.errors import GenerationError, NotReadyError
from emoe.core.generation import FinishReason, Piece, TokenLogprob, Usage
from emoe.worker.sequence import Sequence, TokenEvent
from emoe.worker.text import TextStream


class Answer:
    def __init__(self, sequence: Sequence, tokenizer: Any, eos_token_ids: frozenset[int]) -> None:
        self.sequence = sequence
        self.is_over = False
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._text = TextStream(tokenizer, sequence.sampling.stop)
        self._arrived: list[TokenEvent] = []
        self._something = asyncio.Event()
        self._num_tokens = 0
        self._began_seconds = time.monotonic()
        self._first_token_seconds: float | None = None

    def take(self, event: TokenEvent) -> None:
        """The engine's sink."""
        if self._first_token_seconds is None:
            self._first_token_seconds = time.monotonic()
        self._arrived.append(event)
        self._something.set()

    async def next_piece(self) -> Piece:
        """Everything that has arrived, as one piece. GenerationError if the engine gave the sequence up, NotReadyError
        if it did so for want of a neighbour."""
        await self._something.wait()
        self._something.clear()
        events, self._arrived = self._arrived, []
        return self._piece(events)

    def _piece(self, events: list[TokenEvent]) -> Piece:
        last = events[-1]
        if last.token_id is None:
            self.is_over = True
            kind = NotReadyError if last.is_for_want else GenerationError
            raise kind(f"request {self.sequence.sequence_id} failed: {last.error}")
        ended = last.token_id in self._eos_token_ids and not self.sequence.sampling.ignore_eos
        given = [event.token_id for event in events if event.token_id is not None]
        num_pushed, text = self._text.push_all(given[:-1] if ended else given)
        if self._text.stopped:
            events, ended = events[:num_pushed], True
        self._num_tokens += len(events)
        self.is_over = ended or last.finished
        if self.is_over:
            text += self._text.finish()
        return Piece(
            text=text,
            token_ids=tuple(given[: len(events)]),
            logprobs=tuple(tuple(self._named(*one) for one in event.logprobs) for event in events if event.logprobs),
            finish_reason=_reason(ended) if self.is_over else None,
            usage=self._usage() if self.is_over else None,
        )

    def describe(self, span: trace.Span) -> None:
        """What this request did here, on the call's span: in the engine's queue, until its first token, after it."""
        if not span.is_recording():
            return
        sequence, now = self.sequence, time.monotonic()
        started = sequence.started_seconds or now
        first = self._first_token_seconds or now
        span.set_attributes(
            {
                "emoe.request_id": sequence.sequence_id,
                "emoe.task": sequence.task,
                "emoe.engine_queue_seconds": max(0.0, started - self._began_seconds),
                "emoe.prefill_seconds": max(0.0, first - started),
                "emoe.decode_seconds": max(0.0, now - first),
                "emoe.ttft_seconds": first - self._began_seconds,
                "emoe.num_prompt_tokens": sequence.num_prompt_tokens,
                "emoe.num_completion_tokens": self._num_tokens,
                "emoe.hit_ratio": sequence.num_expert_hits / max(1, sequence.num_expert_choices),
            }
        )

    def _named(self, token_id: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(token_id=token_id, text=self._tokenizer.decode([token_id]), logprob=logprob)

    def _usage(self) -> Usage:
        return Usage(
            num_prompt_tokens=self.sequence.num_prompt_tokens,
            num_completion_tokens=self._num_tokens,  # the engine may be ahead of a stop string
            num_expert_hits=self.sequence.num_expert_hits,
            num_expert_choices=self.sequence.num_expert_choices,
        )


def _reason(ended: bool) -> FinishReason:
    return FinishReason.STOP if ended else FinishReason.LENGTH
