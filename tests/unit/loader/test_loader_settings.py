"""What the loader may be told of planning, and what its loop makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from emoe.core.planning import PLANNERS
from emoe.core.refresh import DEFAULT_REFRESH_INTERVAL_PROMPTS
from emoe.loader.main import pace_from
from emoe.loader.settings import LoaderSettings


def settings(**given: object) -> LoaderSettings:
    return LoaderSettings(model=Path("/model"), **given)  # type: ignore[arg-type]  # checked by pydantic


@pytest.mark.parametrize(
    ("given", "interval", "adapts"),
    [({}, 40, False), ({"refresh_interval_prompts": "7"}, 7, False), ({"refresh_interval_prompts": "auto"}, 40, True)],
    ids=["left out", "a number", "auto"],
)
def test_the_interval_is_a_number_or_begins_at_the_default_and_adapts(
    given: dict[str, str], interval: int, adapts: bool
) -> None:
    pace = pace_from(settings(**given))
    assert (pace.refresh_interval_prompts, pace.adapts) == (interval, adapts)
    assert DEFAULT_REFRESH_INTERVAL_PROMPTS == 40


@pytest.mark.parametrize("value", ["0", "often", "4.5", "-1"])
def test_other_intervals_are_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="neither auto nor a number of prompts"):
        settings(refresh_interval_prompts=value)


@pytest.mark.parametrize("name", sorted(PLANNERS))
def test_every_planner_can_be_chosen(name: str) -> None:
    assert settings(planner=name).planner == name


def test_another_planner_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValidationError, match="adapmoe, global, per-layer"):
        settings(planner="magic")
