"""Tasks of users' own, by examples, before the built-in ones."""

from __future__ import annotations

import pytest

from emoe.core.task_naming import TaskNamer, shipped_namer
from emoe.core.tasks import MAX_EXAMPLE_CHARACTERS, MAX_EXAMPLES, check_examples

TICKETS = (
    "Which team takes this ticket: facilities, IT or payroll?\nThe lift in building C is stuck again.",
    "Which team takes this ticket: facilities, IT or payroll?\nMy overtime of March is missing.",
    "Which team takes this ticket: facilities, IT or payroll?\nI cannot log in from home.",
    "Which team takes this ticket: facilities, IT or payroll?\nThe printer on floor 2 eats paper.",
)
NEW_TICKET = "Which team takes this ticket: facilities, IT or payroll?\nThe heating hums all night."
RHYMES = ("Find three words that rhyme with house.", "Find three words that rhyme with light.")


@pytest.fixture(scope="module")
def namer() -> TaskNamer:
    return shipped_namer({"tickets": TICKETS, "rhymes": RHYMES})


def test_a_prompt_like_the_examples_is_of_their_task(namer: TaskNamer) -> None:
    named = namer.name(NEW_TICKET)
    assert (named.task, named.by) == ("tickets", "examples")
    assert named.similarity is not None
    assert 0 < named.similarity < 1
    assert namer.name("Find three words that rhyme with stone.").task == "rhymes"


def test_an_example_itself_is_as_alike_as_can_be(namer: TaskNamer) -> None:
    assert namer.name(TICKETS[1]).similarity == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "task"),
    [
        ("Which ocean lies between Africa and Australia?", "qa"),
        ("Translate into French: My ticket is in the lift.", "translation"),
        ("Write a poem about a house.", "unknown"),
        ("", "unknown"),
    ],
    ids=["qa", "translation", "no task", "nothing"],
)
def test_other_prompts_stay_what_they_are(namer: TaskNamer, prompt: str, task: str) -> None:
    named = namer.name(prompt)
    assert (named.task, named.similarity) == (task, None)
    assert named.by == ("nobody" if task == "unknown" else "classifier")


def test_a_task_inside_a_built_in_one_takes_its_prompts_from_it(namer: TaskNamer) -> None:
    assert shipped_namer().name(NEW_TICKET).likeliest == "classification"
    assert namer.name(NEW_TICKET).task == "tickets"


def test_a_built_in_task_may_have_examples_too() -> None:
    prompt = "kelp, otter, urchin => "
    assert shipped_namer().name(prompt).task == "unknown"
    examples = {"classification": ("oak, beetle, fern => ", "whale, krill, squid => ", "crow, worm, maple => ")}
    assert shipped_namer(examples).name("fox, hare, clover => ").task == "classification"


def test_a_single_example_does(namer: TaskNamer) -> None:
    assert shipped_namer({"tickets": TICKETS[:1]}).name(NEW_TICKET).task == "tickets"


@pytest.mark.parametrize(
    ("examples", "complaint"),
    [
        pytest.param({"a": []}, "task 'a' has 0 examples; give 1 to 16", id="none"),
        pytest.param({"a": ["x"] * (MAX_EXAMPLES + 1)}, "17 examples", id="too many"),
        pytest.param({"a": ["x", " \n"]}, r"examples\[1\] of task 'a' is empty", id="blank"),
        pytest.param({"a": ["x" * (MAX_EXAMPLE_CHARACTERS + 1)]}, r"examples\[0\] of task 'a' has 2001", id="long"),
        pytest.param({f"t{i}": ["x"] * 16 for i in range(17)}, "272 examples in all", id="too many in all"),
        pytest.param({f"t{i}": ["é" * 2000] for i in range(9)}, "36000 bytes in all", id="too much in all"),
    ],
)
def test_examples_beyond_bounds_are_refused_with_task_and_bound(examples: dict[str, list[str]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_examples(examples)
    with pytest.raises(ValueError, match=complaint):
        shipped_namer(examples)
