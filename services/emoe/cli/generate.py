"""`emoe generate`: one question to the running system; the answer on stdout as it comes, its figures on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio

from emoe.cli.display import format_ratio
from emoe.cli.failures import CommandError
from emoe.cli.generation_client import Answer, Question, ask, check_scheduler
from emoe.cli.runfile import find_running_system
from emoe.runtime.channels import CHANNEL_OPTIONS, open_channel

MAX_PORT = 65535


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Where a scheduler answers. With `tls`, by the certificate authorities that this machine trusts, or those of
    GRPC_DEFAULT_SSL_ROOTS_FILE_PATH."""

    address: str
    tls: bool = False

    def open_channel(self) -> grpc.aio.Channel:
        if not self.tls:
            return open_channel(self.address)
        return grpc.aio.secure_channel(self.address, grpc.ssl_channel_credentials(), options=CHANNEL_OPTIONS)


def find_target(given: str | None, state_dir: Path, *, tls: bool = False) -> Target:
    """`given`, or the `emoe up` that runs with this state folder."""
    if given:
        return Target(address=parse_address(given), tls=tls)
    system = find_running_system(state_dir)
    if system is None:
        raise CommandError("no emoe up runs here: start one, or name a scheduler with --target host:port")
    return Target(address=system.scheduler)


def parse_address(text: str) -> str:
    """`host:port`, `[v6]:port` or `unix:/path`."""
    host, _, port = text.rpartition(":")
    if text.startswith("unix:"):
        return text
    if not host or "/" in text or (":" in host and not host.startswith("[")) or not port.isdecimal():
        raise CommandError(f"--target {text} is not host:port, such as 127.0.0.1:8000; it has no scheme and no path")
    if not 1 <= int(port) <= MAX_PORT:
        raise CommandError(f"--target {text} has port {port}; a port is 1 to {MAX_PORT}")
    return text


async def generate(target: Target, question: Question, *, timeout_seconds: float, as_json: bool) -> None:
    if as_json:
        print(json.dumps(describe_answer(await _ask(target, question, timeout_seconds, on_text=_ignore))))
        return
    printer = StreamPrinter()
    try:
        answer = await _ask(target, question, timeout_seconds, on_text=printer.print)
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


async def _ask(target: Target, question: Question, timeout_seconds: float, *, on_text: Callable[[str], None]) -> Answer:
    async with target.open_channel() as channel:
        await check_scheduler(channel, target.address, timeout_seconds=timeout_seconds)
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
