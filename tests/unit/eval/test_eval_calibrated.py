"""Evaluations reroute with a calibration as workers do, each request with residents of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.calibrations import SHAPE, new_calibration, write_calibration
from support.checkpoints import save_with_tokenizer
from support.engines import random_prompts

from emoe.core.budget import slot_bytes
from emoe.core.errors import CheckpointError
from emoe.core.experts import BoolGrid
from emoe.core.planning import GlobalGreedyPlanner
from emoe.eval.rows import EncodedRow
from emoe.eval.scoring import Piece, ScoringModel
from emoe.store.store import ExpertStore
from emoe.train.calibrate_batches import flatten
from emoe.train.calibrate_model import StudentModel, open_model
from emoe.worker.families import family_of

FAMILIES = ("qwen2_moe", "deepseek_v3")
ROWS = random_prompts([11, 30, 7, 19])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = save_with_tokenizer(family, tmp_path_factory.mktemp(family))
            write_calibration(made[family], made[family] / "some.safetensors")
        return made[family]

    return of


@contextlib.contextmanager
def scoring(folder: Path, calibration: str | None = "some.safetensors") -> Iterator[ScoringModel]:
    path = None if calibration is None else folder / calibration
    with ScoringModel.open(
        folder, expert_memory="100%", max_context=64, num_rows=8, step_tokens=256, calibration=path
    ) as model:
        yield model


def masks_of(model: ScoringModel) -> list[BoolGrid | None]:
    """Each row's own; one has all experts."""
    random = np.random.default_rng(1)
    num_slots = model.grid.num_experts_total * 5 // 8
    drawn = [
        GlobalGreedyPlanner().plan(random.random(model.grid.shape), num_slots=num_slots, grid=model.grid)
        for _ in ROWS[1:]
    ]
    return [None, *drawn]


def nlls(model: ScoringModel, masks: list[BoolGrid | None]) -> list[float]:
    pieces = [
        Piece(row=row, token_ids=ids, begin=0, end=len(ids) - 1, judged_from=1, resident=mask)
        for row, (ids, mask) in enumerate(zip(ROWS, masks, strict=True))
    ]
    return [float(score.nll.sum()) for score in model.score(pieces)]


def trained_nlls(folder: Path, masks: list[BoolGrid | None]) -> list[float]:
    """As the training computes them, each row alone."""
    with ExpertStore.open(folder) as store:
        family, calibration, everything = family_of(store.family), new_calibration(store), store.grid.all_experts()
    student = StudentModel(open_model(folder, device=torch.device("cpu"), dtype=torch.float32), family, calibration)
    sums = []
    for ids, mask in zip(ROWS, masks, strict=True):
        row = EncodedRow(task="chat", token_ids=tuple(ids), num_prompt_tokens=1)
        batch = flatten([row], prompt_weight=0.0, device=torch.device("cpu"))
        given = None if mask is None else torch.from_numpy(np.where(everything, mask, True))[None]
        with torch.no_grad():
            logits = student.head(student.states(batch, given))[:-1]
        sums.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")))
    return sums


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_with_residents_of_their_own_are_corrected_each_by_its_own(
    folder: Callable[[str], Path], family: str
) -> None:
    with scoring(folder(family)) as model:
        masks = masks_of(model)
        plain = nlls(model, masks)
        model.calibrated = True
        calibrated = nlls(model, masks)
        model.calibrated = False
        assert nlls(model, masks) == plain
    assert calibrated == pytest.approx(trained_nlls(folder(family), masks), rel=1e-4)
    assert all(abs(one - other) > 1e-2 for one, other in zip(calibrated[1:], plain[1:], strict=True))
    assert calibrated[0] == pytest.approx(plain[0], rel=1e-6), "whoever has all experts loses nothing"


def test_a_calibration_is_worth_slots(folder: Callable[[str], Path]) -> None:
    with ExpertStore.open(folder("qwen2_moe")) as store:
        calibration = new_calibration(store, shape=SHAPE)
        expected = 4 * calibration.num_parameters / slot_bytes(store.grid)
    with scoring(folder("qwen2_moe")) as model:
        assert model.calibration_slots == pytest.approx(expected)
        assert not model.calibrated


def test_without_a_file_nothing_is_calibrated(folder: Callable[[str], Path]) -> None:
    with scoring(folder("qwen2_moe"), None) as model:
        masks = masks_of(model)
        plain = nlls(model, masks)
        model.calibrated = True
        assert nlls(model, masks) == plain
        assert model.calibration_slots == 0


def test_a_file_that_is_missing_or_of_other_weights_is_refused(folder: Callable[[str], Path]) -> None:
    with pytest.raises(CheckpointError, match="no such file"), scoring(folder("qwen2_moe"), "none.safetensors"):
        pass
    other = str(folder("deepseek_v3") / "some.safetensors")
    with pytest.raises(CheckpointError, match="other weights"), scoring(folder("qwen2_moe"), other):
        pass
