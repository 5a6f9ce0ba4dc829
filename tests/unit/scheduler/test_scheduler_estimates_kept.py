"""Estimates on disk: what comes back after a restart, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from emoe.core.generation import Usage
from emoe.core.schedule.costs import FIRST_GUESS, StepCosts
from emoe.runtime.messages import ParsedRequest, parse_request
from emoe.scheduler.costs import MAX_WORKERS, CostMemory
from emoe.scheduler.estimates import FILE_NAME, EstimateKeeper, kept_estimates
from emoe.scheduler.lengths import LengthEstimator
from emoe.v1 import generation_pb2 as pb

COSTS = StepCosts(base_seconds=0.02, prompt_token_seconds=1e-4, sequence_seconds=2e-3, step_tokens=512)


def request(*, task: str = "qa", max_tokens: int = 1000) -> ParsedRequest:
    return parse_request(pb.GenerateRequest(text="x" * 40, task=task, sampling=pb.Sampling(max_tokens=max_tokens)))


def answered(lengths: LengthEstimator, num_tokens: int) -> None:
    usage = Usage(num_prompt_tokens=5, num_completion_tokens=num_tokens, num_expert_hits=0, num_expert_choices=0)
    lengths.observe(request(), usage)


async def saved(folder: Path) -> Path:
    lengths, costs = LengthEstimator(), CostMemory()
    async with kept_estimates(lengths, costs, folder):
        for _ in range(30):
            answered(lengths, 17)
        costs.observe("worker-0", COSTS)
    return folder / FILE_NAME


def restart(folder: Path) -> tuple[LengthEstimator, CostMemory]:
    lengths, costs = LengthEstimator(), CostMemory()
    EstimateKeeper(lengths, costs, folder).load()
    return lengths, costs


async def test_lengths_and_costs_outlive_a_restart(tmp_path: Path) -> None:
    await saved(tmp_path / "made")
    lengths, costs = restart(tmp_path / "made")
    assert lengths.answer_tokens(request()) == 17
    assert lengths.prompt_tokens(request()) == 5
    assert costs.guess("worker-0") == COSTS


def test_a_first_start_knows_nothing_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        lengths, costs = restart(tmp_path)
    assert lengths.answer_tokens(request(max_tokens=100)) == 50
    assert costs.guess("worker-0") is FIRST_GUESS
    assert "from the beginning" in caplog.text


def without_checksum(raw: bytes) -> bytes:
    return json.dumps(json.loads(raw) | {"content": {"lengths": {}, "costs": {}}}).encode()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        pytest.param(lambda raw: raw[: len(raw) // 2], "", id="torn"),
        pytest.param(lambda raw: b"", "", id="empty"),
        pytest.param(lambda raw: b"\xff" + raw, "", id="no text"),
        pytest.param(lambda raw: raw.replace(b"estimates 1", b"estimates 0"), "this version reads", id="other version"),
        pytest.param(lambda raw: raw.replace(b'"worker-0"', b'"worker-1"'), "checksum", id="changed"),
        pytest.param(without_checksum, "checksum", id="content of another file"),
    ],
)
async def test_a_file_that_cannot_be_used_is_moved_aside_with_a_reason(
    damage, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = await saved(tmp_path)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    lengths, costs = restart(tmp_path)
    assert lengths.answer_tokens(request(max_tokens=100)) == 50
    assert costs.guess("worker-0") is FIRST_GUESS
    assert why in caplog.text
    assert "learning begins anew" in caplog.text
    assert not path.exists()
    assert (tmp_path / f"{FILE_NAME}.corrupt").read_bytes() == damaged


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"bytes_per_token": 0}, id="bytes a token"),
        pytest.param({"answer_tokens": {"Not A Task": {}}}, id="task name"),
        pytest.param({"answer_tokens": {"qa": {}}}, id="no sketch"),
        pytest.param({"answer_tokens": []}, id="no table"),
        pytest.param({"model": None, "bytes_per_token": None}, id="kinds"),
    ],
)
def test_lengths_that_no_estimator_wrote_change_nothing(wrong: dict[str, object]) -> None:
    lengths = LengthEstimator()
    answered(lengths, 17)
    before = lengths.to_json()
    with pytest.raises(ValueError, match=r"it|name"):
        lengths.restore(before | wrong)
    assert lengths.to_json() == before


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"base_seconds": -1.0}, id="negative"),
        pytest.param({"sequence_seconds": "fast"}, id="text"),
        pytest.param({"step_tokens": 0}, id="no step"),
        pytest.param({"colour": 1}, id="unknown field"),
    ],
)
def test_costs_that_no_memory_wrote_change_nothing(wrong: dict[str, object]) -> None:
    costs = CostMemory()
    costs.observe("worker-0", COSTS)
    stored = costs.to_json()
    with pytest.raises(ValueError, match=r"its"):
        costs.restore({"worker-1": stored["worker-0"] | wrong})
    assert costs.to_json() == stored


def test_a_worker_that_reports_no_costs_is_taken_for_the_median_of_those_known() -> None:
    costs = CostMemory()
    for number in range(3):
        costs.observe(f"worker-{number}", StepCosts(base_seconds=number, prompt_token_seconds=1, sequence_seconds=1))
    assert costs.guess("worker-2").base_seconds == 2
    assert costs.guess("newcomer").base_seconds == 1


def test_the_costs_of_workers_long_gone_make_room() -> None:
    costs = CostMemory()
    for number in range(MAX_WORKERS + 1):
        costs.observe(f"worker-{number}", COSTS)
    assert len(costs.to_json()) == MAX_WORKERS
    assert "worker-0" not in costs.to_json()


async def test_nothing_is_written_where_nothing_was_learnt(tmp_path: Path) -> None:
    path = await saved(tmp_path)
    before = path.stat().st_mtime_ns, path.stat().st_ino
    async with kept_estimates(LengthEstimator(), CostMemory(), tmp_path) as keeper:
        assert keeper is not None
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


async def test_a_save_that_breaks_off_leaves_the_file_of_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = await saved(tmp_path)
    before = path.read_bytes()
    path.with_name(f"{FILE_NAME}.partial").mkdir()
    lengths, costs = LengthEstimator(), CostMemory()
    async with kept_estimates(lengths, costs, tmp_path):
        answered(lengths, 99)
    assert "trying again later" in caplog.text
    assert path.read_bytes() == before


async def test_without_a_folder_nothing_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with kept_estimates(LengthEstimator(), CostMemory(), None) as keeper:
            assert keeper is None
    assert "no state_dir is set" in caplog.text
