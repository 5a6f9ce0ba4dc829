"""A recorded stream of requests for the simulator: arrivals, lengths and tasks, at any load and by any seed.

CSV, .gz or not, with a header: arrival_s, prompt_tokens, output_tokens, and task where there is one. Seed 0 is the
stream as recorded; any other draws its minutes anew, with replacement, so that what stands within a minute (bursts,
who follows whom) stays and what minutes follow each other does not. A load is made by compressing or stretching time.
"""

from __future__ import annotations

import bisect
import csv
import dataclasses
import gzip
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from emoe.core.errors import InvalidRequestError
from emoe.core.tasks import parse_task_name

BLOCK_SECONDS = 60.0
UNTOLD_TASK = "long-context"
"""Of a trace without a task column, as `slo.toml` has it for the one that has none."""
_NEEDED = frozenset({"arrival_s", "prompt_tokens", "output_tokens"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests in order of arrival; the lists are as long as each other."""

    name: str
    arrived_seconds: list[float]
    prompt_tokens: list[int]
    answer_tokens: list[int]
    tasks: list[str]
    span_seconds: float
    """What the arrivals are spread over: the load is their number over it."""

    def __len__(self) -> int:
        return len(self.arrived_seconds)

    @property
    def load_rps(self) -> float:
        return len(self) / self.span_seconds

    def at_load(self, load_rps: float) -> Workload:
        """The same requests in so much less or more time."""
        factor = self.load_rps / load_rps
        return dataclasses.replace(
            self,
            arrived_seconds=[at * factor for at in self.arrived_seconds],
            span_seconds=self.span_seconds * factor,
        )

    def drawn(self, seed: int, *, num_requests: int | None = None) -> Workload:
        """By the seed, and no more than `num_requests`: seed 0 takes the first ones, others whatever minutes."""
        most = len(self) if num_requests is None else min(num_requests, len(self))
        chosen: list[tuple[float, int]] = []
        for offset_seconds, first, last in self._blocks(seed):
            chosen += [(offset_seconds + self.arrived_seconds[place], place) for place in range(first, last)]
            if len(chosen) >= most and num_requests is not None:
                break
        return self._taken(chosen[:most] if num_requests is not None else chosen)

    def _blocks(self, seed: int) -> Iterator[tuple[float, int, int]]:
        """(what to add to its arrivals, first, last) of each minute, as many as the trace has."""
        num_blocks = max(1, round(self.span_seconds / BLOCK_SECONDS))
        drawn = random.Random(seed)
        for number in range(num_blocks):
            block = number if seed == 0 else drawn.randrange(num_blocks)
            begin = block * BLOCK_SECONDS
            end = begin + BLOCK_SECONDS if block < num_blocks - 1 else self.span_seconds + 1.0
            first, last = (bisect.bisect_left(self.arrived_seconds, at) for at in (begin, end))
            yield (number - block) * BLOCK_SECONDS, first, last

    def _taken(self, chosen: list[tuple[float, int]]) -> Workload:
        chosen.sort()
        begin = chosen[0][0] if chosen else 0.0
        rate = self.load_rps
        span_seconds = max(chosen[-1][0] - begin, 1e-3) if len(chosen) > 1 else 1.0 / rate
        return dataclasses.replace(
            self,
            arrived_seconds=[at - begin for at, _ in chosen],
            prompt_tokens=[self.prompt_tokens[place] for _, place in chosen],
            answer_tokens=[self.answer_tokens[place] for _, place in chosen],
            tasks=[self.tasks[place] for _, place in chosen],
            span_seconds=span_seconds,
        )


def read_workload(trace: Path, *, task: str = UNTOLD_TASK) -> Workload:
    """InvalidRequestError says which line is wrong, and how."""
    try:
        with open_text(trace) as lines:
            rows = sorted(_parse(trace, lines, task), key=lambda row: row[0])
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{trace}: cannot be read ({error})") from error
    if len(rows) < 2 or rows[-1][0] == rows[0][0]:
        raise InvalidRequestError(f"{trace} has {len(rows)} requests; a load needs two at least, at different times")
    begin = rows[0][0]
    return Workload(
        name=trace.name.removesuffix(".gz").removesuffix(".csv"),
        arrived_seconds=[row[0] - begin for row in rows],
        prompt_tokens=[row[1] for row in rows],
        answer_tokens=[row[2] for row in rows],
        tasks=[row[3] for row in rows],
        span_seconds=rows[-1][0] - begin,
    )


def _parse(trace: Path, lines: TextIO, task: str) -> Iterator[tuple[float, int, int, str]]:
    reader = csv.DictReader(lines)
    lacking = _NEEDED - set(reader.fieldnames or ())
    if lacking:
        raise InvalidRequestError(f"{trace} has no column {', '.join(sorted(lacking))}")
    for number, entry in enumerate(reader, start=2):
        try:
            name = parse_task_name(entry.get("task") or task)
            at, prompt, answer = float(entry["arrival_s"]), int(entry["prompt_tokens"]), int(entry["output_tokens"])
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"{trace}, line {number}: {error}") from error
        if not (0 <= at < 1e9 and prompt > 0 and answer > 0):
            raise InvalidRequestError(f"{trace}, line {number}: a time and two lengths above zero are wanted")
        yield at, prompt, answer, name


def open_text(trace: Path) -> TextIO:
    if trace.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(trace, "rb"), encoding="utf-8", newline="")
    return trace.open(encoding="utf-8", newline="")
