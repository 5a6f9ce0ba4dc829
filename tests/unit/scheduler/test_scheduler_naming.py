"""Which text of a request says what its task is."""

from __future__ import annotations

import pytest

from emoe.core.task_naming import TaskNamer, shipped_namer
from emoe.runtime.messages import ChatPrompt, TextPrompt, TokenPrompt
from emoe.scheduler.naming import name_task

QUESTION = "What is the longest river in Europe?"


@pytest.fixture(scope="module")
def namer() -> TaskNamer:
    return shipped_namer()


def test_a_chat_is_named_by_what_is_asked_last(namer: TaskNamer) -> None:
    turns = (
        ("user", "Translate into German: The cat sleeps."),
        ("assistant", "Die Katze schläft."),
        ("user", QUESTION),
    )
    assert name_task(ChatPrompt(messages=turns), namer).task == "qa"
    assert name_task(ChatPrompt(messages=turns[:1]), namer).task == "translation"


def test_the_systems_words_say_what_is_asked_of_a_bare_message(namer: TaskNamer) -> None:
    message = ("user", "Der Bus kommt um neun.")
    system = ("system", "Translate the user's text into English.")
    assert name_task(ChatPrompt(messages=(message,)), namer).task == "unknown"
    assert name_task(ChatPrompt(messages=(system, message)), namer).task == "translation"


def test_turns_that_ask_nothing_by_themselves_are_a_chat(namer: TaskNamer) -> None:
    turns = (
        ("user", "I need a table for two tonight."),
        ("assistant", "At which time would you like to dine?"),
        ("user", "Half past seven would be great."),
    )
    assert name_task(ChatPrompt(messages=turns), namer).task == "chat"


def test_a_chat_without_any_words_of_a_user_is_named_all_the_same(namer: TaskNamer) -> None:
    assert name_task(ChatPrompt(messages=(("assistant", "..."),)), namer).task == "unknown"


def test_token_ids_cannot_be_read(namer: TaskNamer) -> None:
    named = name_task(TokenPrompt(token_ids=(1, 2, 3)), namer)
    assert (named.task, named.by) == ("unknown", "nobody")


def test_without_a_namer_nothing_is_named() -> None:
    named = name_task(TextPrompt(text=QUESTION, raw=False), None)
    assert (named.task, named.by) == ("unknown", "nobody")
