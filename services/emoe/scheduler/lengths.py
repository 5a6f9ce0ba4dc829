"""How long prompts and answers are likely to be, learned from the usage that workers report.

The scheduler has no tokenizer. What it estimates goes into load reports and admission; whether a prompt really fits is
the worker's to say.
"""

from __future__ import annotations

from collections.abc import Mapping

from emoe.core.generation import Usage
from emoe.runtime.messages import ChatPrompt, ParsedRequest, TextPrompt, TokenPrompt

_NEWEST_SHARE = 0.1
_FIRST_BYTES_PER_TOKEN = 4.0


class LengthEstimator:
    """Moving means: bytes a prompt token, over all requests; answer tokens, a task, begun where its profile is."""

    def __init__(self) -> None:
        self._bytes_per_token = _FIRST_BYTES_PER_TOKEN
        self._answer_tokens: dict[str, float] = {}
        self._profiled_tokens: Mapping[str, float] = {}

    def begin_from(self, answer_tokens: Mapping[str, float]) -> None:
        """Mean answers of tasks, as their profile has them; what was seen of a task since goes before."""
        self._profiled_tokens = dict(answer_tokens)

    def prompt_tokens(self, request: ParsedRequest) -> int:
        if isinstance(request.prompt, TokenPrompt):
            return len(request.prompt.token_ids)
        return max(1, round(prompt_bytes(request) / self._bytes_per_token))

    def answer_tokens(self, request: ParsedRequest) -> int:
        """Half of what was asked for, when the task has no profile and no answer of it was seen."""
        longest = request.sampling.max_tokens
        expected = self._mean_answer(request.task)
        return max(1, min(longest, round(longest / 2 if expected is None else expected)))

    def observe(self, request: ParsedRequest, usage: Usage) -> None:
        """`request.task` is one of the known tasks, so the table stays small."""
        before = self._mean_answer(request.task)
        newest = float(usage.num_completion_tokens)
        self._answer_tokens[request.task] = newest if before is None else _mix(before, newest)
        if not isinstance(request.prompt, TokenPrompt) and usage.num_prompt_tokens:
            self._bytes_per_token = _mix(self._bytes_per_token, prompt_bytes(request) / usage.num_prompt_tokens)

    def _mean_answer(self, task: str) -> float | None:
        return self._answer_tokens.get(task, self._profiled_tokens.get(task))


def prompt_bytes(request: ParsedRequest) -> int:
    """UTF-8 bytes of what will be tokenized, without what a chat template adds."""
    match request.prompt:
        case TextPrompt(text=text):
            return len(text.encode())
        case ChatPrompt(messages=messages):
            return sum(len(content.encode()) for _, content in messages)
        case TokenPrompt(token_ids=ids):
            return 4 * len(ids)


def _mix(before: float, newest: float) -> float:
    return before + _NEWEST_SHARE * (newest - before)
