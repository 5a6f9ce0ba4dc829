"""Names the task of a request whose client named none, by the text that its prompt has.

Runs on the event loop, before the request is queued: well under a millisecond for a prompt of ordinary length, and
bounded for any. A prompt of token ids cannot be read here and stays unknown.
"""

from __future__ import annotations

from emoe.core.task_naming import NOBODY, NamedTask, TaskNamer
from emoe.core.tasks import UNKNOWN
from emoe.core.text_features import EDGE_CHARACTERS
from emoe.runtime.messages import ChatPrompt, TextPrompt, TokenPrompt

_MAX_TURNS = 16


def name_task(prompt: TextPrompt | ChatPrompt | TokenPrompt, namer: TaskNamer | None) -> NamedTask:
    """`namer` is None where tasks are not to be identified."""
    if namer is None:
        return NOBODY
    match prompt:
        case TextPrompt(text=text):
            return namer.name(text)
        case ChatPrompt(messages=messages):
            return _name_chat(messages, namer)
        case TokenPrompt():
            return NOBODY


def _name_chat(messages: tuple[tuple[str, str], ...], namer: TaskNamer) -> NamedTask:
    """By what is asked last, under the system's words; if that says too little, by the latest turns as a dialogue."""
    asked = [content for role, content in messages if role == "user"][-1:]
    system = [content for role, content in messages if role == "system"][:1]
    named = namer.name("\n".join((*system, *asked)))
    turns = [(role, content) for role, content in messages if role != "system"][-_MAX_TURNS:]
    if named.task != UNKNOWN or len(turns) == 1:
        return named
    lines = [f"{role.capitalize()}: {content[:EDGE_CHARACTERS]}" for role, content in turns]
    return namer.name("\n".join((*lines, "Assistant:")))
