"""`emoe bench transfer --device`: how fast whole experts come into a device's slots, against copies of pinned memory.

Three ways take turns: one pinned buffer copied again and again, which is what the link gives; the worker's own transfer
with its bytes at hand; the same with experts read from the page cache. Rates are compared within a repeat.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from emoe.bench.failures import BenchmarkError
from emoe.bench.machine import describe_machine
from emoe.bench.rows import Machine
from emoe.bench.transfer_model import write_experts
from emoe.core.experts import ExpertId, from_grid
from emoe.store.store import ExpertStore
from emoe.worker.sources import LocalSource
from emoe.worker.transfer import CudaTransfer, Transfer

GIB = 1 << 30
MAX_EXPERTS = 1024
MAX_SLOTS_BYTES = 1 << 30
PINNED, AT_HAND, READ = "pinned copy", "experts, bytes at hand", "experts, page cache"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copied:
    num_bytes: int
    wall_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceCopyRow:
    """Medians. `pinned_ratio`: of the rate to that of plain pinned copies of this size, repeat by repeat."""

    expert_bytes: int
    way: str
    threads: int
    gib_per_second: float
    pinned_ratio: float
    samples: tuple[Copied, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceCopyReport:
    benchmark: str
    machine: Machine
    device: str
    settings: Mapping[str, object]
    rows: tuple[DeviceCopyRow, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopySettings:
    """`moved_bytes`: of each way in a repeat, in at most MAX_EXPERTS experts. `threads`: as a worker's io_threads."""

    expert_bytes: tuple[int, ...]
    threads: int
    moved_bytes: int
    repeats: int


class AtHand:
    """A source whose bytes are in the buffer already: what is left is the copy."""

    def read_into(self, expert: ExpertId, buffer: memoryview) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing is held."""


Way = Callable[[], None]


def bench_device_copies(settings: CopySettings, device: str, *, say: Callable[[str], None]) -> DeviceCopyReport:
    """BenchmarkError where torch sees no such device."""
    target = _check(device)
    rows: list[DeviceCopyRow] = []
    for wanted_bytes in settings.expert_bytes:
        with tempfile.TemporaryDirectory(prefix="emoe-transfer-") as scratch:
            rows += _measure_size(wanted_bytes, settings, target, Path(scratch), say)
    return DeviceCopyReport(
        benchmark="device transfer",
        machine=describe_machine(threads=settings.threads),
        device=torch.cuda.get_device_name(target),
        settings=dataclasses.asdict(settings),
        rows=tuple(rows),
    )


def _check(device: str) -> torch.device:
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise BenchmarkError(f"--device {device}: no such device; write cuda or cuda:0") from error
    if target.type != "cuda" or not torch.cuda.is_available() or (target.index or 0) >= torch.cuda.device_count():
        raise BenchmarkError(f"--device {device} needs a CUDA device of that name: torch sees none")
    return target


def _measure_size(
    wanted_bytes: int, settings: CopySettings, device: torch.device, scratch: Path, say: Callable[[str], None]
) -> list[DeviceCopyRow]:
    num_experts = max(settings.threads, min(MAX_EXPERTS, settings.moved_bytes // wanted_bytes))
    say(f"experts of {wanted_bytes >> 10} KiB: writing {num_experts} of them")
    expert_bytes = write_experts(scratch, expert_bytes=wanted_bytes, num_experts=num_experts)
    slots_SB = torch.empty(
        max(1, min(num_experts, MAX_SLOTS_BYTES // expert_bytes)), expert_bytes, dtype=torch.uint8, device=device
    )
    samples: dict[str, list[Copied]] = {}
    with _ways(settings, slots_SB, scratch) as ways:
        for repeat in range(settings.repeats + 1):
            say(f"experts of {wanted_bytes >> 10} KiB: repeat {repeat} of {settings.repeats}; 0 is not counted")
            for name, way in ways.items():
                copied = _timed(way, device, num_bytes=num_experts * expert_bytes)
                samples.setdefault(name, []).extend([copied] if repeat else [])
    return rows_of(samples, expert_bytes=expert_bytes, threads=settings.threads)


@contextlib.contextmanager
def _ways(settings: CopySettings, slots_SB: torch.Tensor, scratch: Path) -> Iterator[Mapping[str, Way]]:
    pinned = torch.empty(slots_SB.shape[1], dtype=torch.uint8, pin_memory=True)
    with ExpertStore.open(scratch) as store, concurrent.futures.ThreadPoolExecutor(settings.threads) as pool:
        experts = list(from_grid(store.grid.all_experts()))
        transfers = {
            name: CudaTransfer(
                source, expert_bytes=slots_SB.shape[1], num_buffers=settings.threads, device=slots_SB.device
            )
            for name, source in ((AT_HAND, AtHand()), (READ, LocalSource(store)))
        }
        loads = {
            name: functools.partial(load_experts, transfer, experts, slots_SB, pool)
            for name, transfer in transfers.items()
        }
        yield {PINNED: functools.partial(_copy_plainly, pinned, slots_SB, len(experts)), **loads}


def _copy_plainly(pinned: torch.Tensor, slots_SB: torch.Tensor, num_copies: int) -> None:
    for copy in range(num_copies):
        slots_SB[copy % len(slots_SB)].copy_(pinned, non_blocking=True)


def load_experts(
    transfer: Transfer, experts: Sequence[ExpertId], slots_SB: torch.Tensor, pool: concurrent.futures.Executor
) -> None:
    """Each expert into a slot, as a worker's loading threads do it; the i-th into slot i modulo their number."""
    fence = transfer.fence()
    loads = [
        pool.submit(transfer.load, expert, slots_SB[position % len(slots_SB)], fence)
        for position, expert in enumerate(experts)
    ]
    for load in loads:
        load.result()()


def _timed(way: Way, device: torch.device, *, num_bytes: int) -> Copied:
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    way()
    torch.cuda.synchronize(device)
    return Copied(num_bytes=num_bytes, wall_seconds=time.perf_counter() - began)


def rows_of(samples: Mapping[str, Sequence[Copied]], *, expert_bytes: int, threads: int) -> list[DeviceCopyRow]:
    plain = samples[PINNED]
    return [
        DeviceCopyRow(
            expert_bytes=expert_bytes,
            way=name,
            threads=1 if name == PINNED else threads,
            gib_per_second=statistics.median(map(_rate, copied)),
            pinned_ratio=statistics.median(_rate(one) / _rate(other) for one, other in zip(copied, plain, strict=True)),
            samples=tuple(copied),
        )
        for name, copied in samples.items()
    ]


def _rate(copied: Copied) -> float:
    return copied.num_bytes / GIB / copied.wall_seconds
