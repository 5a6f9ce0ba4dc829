"""Reads the multi-task corpus and cuts it into flat, unpadded training batches.

A batch is a list of whole examples laid end to end. Tasks are drawn in equal shares of tokens, whatever
their size on disk, and every batch mixes all tasks: the load-balancing loss is taken over that mixture.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zstandard
from tokenizers import Tokenizer

TASKS = ("chat", "classification", "code", "math", "qa", "summarization", "translation")
BOS, EOS, SEP = "<bos>", "<eos>", "<sep>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    task: str
    subtask: str
    prompt: str
    response: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One tokenized row: `ids[:num_prompt]` is `<bos> prompt <sep>`, the rest `response <eos>`."""

    ids: np.ndarray
    num_prompt: int
    task: str


def read_rows(data: Path, split: str, task: str) -> Iterator[Row]:
    path = data / split / f"{task}.jsonl.zst"
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        for line in stream.read().splitlines():
            row = json.loads(line)
            yield Row(task=task, subtask=row["subtask"], prompt=row["prompt"], response=row["response"])


def encode(tokenizer: Tokenizer, rows: list[Row]) -> list[Example]:
    prompts = tokenizer.encode_batch([f"{BOS}{row.prompt}{SEP}" for row in rows], add_special_tokens=False)
    answers = tokenizer.encode_batch([f"{row.response}{EOS}" for row in rows], add_special_tokens=False)
    return [
        Example(ids=np.array(prompt.ids + answer.ids, dtype=np.int32), num_prompt=len(prompt.ids), task=row.task)
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
    ]


def _endless(examples: list[Example], rng: np.random.Generator) -> Iterator[Example]:
    while True:
        for index in rng.permutation(len(examples)):
            yield examples[index]


def mixed_batches(examples: dict[str, list[Example]], *, tokens_per_batch: int, seed: int) -> Iterator[list[Example]]:
    """Endless batches; the task that has had the fewest tokens so far gives the next example."""
    rng = np.random.default_rng(seed)
    streams = {task: _endless(rows, rng) for task, rows in examples.items()}
    given = dict.fromkeys(streams, 0)
    while True:
        batch: list[Example] = []
        size = 0
        while size < tokens_per_batch:
            task = min(given, key=given.__getitem__)
            example = next(streams[task])
            given[task] += len(example.ids)
            size += len(example.ids)
            batch.append(example)
        yield batch
