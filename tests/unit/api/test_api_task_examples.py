"""Examples of tasks in a MoEDeployment: taken within bounds, refused with field and bound."""

from __future__ import annotations

from typing import Any

import pytest
from cluster.refused_cases import apply_patch

from emoe.api.resource import MoEDeployment
from emoe.core.errors import InvalidResourceError


def tasks(*examples: list[str]) -> dict[str, Any]:
    return apply_patch({"spec": {"tasks": [{"name": f"t{i}", "examples": some} for i, some in enumerate(examples)]}})


def test_examples_are_kept_as_they_were_written() -> None:
    spec = MoEDeployment.parse(tasks(["Which team?\n\tThe lift is stuck.", "Welches Team? Tür klemmt."], [])).spec
    assert [task.examples for task in spec.tasks] == [
        ("Which team?\n\tThe lift is stuck.", "Welches Team? Tür klemmt."),
        (),
    ]


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        pytest.param([[""]], ("spec.tasks[0].examples[0]",), id="empty"),
        pytest.param([["x"], ["y", " \n"]], ("spec.tasks", "examples[1] of task 't1' is empty"), id="blank"),
        pytest.param([["x" * 2001]], ("spec.tasks[0].examples[0]", "2000"), id="long"),
        pytest.param([["x"] * 17], ("spec.tasks[0].examples", "16"), id="many"),
        pytest.param([["x" * 2000] * 9, ["x" * 2000] * 8], ("spec.tasks", "34000 bytes in all"), id="much in all"),
    ],
)
def test_examples_beyond_bounds_are_refused(examples: list[list[str]], words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        MoEDeployment.parse(tasks(*examples))
    assert [word for word in words if word not in str(caught.value)] == []
