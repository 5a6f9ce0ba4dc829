"""Prompts and reference answers by task, as profiles are trained from and quality is judged on.

DATA/SPLIT/TASK.jsonl, or .jsonl.zst: a line has `prompt` and `response`. The file's name is the task's.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from emoe.core.errors import InvalidRequestError
from emoe.core.tasks import parse_task_name
from emoe.runtime.messages import TextPrompt

if TYPE_CHECKING:
    from emoe.worker.prompts import PromptEncoder

SUFFIXES = (".jsonl", ".jsonl.zst")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    task: str
    prompt: str
    response: str
    row_id: str = ""
    """By which traces name it; empty where the data has none."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EncodedRow:
    """`token_ids[:num_prompt_tokens]` as the worker would encode the prompt; the rest is the answer and its end."""

    task: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int

    @property
    def num_response_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens


class RowEncoder(Protocol):
    """What rows become tokens by: `eval.scoring.ScoringModel` is one."""

    @property
    def encoder(self) -> PromptEncoder: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    @property
    def max_context(self) -> int: ...


def read_rows(data: Path, split: str, *, max_rows: int | None = None) -> dict[str, list[Row]]:
    """The first `max_rows` of each task. InvalidRequestError names folder, or file and line, and what is wrong."""
    folder = data / split
    files = {path.name.split(".")[0]: path for path in sorted(folder.glob("*")) if path.name.endswith(SUFFIXES)}
    if not files:
        raise InvalidRequestError(f"{folder} has no TASK.jsonl or TASK.jsonl.zst")
    rows: dict[str, list[Row]] = {}
    for task, path in files.items():
        try:
            parse_task_name(task)
        except ValueError as error:
            raise InvalidRequestError(f"{path}: {error}") from error
        with _open_text(path) as lines:
            rows[task] = list(_parse_rows(path, task, lines, max_rows))
    return rows


def encode_rows(model: RowEncoder, rows: Mapping[str, Sequence[Row]]) -> dict[str, list[EncodedRow]]:
    """Rows longer than the model's context here, and those without an answer, are left out."""
    end = [min(model.eos_token_ids)] if model.eos_token_ids else []
    encoded: dict[str, list[EncodedRow]] = {}
    for task, part in rows.items():
        encoded[task] = []
        for row in part:
            prompt = model.encoder.token_ids(TextPrompt(text=row.prompt, raw=False))
            answer = model.encoder.tokenizer.encode(row.response, add_special_tokens=False)
            ids = (*prompt, *answer, *end)
            if prompt and answer and len(ids) <= model.max_context:
                encoded[task].append(EncodedRow(task=task, token_ids=ids, num_prompt_tokens=len(prompt)))
    return encoded


def _open_text(path: Path) -> TextIO:
    if path.suffix != ".zst":
        return path.open(encoding="utf-8")
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise InvalidRequestError(f"{path} needs zstandard to be read: pip install 'emoe[eval]'") from error
    return io.TextIOWrapper(zstandard.open(path, "rb"), encoding="utf-8")


def _parse_rows(path: Path, task: str, lines: TextIO, max_rows: int | None) -> Iterator[Row]:
    for number, line in enumerate(lines):
        if number == max_rows:
            return
        try:
            entry: Any = json.loads(line)
            yield Row(
                task=task,
                prompt=str(entry["prompt"]),
                response=str(entry["response"]),
                row_id=str(entry.get("id", "")),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequestError(f"{path}, line {number + 1}: needs prompt and response ({error!r})") from error
