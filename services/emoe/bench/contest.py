"""`emoe bench engine`: emoe at each budget against its peers, a process each, turn by turn.

A round is one turn of every contestant with the same prompts, and each begins with another one: what the machine does
beside it falls on all alike. Processes stay and wait where memory holds them all, else each is started anew for its
turn. What was measured stays readable while the run goes on, so that it may be broken off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from emoe.bench.anonymous import watched
from emoe.bench.children import ChildProcess, child_process
from emoe.bench.contest_io import drop_pages, free_memory_bytes, storage_bytes_read
from emoe.bench.contestants import Contestant, Model, build_ours, build_peers
from emoe.bench.failures import BenchmarkError
from emoe.bench.peers.gguf_file import make_gguf
from emoe.bench.peers.places import Places
from emoe.bench.rows import ContestSample
from emoe.store.footprint import measure
from emoe.store.store import ExpertStore

MEMORY_SHARE = 0.7
"""Of the memory that is free, what processes that wait may take."""

Say = Callable[[str], None]
Prompts = list[list[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContestSettings:
    budgets: tuple[float, ...]
    policies: tuple[str, ...]
    peers: tuple[str, ...]
    batches: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    repeats: int
    threads: int


@dataclasses.dataclass(kw_only=True)
class Record:
    """One contestant's measurements so far."""

    contestant: Contestant
    samples: dict[int, list[ContestSample]] = dataclasses.field(default_factory=dict)
    peak_anon_bytes: int = 0
    bytes_read: int | None = None
    logits: list[float] | None = None
    failed: str | None = None


@dataclasses.dataclass(kw_only=True)
class Results:
    """Of one model; filled as the run goes on."""

    name: str
    records: list[Record] = dataclasses.field(default_factory=list)
    reference_logits: list[float] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


async def run_contest(
    folder: Path,
    results: Results,
    settings: ContestSettings,
    draw: Callable[[int, int], Prompts],
    *,
    work: Path,
    places: Places,
    say: Say,
) -> None:
    """`draw(batch, round)` gives the prompts; round 0 is the first, cold turn. `work` is a folder for what peers make
    of the model."""
    with ExpertStore.open(folder) as store:
        footprint = measure(store)
    model = Model(folder=folder, work=work, base_bytes=footprint.base_bytes, expert_bytes=footprint.all_expert_bytes)
    contest = _Contest(model, results, settings, draw, say=say)
    async with contest.opened(await contest.line_up(places)):
        await contest.take_turns()


class _Contest:
    def __init__(
        self,
        model: Model,
        results: Results,
        settings: ContestSettings,
        draw: Callable[[int, int], Prompts],
        *,
        say: Say,
    ) -> None:
        self._model = model
        self._results = results
        self._settings = settings
        self._draw = draw
        self._say = say
        self._children: dict[int, ChildProcess] = {}

    async def line_up(self, places: Places) -> list[Contestant]:
        settings, results = self._settings, self._results
        peers, notes = build_peers(self._model, settings.peers, places)
        results.notes += notes
        for note in notes:
            self._say(note)
        if any(each.engine == "llama.cpp" for each in peers):
            self._say("writing the weights as GGUF for llama.cpp")
            try:
                await make_gguf(self._model.folder, self._model.work / "model.gguf", places)
            except BenchmarkError as error:
                results.notes.append(str(error))
                peers = [each for each in peers if each.engine != "llama.cpp"]
        await self._take_reference()
        return [*build_ours(self._model, settings.budgets, settings.policies), *peers]

    async def _take_reference(self) -> None:
        """Logits in float32, in a process that ends before the contest begins."""
        self._say("float32 reference")
        options = self._options({"kind": "float32"})
        async with child_process(
            "emoe.bench.contestant_child", options, name="the float32 reference", own_session=True
        ) as child:
            answer = await child.ask(step="logits", prompt=self._draw(1, 0)[0])
            self._results.reference_logits = answer["logits"]

    @contextlib.asynccontextmanager
    async def opened(self, contestants: Sequence[Contestant]) -> AsyncIterator[None]:
        """All of them, waiting, or none where memory would not hold them."""
        wanted, free = sum(each.likely_bytes for each in contestants), free_memory_bytes()
        keep = wanted <= MEMORY_SHARE * free
        if not keep:
            line = f"each process is started anew for its turn: {wanted / 1e9:.1f} GB for all, {free / 1e9:.1f} GB free"
            self._results.notes.append(f"{self._results.name}: {line}")
            self._say(line)
        self._results.records += [Record(contestant=each) for each in contestants]
        async with contextlib.AsyncExitStack() as stack:
            for record in self._results.records:
                await self._first_turn(record, stack if keep else None)
            yield

    async def _first_turn(self, record: Record, stack: contextlib.AsyncExitStack | None) -> None:
        self._say(f"starting {record.contestant.name}")
        try:
            if stack is not None:
                child = await stack.enter_async_context(self._process(record))
                self._children[id(record)] = child
                await self._cold_turn(record, child)
                return
            async with self._process(record) as child:
                await self._cold_turn(record, child)
        except BenchmarkError as error:
            self._give_up(record, error)

    async def _cold_turn(self, record: Record, child: ChildProcess) -> None:
        contestant = record.contestant
        async with watched(child.pid) as watch:
            await child.ask(step="ready")
            drop_pages(contestant.files)
            before = storage_bytes_read(child.pid)
            await child.ask(step="generate", prompts=self._draw(1, 0), new_tokens=self._new_tokens(contestant))
            after = storage_bytes_read(child.pid)
            record.bytes_read = None if before is None or after is None else after - before
            record.peak_anon_bytes = watch.peak_bytes
        record.logits = (await child.ask(step="logits", prompt=self._draw(1, 0)[0]))["logits"]

    async def take_turns(self) -> None:
        for batch in self._settings.batches:
            for number in range(1, self._settings.repeats + 1):
                await self._round(batch, number)
                self._say(f"batch {batch}: round {number} of {self._settings.repeats}")

    async def _round(self, batch: int, number: int) -> None:
        records = [
            each
            for each in self._results.records
            if each.failed is None and batch <= (each.contestant.max_batch or batch)
        ]
        first = number % max(1, len(records))
        for record in records[first:] + records[:first]:
            try:
                await self._turn(record, batch, number)
            except BenchmarkError as error:
                self._give_up(record, error)

    async def _turn(self, record: Record, batch: int, number: int) -> None:
        if (child := self._children.get(id(record))) is not None:
            await self._measured_turn(record, child, batch, number)
            return
        async with self._process(record) as child:
            await child.ask(step="generate", prompts=self._draw(1, 0), new_tokens=2)
            await self._measured_turn(record, child, batch, number)

    async def _measured_turn(self, record: Record, child: ChildProcess, batch: int, number: int) -> None:
        new_tokens = self._new_tokens(record.contestant)
        async with watched(child.pid) as watch:
            answer = await child.ask(step="generate", prompts=self._draw(batch, number), new_tokens=new_tokens)
            record.peak_anon_bytes = max(record.peak_anon_bytes, watch.peak_bytes)
        sample = ContestSample(
            prefill_seconds=answer["prefill_seconds"],
            decode_seconds=answer["total_seconds"] - answer["prefill_seconds"],
            num_decoded_tokens=batch * (new_tokens - 1),
            bytes_needed=answer.get("bytes_needed"),
            bytes_copied=answer.get("bytes_copied"),
        )
        record.samples.setdefault(batch, []).append(sample)

    def _new_tokens(self, contestant: Contestant) -> int:
        return min(self._settings.new_tokens, contestant.max_new_tokens or self._settings.new_tokens)

    def _process(self, record: Record) -> contextlib.AbstractAsyncContextManager[ChildProcess]:
        contestant = record.contestant
        return child_process(
            contestant.module,
            self._options(contestant.options),
            name=contestant.name,
            python=contestant.python or sys.executable,
            environment=contestant.environment,
            own_session=True,
        )

    def _options(self, own: Mapping[str, object]) -> dict[str, object]:
        settings = self._settings
        return {
            "model": str(self._model.folder),
            "threads": settings.threads,
            "max_context": settings.prompt_tokens + settings.new_tokens,
            "max_concurrency": max(settings.batches),
            **own,
        }

    def _give_up(self, record: Record, error: BenchmarkError) -> None:
        record.failed = str(error)
        line = f"{self._results.name}: {record.contestant.name}: not measured: {error}"
        self._results.notes.append(line)
        self._say(line)
