"""`emoe generate`: one question to the running system; the answer on stdout as it comes, its figures on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emoe.cli.display import format_ratio
from emoe.cli.failures import CommandError
from emoe.cli.generation_client import Answer, Question, ask
from emoe.cli.runfile import find_running_system
from emoe.runtime.channels import open_channel


def find_scheduler(address: str | None, state_dir: Path) -> str:
    """`address`, or that of the `emoe up` that runs with this state folder."""
    if address:
        return address
    system = find_running_system(state_dir)
    if system is None:
        raise CommandError("no emoe up runs here: start one, or name a scheduler with --address host:port")
    return system.scheduler


async def generate(address: str, question: Question, *, timeout_seconds: float, as_json: bool) -> None:
    if as_json:
        print(json.dumps(describe_answer(await _ask(address, question, timeout_seconds, on_text=_ignore))))
        return
    printer = StreamPrinter()
    try:
        answer = await _ask(address, question, timeout_seconds, on_text=printer.print)
    finally:
        printer.end()
    print(summarize_answer(answer), file=sys.stderr)


class StreamPrinter:
    """Text on stdout as it comes; whatever follows begins on a line of its own."""

    def __init__(self) -> None:
        self._last = "\n"

    def print(self, text: str) -> None:
        print(text, end="", flush=True)
        self._last = text[-1]

    def end(self) -> None:
        if self._last != "\n":
            print(flush=True)


async def _ask(address: str, question: Question, timeout_seconds: float, *, on_text: Callable[[str], None]) -> Answer:
    async with open_channel(address) as channel:
        return await ask(channel, question, timeout_seconds=timeout_seconds, on_text=on_text)


def _ignore(_text: str) -> None:
    """With --json the text comes with the rest, at the end."""


def summarize_answer(answer: Answer) -> str:
    speed = answer.decode_tokens_per_second
    figures = (
        f"task {answer.task or '-'}",
        f"TTFT {answer.ttft_seconds:.3f} s",
        f"{'-' if speed is None else f'{speed:.1f}'} tokens/s",
        f"hit rate {format_ratio(answer.hit_rate)}",
        f"{answer.usage.num_prompt_tokens} prompt and {answer.usage.num_completion_tokens} answer tokens",
        f"ended by {answer.finish_reason.value}",
    )
    return ", ".join(figures)


def describe_answer(answer: Answer) -> dict[str, Any]:
    """All of an answer, for a program."""
    usage = answer.usage
    return {
        "text": answer.text,
        "task": answer.task,
        "finish_reason": answer.finish_reason.value,
        "ttft_seconds": answer.ttft_seconds,
        "total_seconds": answer.total_seconds,
        "queue_seconds": answer.queue_seconds,
        "decode_tokens_per_second": answer.decode_tokens_per_second,
        "hit_rate": answer.hit_rate,
        "num_expert_hits": usage.num_expert_hits,
        "num_expert_choices": usage.num_expert_choices,
        "num_prompt_tokens": usage.num_prompt_tokens,
        "num_completion_tokens": usage.num_completion_tokens,
        "request_id": answer.request_id,
        "worker_id": answer.worker_id,
    }
