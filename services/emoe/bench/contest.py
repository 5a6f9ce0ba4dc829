"""`emoe bench engine`: emoe at each budget against its peers, a process each, turn by turn.

A round is one turn of every contestant with the same prompts, and each begins with another one: what the machine does
beside it falls on all alike. What was measured stays readable while the run goes on, so that it may be broken off.
"""

from __future__ import annotations

from pathlib import Path

from emoe.bench.contest_io import Say
from emoe.bench.contest_processes import Processes
from emoe.bench.contest_records import ContestSettings, Record, Results
from emoe.bench.contest_turns import Draw, Turns
from emoe.bench.contestants import LLAMA, Contestant, Model, build_ours, build_peers
from emoe.bench.failures import BenchmarkError
from emoe.bench.memory_cgroup import memory_cgroup
from emoe.bench.peers.gguf_file import make_gguf
from emoe.bench.peers.places import Places
from emoe.core.memory import parse_memory
from emoe.store.footprint import measure
from emoe.store.store import ExpertStore


async def run_contest(
    folder: Path,
    results: Results,
    settings: ContestSettings,
    draw: Draw,
    *,
    work: Path,
    places: Places,
    say: Say,
) -> None:
    """`work` is a folder for what peers make of the model. BenchmarkError where a cap is asked and none can be made."""
    with ExpertStore.open(folder) as store:
        footprint = measure(store)
    model = Model(folder=folder, work=work, base_bytes=footprint.base_bytes, expert_bytes=footprint.all_expert_bytes)
    if settings.memory_cap is not None:
        results.memory_cap_bytes = parse_memory(settings.memory_cap, total_bytes=model.base_bytes + model.expert_bytes)
        with memory_cgroup(results.memory_cap_bytes):
            pass  # where none can be made, that is said before anything starts
    contest = _Contest(model, results, settings, draw, say=say)
    await contest.run(await contest.line_up(places))


class _Contest:
    def __init__(self, model: Model, results: Results, settings: ContestSettings, draw: Draw, *, say: Say) -> None:
        self._model = model
        self._results = results
        self._settings = settings
        self._say = say
        self._processes = Processes(model, settings, cap_bytes=results.memory_cap_bytes)
        self._turns = Turns(settings, draw)

    async def line_up(self, places: Places) -> list[Contestant]:
        """Those that can be measured; a note for each that cannot. Takes the float32 logits, in a process that ends
        before the contest begins."""
        peers, notes = build_peers(self._model, self._settings.peers, places)
        for note in notes:
            self._note(note)
        if any(each.engine == LLAMA for each in peers):
            self._say("writing the weights as GGUF for llama.cpp")
            try:
                await make_gguf(self._model.folder, self._model.work / "model.gguf", places)
            except BenchmarkError as error:
                self._note(str(error))
                peers = [each for each in peers if each.engine != LLAMA]
        self._say("float32 reference")
        async with self._processes.reference() as child:
            self._results.reference_logits = await self._turns.logits(child)
        return [*build_ours(self._model, self._settings.budgets, self._settings.policies), *peers]

    async def run(self, contestants: list[Contestant]) -> None:
        self._results.records += [Record(contestant=each) for each in contestants]
        async with self._processes.kept(contestants) as line:
            if line is not None:
                self._note(f"{self._results.name}: {line}")
            for record in self._results.records:
                self._say(f"starting {record.contestant.name}")
                await self._first_turn(record)
            for batch in self._settings.batches:
                for number in range(1, self._settings.repeats + 1):
                    await self._round(batch, number)
                    self._say(f"batch {batch}: round {number} of {self._settings.repeats}")

    async def _first_turn(self, record: Record) -> None:
        try:
            async with self._processes.opened(record.contestant) as child:
                await self._turns.first(record, child)
        except BenchmarkError as error:
            self._give_up(record, error)

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
        async with self._processes.opened(record.contestant) as child:
            if not self._processes.wait:
                await self._turns.warm(child)
            await self._turns.measured(record, child, batch, number)

    def _give_up(self, record: Record, error: BenchmarkError) -> None:
        record.failed = str(error)
        left = "not measured further" if record.samples else "not measured"
        self._note(f"{self._results.name}: {record.contestant.name}: {left}: {error}")

    def _note(self, line: str) -> None:
        self._results.notes.append(line)
        self._say(line)
