"""How long prompts and answers are likely to be, learned from the usage that workers report.

The scheduler has no tokenizer. What it estimates goes into load reports and admission; whether a prompt really fits is
the worker's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emoe.core.generation import Usage
from emoe.core.length_sketch import LengthSketch
from emoe.core.tasks import parse_task_name
from emoe.runtime.messages import ChatPrompt, ParsedRequest, TextPrompt, TokenPrompt
from emoe.store.profile import Lengths

MAX_TASKS = 512
PROFILE_WEIGHT = 20.0
"""A profile's lengths weigh as much as so many answers that were seen."""
_NEWEST_SHARE = 0.1
_FIRST_BYTES_PER_TOKEN = 4.0
_MAX_BYTES_PER_TOKEN = 1e6


class LengthEstimator:
    """A moving mean of bytes a prompt token, over all requests; a sketch of answer tokens a task, begun where its
    profile is."""

    def __init__(self) -> None:
        self.num_observed = 0
        self._model = ""
        self._bytes_per_token = _FIRST_BYTES_PER_TOKEN
        self._seen: dict[str, LengthSketch] = {}
        self._profiled: dict[str, LengthSketch] = {}

    def begin_from(self, answer_tokens: Mapping[str, Lengths], *, model: str = "") -> None:
        """As the profile of `model` has them; what was seen of a task since goes before. What was seen of another
        model is forgotten."""
        if model and self._model and model != self._model:
            self._seen.clear()
        self._model = model or self._model
        self._profiled = {task: _seeded(lengths) for task, lengths in answer_tokens.items()}

    def prompt_tokens(self, request: ParsedRequest) -> int:
        if isinstance(request.prompt, TokenPrompt):
            return len(request.prompt.token_ids)
        return max(1, round(prompt_bytes(request) / self._bytes_per_token))

    def answer_tokens(self, request: ParsedRequest) -> int:
        """Half of what was asked for, when the task has no profile and no answer of it was seen.

        With `ignore_eos` a measurement says how long the answer shall be by its `max_tokens`: it is expected as if that
        were not known, or what is measured would be a scheduler that knows the future."""
        longest, sketch = request.sampling.max_tokens, self._sketch(request.task)
        if sketch is None:
            return max(1, min(longest, round(longest / 2)))
        if request.sampling.ignore_eos:
            return max(1, round(sketch.mean))
        return max(1, min(longest, round(sketch.expected_within(longest))))

    def expected_remaining(self, request: ParsedRequest, num_so_far: int) -> int:
        """Tokens still to come of an answer that has `num_so_far` and has not ended; 0 at its very limit."""
        at_most, sketch = max(0, request.sampling.max_tokens - num_so_far), self._sketch(request.task)
        if sketch is None:
            return -(-at_most // 2)
        expected = round(sketch.expected_remaining(num_so_far))
        return expected if request.sampling.ignore_eos else min(at_most, expected)

    def observe(self, request: ParsedRequest, usage: Usage) -> None:
        """`request.task` is one of the known tasks, so the table stays small."""
        self.num_observed += 1
        if sketch := self._sketch_to_fill(request.task):
            sketch.observe(usage.num_completion_tokens)
        if not isinstance(request.prompt, TokenPrompt) and usage.num_prompt_tokens:
            self._bytes_per_token = _mix(self._bytes_per_token, prompt_bytes(request) / usage.num_prompt_tokens)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self._model,
            "bytes_per_token": self._bytes_per_token,
            "answer_tokens": {task: sketch.to_json() for task, sketch in sorted(self._seen.items())},
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """ValueError, and nothing changes, when `to_json` of this version did not write it."""
        try:
            bytes_per_token = float(stored["bytes_per_token"])
            sketches = {
                parse_task_name(task): LengthSketch.from_json(one) for task, one in stored["answer_tokens"].items()
            }
            model = str(stored["model"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"its lengths lack a field or have one of the wrong kind ({error!r})") from error
        if not 0 < bytes_per_token <= _MAX_BYTES_PER_TOKEN or len(sketches) > MAX_TASKS:
            raise ValueError(f"its lengths have {bytes_per_token} bytes a token, or too many tasks ({len(sketches)})")
        self._model, self._bytes_per_token, self._seen = model, bytes_per_token, sketches

    def _sketch(self, task: str) -> LengthSketch | None:
        return self._seen.get(task) or self._profiled.get(task)

    def _sketch_to_fill(self, task: str) -> LengthSketch | None:
        """It begins as a copy of the profile's, which a later connection may bring anew."""
        if task not in self._seen and len(self._seen) < MAX_TASKS:
            self._seen[task] = LengthSketch()
            if task in self._profiled:
                self._seen[task].merge(self._profiled[task])
        return self._seen.get(task)


def prompt_bytes(request: ParsedRequest) -> int:
    """UTF-8 bytes of what will be tokenized, without what a chat template adds."""
    match request.prompt:
        case TextPrompt(text=text):
            return len(text.encode())
        case ChatPrompt(messages=messages):
            return sum(len(content.encode()) for _, content in messages)
        case TokenPrompt(token_ids=ids):
            return 4 * len(ids)


def _seeded(lengths: Lengths) -> LengthSketch:
    sketch = LengthSketch()
    sketch.seed(mean=lengths.mean, p50=lengths.p50, p90=lengths.p90, p99=lengths.p99, weight=PROFILE_WEIGHT)
    return sketch


def _mix(before: float, newest: float) -> float:
    return before + _NEWEST_SHARE * (newest - before)
