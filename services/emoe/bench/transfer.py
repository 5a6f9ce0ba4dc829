"""`emoe bench transfer`: what moves an expert's bytes from a loader to a worker, against a plain TCP copy between two
processes.

For each expert size a checkpoint of random experts is written, and read once so that its bytes are in the page cache.
Then the ways take turns, so many repeats of all of them; rates are compared within a repeat, for the machine's own
moods are larger than the differences.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from emoe.bench.children import child_process
from emoe.bench.failures import BenchmarkError
from emoe.bench.machine import describe_machine
from emoe.bench.transfer_ends import running_loader
from emoe.bench.transfer_model import write_experts
from emoe.bench.transfer_rows import Moved, TransferReport, TransferRow
from emoe.bench.transfer_ways import PlainReader, SharedReader, Way, move
from emoe.core.experts import ExpertId, from_grid
from emoe.runtime.grids import ModelId
from emoe.store.store import ExpertStore
from emoe.worker.loader_source import LoaderSource
from emoe.worker.sources import ExpertSource, LocalSource

GIB = 1 << 30
MAX_EXPERTS = 1024
PLAIN = "emoe.bench.transfer_plain"
ONE_STREAM, STREAMS = "plain tcp, one stream", "plain tcp"
ASKED, CALLS, BULK, NODE, FILES = "plain tcp, asked", "calls", "bulk", "passed files", "own files"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """`moved_bytes`: of each way in a repeat, in at most MAX_EXPERTS experts."""

    expert_bytes: tuple[int, ...] = (48 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20)
    connections: int = 4
    moved_bytes: int = 256 << 20
    repeats: int = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainEnd:
    pid: int
    port: int


async def bench_transfer(settings: TransferSettings, *, say: Callable[[str], None]) -> TransferReport:
    rows: list[TransferRow] = []
    async with child_process(PLAIN, {}, name="the plain sender") as child:
        plain = PlainEnd(pid=child.pid, port=(await child.ask())["port"])
        for expert_bytes in settings.expert_bytes:
            with tempfile.TemporaryDirectory(prefix="emoe-transfer-") as scratch:
                rows += await _measure_size(expert_bytes, settings, plain, Path(scratch), say)
    return TransferReport(
        benchmark="transfer",
        machine=describe_machine(threads=settings.connections),
        settings=dataclasses.asdict(settings),
        rows=tuple(rows),
    )


async def _measure_size(
    wanted_bytes: int, settings: TransferSettings, plain: PlainEnd, scratch: Path, say: Callable[[str], None]
) -> list[TransferRow]:
    num_experts = max(settings.connections, min(MAX_EXPERTS, settings.moved_bytes // wanted_bytes))
    say(f"experts of {wanted_bytes >> 10} KiB: writing {num_experts} of them")
    expert_bytes = await asyncio.to_thread(write_experts, scratch, expert_bytes=wanted_bytes, num_experts=num_experts)
    async with _ways(settings, expert_bytes, plain, scratch) as (ways, experts):
        for way in ways:
            await asyncio.to_thread(move, way, experts, expert_bytes=expert_bytes)
        samples: dict[Way, list[Moved]] = {way: [] for way in ways}
        for repeat in range(1, settings.repeats + 1):
            say(f"experts of {wanted_bytes >> 10} KiB: repeat {repeat} of {settings.repeats}")
            for way in ways:
                samples[way].append(await asyncio.to_thread(move, way, experts, expert_bytes=expert_bytes))
    return rows_of(samples, expert_bytes=expert_bytes)


@contextlib.asynccontextmanager
async def _ways(
    settings: TransferSettings, expert_bytes: int, plain: PlainEnd, scratch: Path
) -> AsyncIterator[tuple[Sequence[Way], Sequence[ExpertId]]]:
    """Of a checkpoint in `scratch`. BenchmarkError at the end when the bulk way has been none."""
    async with contextlib.AsyncExitStack() as stack:
        ends = {
            CALLS: await stack.enter_async_context(running_loader(scratch, bulk_listen="off")),
            BULK: await stack.enter_async_context(running_loader(scratch)),
            NODE: await stack.enter_async_context(running_loader(scratch, bulk_socket=str(scratch / "bulk.sock"))),
        }
        store = stack.enter_context(ExpertStore.open(scratch))
        sources = {name: LoaderSource(end.address, _id(store)) for name, end in ends.items()}
        for source in sources.values():
            stack.callback(source.close)
        plainly = ((ONE_STREAM, 1, True), (STREAMS, settings.connections, True), (ASKED, settings.connections, False))
        ways = (
            *(_plain(name, num, plain, expert_bytes, at_once=at_once) for name, num, at_once in plainly),
            *(_shared(name, source, settings.connections, ends[name].pid) for name, source in sources.items()),
            _shared(FILES, LocalSource(store), settings.connections, None),
        )
        experts = list(from_grid(store.grid.all_experts()))
        yield ways, experts
        num_moved = (settings.repeats + 1) * len(experts)
        for name in (BULK, NODE):
            if (num_in_bulk := sources[name].num_pulled_in_bulk) != num_moved:
                raise BenchmarkError(f"{name}: {num_in_bulk} of {num_moved} experts came so; see the lines above")


def _plain(name: str, connections: int, plain: PlainEnd, expert_bytes: int, *, at_once: bool) -> Way:
    def open_reader(num_experts: int) -> PlainReader:
        return PlainReader(plain.port, num_experts=num_experts, expert_bytes=expert_bytes, ordered_at_once=at_once)

    return Way(name=name, connections=connections, open_reader=open_reader, sender_pid=plain.pid)


def _shared(name: str, source: ExpertSource, connections: int, pid: int | None) -> Way:
    return Way(name=name, connections=connections, open_reader=lambda _: SharedReader(source), sender_pid=pid)


def _id(store: ExpertStore) -> ModelId:
    return ModelId(digest=store.digest, family=store.family)


def rows_of(samples: Mapping[Way, Sequence[Moved]], *, expert_bytes: int) -> list[TransferRow]:
    """Ratios are to the plain copy that is the faster in the median, each repeat's to that of the same repeat."""
    plain = [moved for way, moved in samples.items() if way.name in {ONE_STREAM, STREAMS}]
    fastest = max(plain, key=lambda moved: statistics.median(map(_rate, moved)))
    return [
        TransferRow(
            expert_bytes=expert_bytes,
            way=way.name,
            connections=way.connections,
            gib_per_second=statistics.median(map(_rate, moved)),
            tcp_ratio=statistics.median(_rate(one) / _rate(other) for one, other in zip(moved, fastest, strict=True)),
            processor_seconds_per_gib=statistics.median(one.processor_seconds * GIB / one.num_bytes for one in moved),
            expert_p50_seconds=statistics.median(one.expert_seconds for one in moved),
            samples=tuple(moved),
        )
        for way, moved in samples.items()
    ]


def _rate(moved: Moved) -> float:
    return moved.num_bytes / GIB / moved.wall_seconds
