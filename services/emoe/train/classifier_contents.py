"""What a corpus's prompts are about, without the instructions round it.

The corpora that emoe trains from put each content into a few templates, which give the task away: here they are taken
off, so that the content can be asked about in other ways, also for another task. A prompt in no known template is left
out; it still trains as it is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from emoe.eval.rows import Row

_TEXT = r"([\s\S]+)"
_COMMENTS = (
    rf'^(?:Sentiment analysis\. )?Text: "{_TEXT}"(?:\nWhat is the main emotion\?)?$',
    rf"^Which emotion does this comment express\?\n{_TEXT}$",
    rf"^(?:Classify the sentiment|Label the emotion): {_TEXT}$",
    rf"^Is the sentiment of this comment [^\n]*\?\n{_TEXT}$",
    rf"^{_TEXT}\n(?:Sentiment|Emotion)(?: \([^)]*\))?:$",
)
_REQUESTS = (
    rf'^Intent of "{_TEXT}"\?$',
    rf"^(?:Which intent matches this message\?\n|Classify the user request into an intent: ){_TEXT}$",
    rf"^Utterance: {_TEXT}\nIntent label:$",
    rf"^{_TEXT}\nIntent:$",
)
_COMMANDS = (
    rf"^What is the command line to {_TEXT}\?$",
    r"^Using ([^\s,]+, how do I [\s\S]+)\? Reply with the command only\.$",
    rf"^Give the shell command\w* (?:to|for) {_TEXT}$",
)
_SQL = (
    rf"^Translate the question into SQL\.\nTable: (?P<columns>[^\n]+)\nQuestion: {_TEXT}$",
    rf"^Question: {_TEXT}\nAnswer with one SQL statement\. Columns available: (?P<columns>[^\n]+)$",
    rf"^{_TEXT}\nSQL over table\((?P<columns>[^\n]+)\):$",
    rf"^Write a SQL query that answers: {_TEXT}\nColumns: (?P<columns>[^\n]+)$",
)
_PROBLEMS = (
    rf"^Solve the problem step by step\.\n\n{_TEXT}$",
    rf"^Math problem: {_TEXT}\nSolution:$",
    rf"^{_TEXT}\nShow your work and give the final number\.$",
    rf"^Question: {_TEXT}\nAnswer:$",
)
_PASSAGES = (
    r"^Read the passage and answer the question\.\n\n(?P<passage>[\s\S]+)\n\n([^\n]+)$",
    r"^Answer from the text\.\nText: (?P<passage>[\s\S]+)\nQuestion: ([^\n]+)$",
    r"^([^\n]+)\n\nUse this text: (?P<passage>[\s\S]+)$",
    r"^Context: (?P<passage>[\s\S]+)\nQ: ([^\n]+)\nA:$",
)
_OPTIONS = r"(?P<options>(?:[A-F]\) [^\n]+\n?)+)"
_CHOICES = (
    r"^(?:Choose the correct option\.\n\n|Question: )?([^\n]+)\n(?:Options:\n)?"
    rf"{_OPTIONS}(?:Which one is right\?|Answer:)?$",
)
_QUESTIONS = (
    r"^(?:Answer this trivia question|Can you tell me)[:,] ([^\n]+)$",
    r"^Q: ([^\n]+)\nA:$",
    r"^Question: ([^\n]+)\nAnswer:$",
    r"^((?!Can you tell)[^\n]{10,200}\?)$",
)
_TEXTS = (
    r"^(?:Summari[sz]e|Condense|Write|Give|Suggest)[^\n]{5,80}[.:]\n+([\s\S]+)$",
    r"^(?:Condense this text:\n\n|Abstract: )?([\s\S]+)\n\n"
    r"(?:Summary|TL;DR|Title|One-line summary|What is the main[^\n]+|Subject|Headline):?$",
)
_SENTENCES = (
    r"^Translate from (?P<language>\w+) to \w+: ([^\n]+)$",
    r"^(?P<language>\w+) -> \w+\n([^\n]+)$",
    r"^(?P<language>\w+): ([^\n]+)\n\w+:$",
    r"^Give the \w+ translation of the following (?P<language>\w+) text\.\n\n([^\n]+)$",
)
_TURN = re.compile(r"^(User|Assistant|AI|A|B): ?(.*)$", re.MULTILINE)

_TEMPLATES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "classification": {"comment": _COMMENTS, "request": _REQUESTS},
    "code": {"command": _COMMANDS, "sql": _SQL},
    "math": {"problem": _PROBLEMS},
    "qa": {"passage": _PASSAGES, "choice": _CHOICES, "question": _QUESTIONS},
    "summarization": {"text": _TEXTS},
    "translation": {"sentence": _SENTENCES},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    text: str
    other: str = ""
    """A passage's text, a choice's options, a SQL question's columns, a sentence's language; a dialogue has none."""
    turns: tuple[str, ...] = ()
    """A dialogue's, without the speakers."""


Contents = dict[str, list[Content]]
"""By kind: comment, request, command, sql, problem, passage, choice, question, text, sentence, dialogue."""


def collect_contents(rows: Mapping[str, Iterable[Row]]) -> Contents:
    found: Contents = {}
    for task, of_task in rows.items():
        for row in of_task:
            kind, content = _parse_dialogue(row.prompt) if task == "chat" else _parse(task, row.prompt)
            if content is not None:
                found.setdefault(kind, []).append(content)
    return found


def _parse(task: str, prompt: str) -> tuple[str, Content | None]:
    for kind, patterns in _TEMPLATES.get(task, {}).items():
        for pattern in patterns:
            if match := re.match(pattern, prompt):
                named = match.groupdict()
                texts = [text for text in match.groups() if text not in named.values()]
                if texts:
                    return kind, Content(text=texts[0].strip(), other=next(iter(named.values()), "").strip())
    return "", None


def _parse_dialogue(prompt: str) -> tuple[str, Content | None]:
    turns = [text for _, text in _TURN.findall(prompt) if text.strip()]
    return "dialogue", Content(text="", turns=tuple(turns)) if turns else None
