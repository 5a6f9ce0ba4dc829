from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic_settings import SettingsConfigDict

from emoe.cli.failures import CommandError
from emoe.cli.serve import parse_settings
from emoe.runtime.settings import ServiceSettings


class ToySettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="EMOE_TOY_")

    model: Path
    miss_policy: Literal["reroute", "load"] = "reroute"
    extra_tasks: tuple[str, ...] = ()


def parse(*arguments: str) -> ToySettings:
    settings = parse_settings("toy", ToySettings, arguments)
    assert isinstance(settings, ToySettings)
    return settings


def test_every_setting_is_an_option() -> None:
    settings = parse("--model=/m", "--miss-policy", "load", "--extra-tasks", "a,b", "--exit-with-parent")
    assert (settings.model, settings.miss_policy, settings.extra_tasks) == (Path("/m"), "load", ("a", "b"))
    assert settings.exit_with_parent


def test_variables_count_and_options_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOE_TOY_MODEL", "/from-variable")
    monkeypatch.setenv("EMOE_TOY_MISS_POLICY", "load")
    assert parse().model == Path("/from-variable")
    assert parse("--miss-policy=reroute").miss_policy == "reroute"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "emoe serve toy: --model: Field required"),
        (["--model=/m", "--drain-seconds=-1"], "--drain-seconds: Input should be greater than or equal to 0"),
    ],
    ids=["missing", "negative"],
)
def test_a_bad_setting_is_named_by_its_option(arguments: list[str], complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        parse(*arguments)


def test_a_bad_variable_is_named_as_it_was_set_unless_an_option_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOE_TOY_MODEL", "/m")
    monkeypatch.setenv("EMOE_TOY_MISS_POLICY", "drop")
    with pytest.raises(CommandError, match="emoe serve toy: EMOE_TOY_MISS_POLICY: Input should be 'reroute' or 'load'"):
        parse()
    with pytest.raises(CommandError, match="--miss-policy: Input should be"):
        parse("--miss-policy=skip")


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("a b", "EMOE_TOY_EXTRA_TASKS: must be JSON"),
        ("[1]", r"EMOE_TOY_EXTRA_TASKS\.0: Input should be a valid string"),
    ],
    ids=["no JSON", "an item"],
)
def test_a_bad_list_in_a_variable_is_named_too(monkeypatch: pytest.MonkeyPatch, value: str, complaint: str) -> None:
    monkeypatch.setenv("EMOE_TOY_EXTRA_TASKS", value)
    with pytest.raises(CommandError, match=complaint):
        parse("--model=/m")


def test_an_unknown_option_ends_with_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--model=/m", "--modle=/n")
    assert "unrecognized arguments: --modle=/n" in capsys.readouterr().err


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOE_TOY_MISS_POLIZY", "load")
    with pytest.raises(CommandError, match="EMOE_TOY_MISS_POLIZY: no such setting"):
        parse("--model=/m")
