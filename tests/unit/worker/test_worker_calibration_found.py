"""Which calibration a worker starts with, and what it says of one that it leaves out."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.calibrations import write_calibration
from support.checkpoints import save_with_tokenizer

from emoe.core.errors import BudgetError, CheckpointError
from emoe.store.profile import CALIBRATION_FILE
from emoe.store.store import ExpertStore
from emoe.worker.preparing import prepare, settings_without_effect
from emoe.worker.settings import WorkerSettings
from emoe.worker.sources import LocalSource

ENOUGH, TOO_LITTLE = "80%", "45%"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One with its calibration beside it, one with another's, one with none."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("own", "foreign", "none")}
    for seed, folder in enumerate(folders.values()):
        save_with_tokenizer("mixtral", folder, seed=seed)
    write_calibration(folders["own"])
    shutil.copy(folders["own"] / CALIBRATION_FILE, folders["foreign"])
    return folders


def num_slots(model: Path, expert_memory: str = ENOUGH, **settings: object) -> int:
    given = WorkerSettings(model=model, expert_memory=expert_memory, threads=1, max_context=64, **settings)  # type: ignore[arg-type]
    with ExpertStore.open(model) as store:
        parts, _ = prepare(given, store, LocalSource(store), threading.Event())
        parts.residency.close()
        return parts.residency.arena.num_slots


def test_the_one_beside_the_model_is_used_and_takes_slots(
    models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        used = num_slots(models["own"])
    assert "slots of the expert memory" in caplog.text
    assert used < num_slots(models["own"], calibration="off") == num_slots(models["none"])


def test_one_of_other_weights_is_left_out_with_an_error(
    models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert num_slots(models["foreign"]) == num_slots(models["none"])
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "other weights" in error.getMessage()


@pytest.mark.parametrize("name", ["foreign", "none"])
def test_one_asked_for_by_its_path_must_do(models: dict[str, Path], name: str) -> None:
    path = models[name] / CALIBRATION_FILE
    with pytest.raises(CheckpointError, match=str(path)):
        num_slots(models[name], calibration=path)
    assert num_slots(models["own"], calibration=models["foreign"] / CALIBRATION_FILE) < num_slots(models["none"])


def test_one_that_leaves_too_few_slots_is_left_out_unless_it_was_asked_for(
    models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert num_slots(models["own"], TOO_LITTLE) == num_slots(models["none"], TOO_LITTLE)
    assert "the calibration is left out" in caplog.text
    with pytest.raises(BudgetError, match="raise the expert memory to"):
        num_slots(models["own"], TOO_LITTLE, calibration=models["own"] / CALIBRATION_FILE)


def test_none_is_needed_where_all_experts_fit(models: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert num_slots(models["own"], "100%") == 18
    assert "not used: all experts fit" in caplog.text


@pytest.mark.parametrize(("text", "kind"), [("auto", str), ("off", str), ("somewhere/a.safetensors", Path)])
def test_the_setting_is_a_word_or_a_path(
    monkeypatch: pytest.MonkeyPatch, text: str, kind: Callable[[str], object]
) -> None:
    monkeypatch.setenv("EMOE_WORKER_CALIBRATION", text)
    assert WorkerSettings(model=Path("m")).calibration == kind(text)


def test_exact_mode_says_that_it_uses_none() -> None:
    settings = WorkerSettings(model=Path("m"), miss_policy="load", calibration="auto")
    assert any(line.startswith("calibration has no effect") for line in settings_without_effect(settings))
