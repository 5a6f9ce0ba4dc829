from __future__ import annotations

from pathlib import Path

import pytest

from emoe.cli.paths import default_state_dir, resolve_model
from emoe.core.errors import CheckpointError


def test_state_lies_in_the_xdg_state_folder() -> None:
    assert default_state_dir({"XDG_STATE_HOME": "/var/state"}) == Path("/var/state/emoe")


@pytest.mark.parametrize("environment", [{}, {"XDG_STATE_HOME": ""}, {"XDG_STATE_HOME": "relative"}], ids=str)
def test_state_lies_in_the_home_folder_otherwise(environment: dict[str, str]) -> None:
    assert default_state_dir(environment) == Path.home() / ".local" / "state" / "emoe"


def test_a_model_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve_model(Path("model")) == tmp_path / "model"


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        resolve_model(tmp_path)
