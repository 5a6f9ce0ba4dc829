"""`emoe bench claims` over kilobytes, with real memory cgroups: what a cap ends, and what is measured under it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from emoe.bench.claims_probe import Contestant, DoesNotFitError, Prober, Work
from emoe.bench.claims_search import Verdict
from emoe.bench.failures import BenchmarkError
from emoe.bench.memory_cgroup import MOUNT, memory_cgroup
from emoe.bench.planted import PlantedShape
from emoe.bench.planted_files import planted_checkpoint
from emoe.cli.commands import app

ROOMY_BYTES = 3 * 1024**3
TIGHT_BYTES = 48 * 1024**2
"""Too little for the libraries alone."""
WORK = Work(prompt_tokens=8, new_tokens=3)
REROUTE = Contestant(miss_policy="reroute", budget_ratio=0.75)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    return planted_checkpoint("claims", shape, cache=tmp_path_factory.mktemp("planted"), say=lambda _line: None)


@pytest.fixture
def cgroups() -> None:
    try:
        with memory_cgroup(ROOMY_BYTES):
            pass
    except BenchmarkError as error:
        pytest.skip(str(error))


def prober(folder: Path, *, device: str = "cpu", deadline_seconds: float = 100.0) -> Prober:
    return Prober(model=folder, threads=1, device=device, deadline_seconds=deadline_seconds)


@pytest.mark.usefixtures("cgroups")
async def test_a_cap_ends_what_does_not_fit(folder: Path) -> None:
    with pytest.raises(DoesNotFitError) as caught:
        await prober(folder).probe(REROUTE, WORK, TIGHT_BYTES)
    assert caught.value.verdict is Verdict.CAP


async def test_a_probe_ends_at_its_deadline(folder: Path) -> None:
    with pytest.raises(DoesNotFitError) as caught:
        await prober(folder, deadline_seconds=0.01).probe(REROUTE, WORK, None)
    assert caught.value.verdict is Verdict.DEADLINE


async def test_what_the_engine_refuses_is_said(folder: Path) -> None:
    starved = Contestant(miss_policy="reroute", budget_ratio=0.05)
    with pytest.raises(BenchmarkError, match=r"reroute at 0\.05"):
        await prober(folder).probe(starved, WORK, None)


@pytest.mark.usefixtures("cgroups")
def test_the_command_reports_of_a_cap_that_holds_nothing(folder: Path) -> None:
    options = [
        "--memory-cap=48MiB",
        "--policies=load",
        "--budget=75%",
        "--threads=1",
        "--prompt-tokens=8",
        "--new-tokens=3",
        "--json=-",
    ]
    result = CliRunner().invoke(app, ["bench", "claims", str(folder), *options])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    rows = {(row["claim"], row["mode"]): row for row in report["rows"]}
    assert (rows["longest prompt", "load"]["ours"], rows["longest prompt", "load"]["ended_by"]) == (None, "memory cap")
    assert rows["memory", "load"]["ours"] > 0
    assert "longest prompt of all resident: none, ended by memory cap" in report["notes"]


@pytest.mark.usefixtures("cgroups")
def test_ended_it_reports_what_was_done_and_leaves_no_cgroup(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "claims.json"
    command = [sys.executable, "-m", "emoe.cli.main", "bench", "claims", str(folder), "--policies=load", "--budget=75%"]
    options = ["--threads=1", "--prompt-tokens=8", "--new-tokens=3", f"--json={report}"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "a cap of" in line:
                process.send_signal(signal.SIGTERM)
                break
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    written = json.loads(report.read_text())
    assert {row["claim"] for row in written["rows"]} == {"memory", "expert memory"}
    assert any(note.startswith("broken off") for note in written["notes"])
    assert not [*MOUNT.glob(f"**/emoe-bench-{process.pid}-*")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none")
async def test_a_share_of_the_device_is_a_cap_too(folder: Path) -> None:
    on_gpu = prober(folder, device="cuda")
    assert (await on_gpu.probe(REROUTE, WORK, 1024**3)).peak_bytes <= 1024**3
    with pytest.raises(DoesNotFitError) as caught:
        await on_gpu.probe(REROUTE, Work(prompt_tokens=4000, new_tokens=3, batch=512), 64 * 1024**2)
    assert caught.value.verdict is Verdict.CAP
