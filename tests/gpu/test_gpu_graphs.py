"""Steps of decodes as CUDA graphs: they answer as ordinary steps, wait for nothing, and follow plans."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from support import checkpoints, quantised
from support.calibrations import write_calibration
from support.engines import add, generate, open_parts, random_prompts
from support.static_steps import EagerSteps, static_engine

from emoe.worker.batch import StepBatch
from emoe.worker.build import EngineParts
from emoe.worker.graphs import CudaGraphs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

PROMPTS = random_prompts([5, 33, 17, 60, 2], seed=6)
NUM_SLOTS = 14


def write(name: str, folder: Path) -> Path:
    if name in checkpoints.CONFIGS:
        return checkpoints.save(name, folder, dtype=torch.bfloat16)
    if name == "mxfp4":
        return quantised.write_mxfp4(folder, dtype=torch.bfloat16)
    return quantised.write(name, "mixtral", folder, dtype=torch.bfloat16)[0]


def logits_of(parts: EngineParts, replays: CudaGraphs | EagerSteps) -> list[torch.Tensor]:
    """Operators and shapes are the same both ways; only who launches them differs."""
    return generate(static_engine(parts, replays), PROMPTS, max_tokens=6)[1]


@pytest.mark.parametrize("calibrated", [False, True], ids=["plain", "calibrated"])
@pytest.mark.parametrize("name", sorted(checkpoints.CONFIGS))
def test_a_recorded_step_gives_what_the_same_step_gives_unrecorded(tmp_path: Path, name: str, calibrated: bool) -> None:
    folder = write(name, tmp_path)
    calibration = write_calibration(folder) if calibrated else None
    with open_parts(
        folder, miss_policy="reroute", num_slots=NUM_SLOTS, device="cuda", calibration=calibration
    ) as parts:
        assert parts.static_rows == parts.options.max_concurrency
        graphs = CudaGraphs(torch.device("cuda"))
        eager, recorded = logits_of(parts, EagerSteps()), logits_of(parts, graphs)
    assert graphs.num_graphs
    for ours, expected in zip(recorded, eager, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["mxfp4", *quantised.FORMATS])
def test_quantised_experts_are_decoded_inside_a_recorded_step(tmp_path: Path, name: str) -> None:
    with open_parts(write(name, tmp_path), miss_policy="reroute", num_slots=NUM_SLOTS, device="cuda") as parts:
        assert parts.static_rows
        eager, recorded = logits_of(parts, EagerSteps()), logits_of(parts, CudaGraphs(torch.device("cuda")))
    for ours, expected in zip(recorded, eager, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


def test_a_recorded_step_waits_for_nothing(tmp_path: Path) -> None:
    with open_parts(write("qwen3_moe", tmp_path), miss_policy="reroute", num_slots=NUM_SLOTS, device="cuda") as parts:
        engine = parts.build_engine()
        generate(engine, PROMPTS, max_tokens=6)
        assert engine._static is not None
        run, runs = engine._static.run, 0

        def watched(batch: StepBatch) -> torch.Tensor:
            nonlocal runs
            runs += 1
            torch.cuda.set_sync_debug_mode("error")
            try:
                return run(batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        engine._static.run = watched
        generate(engine, PROMPTS, max_tokens=6)
        assert runs


def test_a_plan_changes_what_a_recorded_step_computes_without_a_new_recording(
    tmp_path: Path,
) -> None:
    folder = write("qwen3_moe", tmp_path)
    with open_parts(folder, miss_policy="reroute", num_slots=NUM_SLOTS, device="cuda") as parts:
        graphs = CudaGraphs(torch.device("cuda"))
        engine = static_engine(parts, graphs)
        before = generate(engine, PROMPTS, max_tokens=6)[1]
        num_graphs = graphs.num_graphs
        residency = parts.residency
        residency.set_plan(np.ascontiguousarray(residency.table.resident[:, ::-1]), epoch=2)
        residency.wait_until_settled(timeout_seconds=30)
        after = generate(engine, PROMPTS, max_tokens=6)[1]
        expected = logits_of(parts, EagerSteps())
        assert graphs.num_graphs == num_graphs
    assert not torch.equal(before[1], after[1])
    for ours, unrecorded in zip(after, expected, strict=True):
        torch.testing.assert_close(ours, unrecorded, rtol=1e-2, atol=1e-2 * float(unrecorded.abs().max()))


def test_recordings_share_their_memory(tmp_path: Path) -> None:
    folder = write("mixtral", tmp_path)
    with open_parts(folder, miss_policy="reroute", num_slots=NUM_SLOTS, device="cuda") as parts:
        graphs = CudaGraphs(torch.device("cuda"))
        engine = static_engine(parts, graphs)
        generate(engine, PROMPTS, max_tokens=3)
        torch.cuda.synchronize()
        first, num_first = torch.cuda.memory_reserved(), graphs.num_graphs
        for count in (1, 2, 4):
            generate(engine, PROMPTS[:count], max_tokens=3)
        torch.cuda.synchronize()
        assert graphs.num_graphs >= num_first + 2
        assert torch.cuda.memory_reserved() - first <= 64 * 2**20


def test_an_engine_answers_alike_with_and_without_recordings(tmp_path: Path) -> None:
    folder = write("olmoe", tmp_path)
    with open_parts(folder, miss_policy="reroute", num_slots=NUM_SLOTS, device="cuda") as parts:
        outcomes = []
        for engine in (parts.build_engine(), dataclasses.replace(parts, static_rows=0).build_engine()):
            sequences = [add(engine, f"{i}", prompt, max_tokens=2) for i, prompt in enumerate(PROMPTS)]
            engine.step()
            engine.step()
            assert all(sequence.num_completion_tokens == 2 for sequence in sequences)
            assert engine.logits_NV is not None
            outcomes.append(engine.logits_NV.float())
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=0.05, atol=0.05 * float(outcomes[1].abs().max()))
