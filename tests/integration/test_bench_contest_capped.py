"""`emoe bench engine` under a memory cap and broken off, with real processes over kilobytes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from emoe.bench.contest import run_contest
from emoe.bench.contest_prompts import prompts_of
from emoe.bench.contest_records import ContestSettings, Results
from emoe.bench.contest_report import build_rows
from emoe.bench.failures import BenchmarkError
from emoe.bench.memory_cgroup import MOUNT, memory_cgroup
from emoe.bench.peers.places import Places, default_place
from emoe.bench.planted import PlantedShape
from emoe.bench.planted_files import planted_checkpoint

MEBIBYTE = 1024 * 1024
ENOUGH, TOO_LITTLE = 1500 * MEBIBYTE, 100 * MEBIBYTE


def small(folder: Path) -> Path:
    shape = PlantedShape(
        family="mixtral",
        hidden_size=64,
        intermediate_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=420,
        num_tasks=3,
        num_experts=8,
        top_k=2,
        subset=3,
    )
    return planted_checkpoint("small", shape, cache=folder, say=lambda _line: None)


def can_cap() -> bool:
    try:
        with memory_cgroup(ENOUGH):
            return True
    except BenchmarkError:
        return False


def left_cgroups(pid: int) -> list[Path]:
    return [path for root in (MOUNT, MOUNT / "memory") for path in root.glob(f"emoe-bench-{pid}-*")]


async def contest(folder: Path, work: Path, **changed: object) -> tuple[Results, ContestSettings]:
    options: dict[str, object] = {
        "budgets": (0.5,),
        "policies": ("load",),
        "peers": (),
        "batches": (1,),
        "prompt_tokens": 8,
        "new_tokens": 3,
        "repeats": 1,
        "threads": 1,
    }
    settings = ContestSettings(**options | changed)  # type: ignore[arg-type]
    results = Results(name="small")
    prompts = prompts_of(folder, num_tokens=settings.prompt_tokens)
    places = Places(folder=default_place())
    await run_contest(folder, results, settings, prompts, work=work, places=places, say=lambda _line: None)
    return results, settings


@pytest.mark.skipif(not can_cap(), reason="no memory cgroup can be made here")
async def test_a_capped_turn_has_its_own_cgroup_and_reads_its_own_pages(tmp_path: Path) -> None:
    results, settings = await contest(small(tmp_path), tmp_path, memory_cap=str(ENOUGH))
    (row,) = build_rows(results, settings)
    assert row.memory_cap_bytes == ENOUGH
    assert row.bytes_read is not None
    assert row.samples[0].processor_seconds is not None
    assert results.notes == [
        "small: each process is started anew for its turn, in a memory cgroup of 1500 MiB, page cache included"
    ]
    assert left_cgroups(os.getpid()) == []


@pytest.mark.skipif(not can_cap(), reason="no memory cgroup can be made here")
async def test_what_the_cap_kills_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    results, settings = await contest(small(tmp_path), tmp_path, memory_cap=str(TOO_LITTLE), peers=("eager",))
    assert build_rows(results, settings) == []
    assert results.notes[1:] == [
        "small: emoe load at 50.0%: not measured: killed at the cap of 100 MiB",
        "small: transformers eager: not measured: killed at the cap of 100 MiB",
    ]
    assert left_cgroups(os.getpid()) == []


async def test_several_prompts_at_once_are_one_batch_for_all_who_can(tmp_path: Path) -> None:
    peers = ("eager", "grouped_mm", "disk", "llama.cpp")
    results, settings = await contest(small(tmp_path), tmp_path, peers=peers, batches=(8,))
    rows = build_rows(results, settings)
    missing = [note for note in results.notes if note.endswith("not measured: run make bench-peers")]
    assert len(rows) + len(missing) == 5
    assert results.notes == missing
    assert all(sample.num_decoded_tokens == 8 * 2 for row in rows for sample in row.samples)


@contextlib.contextmanager
def running(folder: Path, tmp_path: Path, *, capped: bool) -> Iterator[subprocess.Popen[str]]:
    """Ignores SIGINT from birth, as a shell's background job does."""
    words = ["--budgets", "50%", "--policies", "load", "--peers", "none", "--threads", "1", "--repeats", "100000"]
    words += ["--prompt-tokens", "8", "--new-tokens", "2", "--cache", str(tmp_path / "cache")]
    words += ["--json", str(tmp_path / "report.json"), *(["--memory-cap", "1500MiB"] if capped else [])]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "emoe.cli.main", "bench", "engine", str(folder), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def processes_of(folder: Path) -> list[str]:
    """Those that name the folder in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder) in (words := path.read_bytes().decode(errors="replace")):
                found.append(words)
    return found


@pytest.mark.parametrize(
    ("number", "capped"), [(signal.SIGINT, False), (signal.SIGTERM, can_cap())], ids=["ctrl-c", "sigterm"]
)
def test_broken_off_it_reports_what_was_done_and_leaves_nothing(
    number: signal.Signals, capped: bool, tmp_path: Path
) -> None:
    folder = small(tmp_path)
    with running(folder, tmp_path, capped=capped) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("batch 1: round 1 "):
                process.send_signal(number)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 128 + number, "".join(lines) + rest
        report = json.loads((tmp_path / "report.json").read_text())
        (row,) = report["rows"]
        assert row["samples"]
        assert any("broken off" in note for note in report["notes"])
        assert processes_of(folder) == []
        assert left_cgroups(process.pid) == []
        assert list((tmp_path / "cache").glob("peers-*")) == []
