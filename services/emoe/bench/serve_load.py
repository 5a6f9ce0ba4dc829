"""What a load generator sends: a workload's requests in so much time, with prompts of random tokens or the data's own.

Random tokens take of a worker what any tokens do, and need no data; which experts they want is another matter, so hit
rates are told with `texts` alone.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from emoe.bench.schedule_trace import Workload
from emoe.core.errors import InvalidRequestError
from emoe.v1 import generation_pb2

FIRST_TOKEN = 16
"""Ids below are special ones in many vocabularies."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """`texts`: each request's prompt, or None where prompts are random tokens."""

    workload: Workload
    texts: tuple[str, ...] | None = None
    vocab_size: int = 256
    seed: int = 0

    def write_prompt(self, number: int, message: generation_pb2.GenerateRequest) -> None:
        if self.texts is not None:
            message.text = self.texts[number]
            return
        draw = np.random.default_rng((self.seed, number))
        lowest = min(FIRST_TOKEN, self.vocab_size - 1)
        ids = draw.integers(lowest, self.vocab_size, size=self.workload.prompt_tokens[number], dtype=np.uint32)
        message.token_ids.ids.extend(ids.tolist())


def fit_context(workload: Workload, max_context: int) -> Workload:
    """Prompts cut so that prompt and answer fit; an answer that is too long by itself is cut, too."""
    answers = [max(1, min(answer, max_context - 1)) for answer in workload.answer_tokens]
    prompts = [
        max(1, min(prompt, max_context - answer))
        for prompt, answer in zip(workload.prompt_tokens, answers, strict=True)
    ]
    return dataclasses.replace(workload, prompt_tokens=prompts, answer_tokens=answers)


def speed_up(workload: Workload, speed: float) -> Workload:
    return workload.at_load(workload.load_rps * speed)


def with_texts(workload: Workload, corpus_ids: Sequence[str], texts: Mapping[str, str]) -> Load:
    """`corpus_ids` stand beside the workload's requests. InvalidRequestError when the data has none of them."""
    known = [place for place, corpus_id in enumerate(corpus_ids) if corpus_id in texts]
    if len(known) < 2:
        raise InvalidRequestError(
            f"{workload.name}: the data has the prompts of {len(known)} requests; give the data that the trace was "
            "made for, or leave --data out and prompts are random tokens"
        )
    return Load(workload=pick(workload, known), texts=tuple(texts[corpus_ids[place]] for place in known))


def pick(workload: Workload, places: Sequence[int]) -> Workload:
    """These requests alone, at their times since the first of them; two at least."""
    begin = workload.arrived_seconds[places[0]]
    return dataclasses.replace(
        workload,
        arrived_seconds=[workload.arrived_seconds[place] - begin for place in places],
        prompt_tokens=[workload.prompt_tokens[place] for place in places],
        answer_tokens=[workload.answer_tokens[place] for place in places],
        tasks=[workload.tasks[place] for place in places],
        span_seconds=max(workload.arrived_seconds[places[-1]] - begin, 1e-3),
    )


def read_corpus_ids(trace: Path) -> list[str]:
    """In order of arrival, as `read_workload` has its requests."""
    with gzip.open(trace, "rt", encoding="utf-8") if trace.suffix == ".gz" else trace.open(encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if "corpus_id" not in (reader.fieldnames or ()):
            raise InvalidRequestError(f"{trace} has no column corpus_id, by which --data would give prompts")
        rows = [(float(entry["arrival_s"]), entry["corpus_id"]) for entry in reader]
    return [corpus_id for _, corpus_id in sorted(rows, key=lambda row: row[0])]
