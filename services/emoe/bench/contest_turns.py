"""One contestant's turn in its process: what it is asked, and what is read off the process meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from emoe.bench.anonymous import watched
from emoe.bench.children import ChildProcess
from emoe.bench.contest_io import drop_pages, processor_seconds, storage_bytes_read
from emoe.bench.contest_records import ContestSettings, Record
from emoe.bench.contestants import Contestant
from emoe.bench.rows import ContestSample

WARM_TOKENS = 2

Number = TypeVar("Number", int, float)
Prompts = list[list[int]]
Draw = Callable[[int, int], Prompts]
"""(batch, round) -> prompts. Round 0 is the first, cold turn."""


class Turns:
    def __init__(self, settings: ContestSettings, draw: Draw) -> None:
        self._settings = settings
        self._draw = draw

    async def first(self, record: Record, child: ChildProcess) -> None:
        """Cold: the files' pages are dropped between loading and answering."""
        contestant = record.contestant
        async with watched(child.pid) as watch:
            await child.ask(step="ready")
            drop_pages(contestant.files)
            before = storage_bytes_read(child.pid)
            await child.ask(step="generate", prompts=self._draw(1, 0), new_tokens=self._new_tokens(contestant))
            record.bytes_read = _gone_up(before, storage_bytes_read(child.pid))
            record.peak_anon_bytes = watch.peak_bytes
        record.logits = await self.logits(child)

    async def logits(self, child: ChildProcess) -> list[float]:
        logits: list[float] = (await child.ask(step="logits", prompt=self._draw(1, 0)[0]))["logits"]
        return logits

    async def warm(self, child: ChildProcess) -> None:
        """Of a process that was only just started."""
        await child.ask(step="generate", prompts=self._draw(1, 0), new_tokens=WARM_TOKENS)

    async def measured(self, record: Record, child: ChildProcess, batch: int, number: int) -> None:
        new_tokens = self._new_tokens(record.contestant)
        prompts = self._draw(batch, number)
        async with watched(child.pid) as watch:
            read, processor = storage_bytes_read(child.pid), processor_seconds(child.pid)
            answer = await child.ask(step="generate", prompts=prompts, new_tokens=new_tokens)
            read = _gone_up(read, storage_bytes_read(child.pid))
            processor = _gone_up(processor, processor_seconds(child.pid))
            record.peak_anon_bytes = max(record.peak_anon_bytes, watch.peak_bytes)
        sample = ContestSample(
            prefill_seconds=answer["prefill_seconds"],
            decode_seconds=answer["total_seconds"] - answer["prefill_seconds"],
            num_decoded_tokens=batch * (new_tokens - 1),
            bytes_needed=answer.get("bytes_needed"),
            bytes_copied=answer.get("bytes_copied"),
            bytes_read=read,
            processor_seconds=processor,
        )
        record.samples.setdefault(batch, []).append(sample)

    def _new_tokens(self, contestant: Contestant) -> int:
        return min(self._settings.new_tokens, contestant.max_new_tokens or self._settings.new_tokens)


def _gone_up(before: Number | None, after: Number | None) -> Number | None:
    return None if before is None or after is None else after - before
