"""How the task classifier's training prompts are made, how it is fitted, and how it is measured."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from emoe.core.errors import InvalidRequestError
from emoe.core.task_classifier import LABELS, Identified
from emoe.core.text_features import extract_features
from emoe.eval.rows import Row
from emoe.train.classifier_contents import Contents, collect_contents
from emoe.train.classifier_figures import KeywordLists, LabelledPrompt, measure, measure_tasks, read_labelled
from emoe.train.classifier_fit import FitSettings, calibrate, fit
from emoe.train.classifier_plain import PlainTfIdf
from emoe.train.classifier_prompts import PromptWriter

PROMPTS = {
    "chat": ["User: Is the pool open?\nAssistant: Yes, until ten.\nUser: Great.\nAssistant:", "A: Hi, any news?\nB:"],
    "classification": [
        "Label the emotion: What a day!",
        'Intent of "where is my card"?',
        "Dull film.\nSentiment:",
        "Utterance: play jazz\nIntent label:",
    ],
    "code": [
        "What is the command line to list all open ports?",
        "How many goals?\nSQL over table(TEAM, GOALS):",
        "Write a SQL query that answers: Who won?\nColumns: NAME, RANK",
    ],
    "math": ["Math problem: Ann has 3 pens and loses 1. How many are left?\nSolution:"],
    "qa": [
        "Q: Who built the bridge?\nA:",
        "Read the passage and answer the question.\n\nThe mill was built in 1802.\n\nWhen was the mill built?",
        "Choose the correct option.\n\nWhich is a fruit?\nA) Fig\nB) Salt\nC) Iron\nD) Sand",
    ],
    "summarization": [
        "Summarize this text.\n\nThe council met twice and agreed on nothing.",
        "A long report.\n\nTL;DR:",
    ],
    "translation": ["German -> English\nDas Haus ist alt.", "Translate from English to French: The house is old."],
}
ROWS = {task: [Row(task=task, prompt=one, response="") for one in some] for task, some in PROMPTS.items()}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def contents() -> Contents:
    return collect_contents(ROWS)


def test_contents_are_what_stands_inside_the_templates(contents: Contents) -> None:
    texts = {kind: [(one.text, one.other) for one in some] for kind, some in contents.items()}
    assert texts["comment"] == [("What a day!", ""), ("Dull film.", "")]
    assert texts["request"] == [("where is my card", ""), ("play jazz", "")]
    assert texts["command"] == [("list all open ports", "")]
    assert texts["sql"] == [("How many goals?", "TEAM, GOALS"), ("Who won?", "NAME, RANK")]
    assert texts["passage"] == [("When was the mill built?", "The mill was built in 1802.")]
    assert texts["choice"] == [("Which is a fruit?", "A) Fig\nB) Salt\nC) Iron\nD) Sand")]
    assert texts["text"] == [("The council met twice and agreed on nothing.", ""), ("A long report.", "")]
    assert texts["sentence"] == [("Das Haus ist alt.", "German"), ("The house is old.", "English")]
    assert [one.turns for one in contents["dialogue"]] == [
        ("Is the pool open?", "Yes, until ten.", "Great."),
        ("Hi, any news?",),
    ]


def test_prompts_are_written_in_the_wanted_numbers_and_alike_for_one_seed(contents: Contents) -> None:
    written = list(PromptWriter(contents, ROWS, seed=3).write(20, 30))
    counts = collections.Counter(label for label, _ in written)
    assert counts == {**dict.fromkeys(PROMPTS, 20), "unknown": 30}
    assert written == list(PromptWriter(contents, ROWS, seed=3).write(20, 30))
    assert written != list(PromptWriter(contents, ROWS, seed=4).write(20, 30))


def test_no_slot_and_no_alternative_is_left_open(contents: Contents) -> None:
    written = [prompt for _, prompt in PromptWriter(contents, ROWS, seed=1).write(300, 1500)]
    slots = ("<x>", "<q>", "<o>", "<p>", "<s>", "<c>", "<k>")
    assert [prompt for prompt in written if any(slot in prompt for slot in slots)] == []
    assert [prompt for prompt in written if "[ASK]" in prompt or "[POST]" in prompt or "[LANG]" in prompt] == []


def test_the_same_content_is_asked_about_under_several_labels(contents: Contents) -> None:
    labels = {label for label, prompt in PromptWriter(contents, ROWS, seed=1).write(200, 400) if "Das Haus" in prompt}
    assert {"translation", "unknown", "classification"} <= labels


def test_no_question_by_itself_is_taken_for_no_task(contents: Contents) -> None:
    questions = {one.text for kind in ("question", "passage", "choice") for one in contents[kind]}
    written = PromptWriter(contents, ROWS, seed=1).write(0, 1500)
    assert [prompt for _, prompt in written if prompt in questions] == []


def test_a_fitted_classifier_names_what_it_learnt_and_its_threshold_keeps_to_the_wanted_share(
    contents: Contents,
) -> None:
    written = list(PromptWriter(contents, ROWS, seed=1).write(120, 240))
    features = [extract_features(prompt) for _, prompt in written]
    labels = [label for label, _ in written]
    fitted = fit(features, labels, FitSettings(num_epochs=4))
    allowed = [frozenset({label}) for label in labels]
    calibrated = calibrate(fitted, features, allowed, sure_accuracy=0.95)
    named = [(calibrated.identify_features(one).task, label) for one, label in zip(features, labels, strict=True)]
    sure = [task == label for task, label in named if task != "unknown"]
    assert len(sure) > 7 * 120 * 0.8
    assert sum(sure) / len(sure) >= 0.95


def test_a_fit_is_the_same_for_the_same_seed(contents: Contents) -> None:
    written = list(PromptWriter(contents, ROWS, seed=1).write(10, 10))
    features, labels = [extract_features(prompt) for _, prompt in written], [label for label, _ in written]
    one, other = (fit(features, labels, FitSettings(num_epochs=1)) for _ in range(2))
    assert one.render() == other.render()


def labelled(prompt: str, *allowed: str) -> LabelledPrompt:
    return LabelledPrompt(prompt=prompt, allowed=frozenset(allowed), origin="here", half="report")


def test_figures_tell_wrong_names_from_unknown_ones() -> None:
    answers = {"a": ("qa", 0.9), "b": ("math", 0.9), "c": ("unknown", 0.3), "d": ("chat", 0.9), "e": ("unknown", 0.3)}

    def identify(text: str) -> Identified:
        task, probability = answers[text]
        return Identified(task=task, likeliest="chat" if task == "unknown" else task, probability=probability)

    prompts = [labelled("a", "qa"), labelled("b", "qa"), labelled("c", "qa", "math"), labelled("d", "unknown")]
    figures = measure(identify, [*prompts, labelled("e", "unknown")])
    assert figures.right_ratio == pytest.approx(1 / 3)
    assert figures.unknown_ratio == pytest.approx(1 / 3)
    assert figures.sure_right_ratio == pytest.approx(1 / 3)
    assert figures.false_name_ratio == pytest.approx(1 / 2)
    assert figures.calibration_error == pytest.approx(3 / 5 * (0.9 - 1 / 3) + 2 / 5 * 0.3)
    assert set(measure_tasks(identify, prompts)) == {"qa", "several", "unknown"}


def test_keyword_lists_name_the_task_with_most_matches_and_none_on_a_tie() -> None:
    lists = KeywordLists({"code": ["run ls now", "run ps"], "math": ["add one now", "add two"]}, num_keywords=3)
    assert lists.identify("run it").task == "code"
    assert lists.identify("add two and run").task == "math"
    assert lists.identify("now what").task == "unknown"


def test_plain_tf_idf_learns_words() -> None:
    prompts = ["translate this word", "solve this sum"] * 20
    plain = PlainTfIdf(prompts, ["translation", "math"] * 20)
    assert plain.identify("please solve").task == "math"
    assert plain.identify("please translate").task == "translation"


@pytest.mark.parametrize(
    "line",
    ["{", '{"prompt": "x"}', '{"prompt": "x", "want": ["spam"], "origin": "o", "half": "choose"}'],
    ids=["no JSON", "no labels", "another label"],
)
def test_a_line_that_is_no_labelled_prompt_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    good = '{"prompt": "x\u2028y", "want": ["qa"], "origin": "o", "half": "choose"}'
    path.write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(InvalidRequestError, match="line 2"):
        read_labelled(path)
    assert "unknown" in LABELS
