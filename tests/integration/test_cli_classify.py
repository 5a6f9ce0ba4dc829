"""`emoe classify`: what the scheduler would take a prompt for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from emoe.cli.commands import app

QUESTION = "Which planet is nearest to the sun?"
POEM = "Write a poem about the sun."


def classify(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["classify", *arguments], input=stdin, catch_exceptions=False)


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["prompts"]
    return found


def test_json_says_task_and_probability_of_each_prompt() -> None:
    question, poem = rows(classify(QUESTION, POEM, "--json"))
    assert (question["prompt"], question["task"], question["by"]) == (QUESTION, "qa", "classifier")
    assert 0.5 < question["probability"] <= 1
    assert (poem["task"], poem["by"]) == ("unknown", "nobody")


def test_people_get_a_table() -> None:
    result = classify(QUESTION)
    assert result.exit_code == 0
    assert "classifier" in result.stdout
    assert QUESTION in result.stdout


@pytest.mark.parametrize("arguments", [(), ("-",)], ids=["no argument", "dash"])
def test_standard_input_is_one_prompt(arguments: tuple[str, ...]) -> None:
    (row,) = rows(classify(*arguments, "--json", stdin=f"{QUESTION}\n"))
    assert (row["prompt"], row["task"]) == (f"{QUESTION}\n", "qa")


def test_ones_own_tasks_are_tried_before_they_are_served(tmp_path: Path) -> None:
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps({"rhymes": ["Find words that rhyme with house.", "Find words that rhyme with light."]}))
    (row,) = rows(classify("Find words that rhyme with stone.", f"--tasks-file={file}", "--json"))
    assert (row["task"], row["by"]) == ("rhymes", "examples")
    assert row["similarity"] > 0.1


def test_a_file_that_cannot_be_read_is_one_line_and_a_bad_end(tmp_path: Path) -> None:
    result = classify(QUESTION, f"--tasks-file={tmp_path / 'none.json'}")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "none.json: cannot be read" in result.stderr
