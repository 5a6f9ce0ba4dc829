"""Training prompts for the task classifier: a corpus's contents asked about in many ways, and much that is no task.

A third is the corpus's own prompts as they are. The same contents appear under several tasks and under none, so that
what decides is what is asked for. Bare texts, comments and sentences belong to no task: nothing is asked.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from emoe.core.tasks import BUILTIN_TASKS, UNKNOWN
from emoe.eval.rows import Row
from emoe.train.classifier_contents import Content, Contents

VERBATIM_SHARE = 0.33
_PHRASES = tomllib.loads(Path(__file__).with_name("classifier_phrases.toml").read_text(encoding="utf-8"))
_LISTS: Mapping[str, Sequence[str]] = _PHRASES["lists"]
_PATTERNS: Mapping[str, Sequence[str]] = _PHRASES["patterns"]
_CHOICE = re.compile(r"\{([^{}]*)\}")
_LIST = re.compile(r"\[([A-Z]+)\]")
_OPTION = re.compile(r"^[A-F]\) (.*)$", re.MULTILINE)
_QUESTION = re.compile(
    r"\?\s*$|^(?:what|who|whom|whose|when|where|why|how|which|is|are|was|were|do|does|did|can|could|will|would)\b",
    re.IGNORECASE,
)
_MAX_PASSES = 12
_SPEAKERS = (
    ("User", "Assistant"), ("Human", "AI"), ("A", "B"), ("Person 1", "Person 2"), ("Customer", "Agent"),
    ("Man", "Woman"), ("Me", "You"), ("Q", "A"), ("Student", "Teacher"), ("<|user|>", "<|assistant|>"),
    ("Speaker 1", "Speaker 2"),
)  # fmt: skip


class PromptWriter:
    """Draws labelled prompts; the same seed and contents give the same ones."""

    def __init__(self, contents: Contents, rows: Mapping[str, Iterable[Row]], *, seed: int) -> None:
        self._contents = contents
        self._verbatim = {task: [row.prompt for row in of_task] for task, of_task in rows.items()}
        self._rng = random.Random(seed)
        self._makers: dict[str, Callable[[], str]] = {
            "chat": self._chat,
            "classification": self._classification,
            "code": self._code,
            "math": self._math,
            "qa": self._qa,
            "summarization": self._summarization,
            "translation": self._translation,
            UNKNOWN: self._none,
        }

    def write(self, num_of_task: int, num_of_none: int) -> Iterator[tuple[str, str]]:
        for task in BUILTIN_TASKS:
            for _ in range(num_of_task):
                yield task, self._of_task(task)
        for _ in range(num_of_none):
            yield UNKNOWN, self._none()

    def _of_task(self, task: str) -> str:
        verbatim = self._verbatim.get(task)
        if verbatim and self._rng.random() < VERBATIM_SHARE:
            return self._rng.choice(verbatim)
        prompt = self._makers[task]()
        return prompt.lower() if self._rng.random() < 0.1 else prompt

    def _chat(self) -> str:
        if self._chance(0.12):
            return self._fill(_PATTERNS["small_talk"])
        talk = self._talk(open_turn=self._chance(0.75))
        return self._fill(_PATTERNS["chat_openers"], x=talk) if self._chance(0.4) else talk

    def _classification(self) -> str:
        text = self._long_text() if self._chance(0.3) else self._short_text()
        return self._fill(_PATTERNS["classification"], x=text)

    def _code(self) -> str:
        drawn = self._rng.random()
        if drawn < 0.3:
            return self._fill(_PATTERNS["code_shell"], x=self._draw("command").text)
        if drawn < 0.6:
            return self._sql()
        return self._fill(_PATTERNS["code_made"], k=self._rng.choice(_PATTERNS["code_bits"]))

    def _sql(self) -> str:
        content = self._draw("sql")
        columns = [column.strip() for column in content.other.split(",")]
        table = self._fill(("[NAME]s", "[THING]", "t", "my_table", "data", "{orders|people|games|results}")).lower()
        typed = ", ".join(
            f"{column} {self._rng.choice(('text', 'int', 'varchar(50)', ''))}".strip() for column in columns
        )
        plain = f"{table}({', '.join(columns)})"
        return self._fill(_PATTERNS["code_sql"], q=content.text, s=plain, c=f"{table} ({typed})")

    def _math(self) -> str:
        content = self._fill(_PATTERNS["math_made"]) if self._chance(0.4) else self._draw("problem").text
        return self._fill(_PATTERNS["math_wrappers"], x=content)

    def _qa(self) -> str:
        drawn = self._rng.random()
        if drawn < 0.3:
            kind = "passage" if self._chance(0.3) else "question"
            return self._fill(_PATTERNS["qa_question"], x=_without_hint(self._draw(kind).text))
        if drawn < 0.55:
            content = self._draw("choice")
            return self._fill(_PATTERNS["qa_options"], q=content.text, o=self._options(content))
        if drawn < 0.85:
            content = self._draw("passage")
            passage = "\n".join((content.other, *(self._draw("passage").other for _ in range(self._few() - 1))))
            return self._fill(_PATTERNS["qa_passage"], q=_without_hint(content.text), p=passage)
        if drawn < 0.92:
            return self._fill(_PATTERNS["qa_talk"], x=self._talk())
        return self._fill(_PATTERNS["qa_explain"])

    def _summarization(self) -> str:
        if self._chance(0.25):
            return self._fill(_PATTERNS["summarization_talk"], x="\n".join(self._talk() for _ in range(self._few())))
        return self._fill(_PATTERNS["summarization"], x=self._long_text())

    def _translation(self) -> str:
        return self._fill(_PATTERNS["translation"], x=self._any_text())

    def _none(self) -> str:
        drawn = self._rng.random()
        if drawn < 0.36:
            return self._fill(_PATTERNS["none_made"])
        if drawn < 0.6:
            return self._fill(_PATTERNS["none_wrappers"], x=self._any_text())
        if drawn < 0.82:
            return self._statement()
        if drawn < 0.9:
            return self._noise()
        if drawn < 0.95:
            return " ".join(self._rng.sample(_PATTERNS["foreign"], self._rng.randint(1, 3)))
        return self._rng.choice(_PATTERNS["code_bits"])

    def _statement(self) -> str:
        """Asks nothing: a question by itself is qa."""
        while True:
            text = self._any_text()
            if not _QUESTION.search(text):
                return text

    def _any_text(self) -> str:
        drawn = self._rng.random()
        if drawn < 0.4:
            return " ".join(self._draw("sentence").text for _ in range(self._few()))
        if drawn < 0.7:
            return self._short_text()
        return self._long_text()

    def _short_text(self) -> str:
        drawn = self._rng.random()
        if drawn < 0.45:
            return " ".join(self._draw("comment").text for _ in range(self._few()))
        if drawn < 0.8:
            return " ".join(self._fill(_PATTERNS["reviews"]) for _ in range(self._few()))
        return self._draw(self._rng.choice(("request", "sentence", "passage", "question"))).text

    def _long_text(self) -> str:
        kind = self._rng.choice(("text", "passage", "reviews", "comment"))
        if kind == "text":
            return " ".join(self._draw("text").text for _ in range(self._few()))
        if kind == "reviews":
            return " ".join(self._fill(_PATTERNS["reviews"]) for _ in range(self._rng.randint(2, 8)))
        return " ".join(self._draw(kind).other or self._draw(kind).text for _ in range(self._rng.randint(1, 5)))

    def _talk(self, *, open_turn: bool = False) -> str:
        turns = list(self._draw("dialogue").turns)
        if not open_turn and len(turns) == 1:
            turns += self._draw("dialogue").turns
        if self._chance(0.4):
            turns = turns[: self._rng.randint(1, len(turns))]
        names = self._rng.choice(_SPEAKERS)
        if self._chance(0.35):
            names = (self._fill(("[NAME]",)), self._fill(("[NAME]",)))
        form = self._rng.choice(("{}: {}", "{}: {}", "{}: {}", "[{}] {}", "{} - {}", "{0}:\n{1}", "- {1}"))
        lines = [form.format(names[index % 2], turn) for index, turn in enumerate(turns)]
        if open_turn:
            lines.append(form.format(names[len(turns) % 2], "").rstrip())
        return "\n".join(lines)

    def _options(self, content: Content) -> str:
        options = _OPTION.findall(content.other)
        form = self._rng.choice(("{0}) {1}", "({0}) {1}", "{0}. {1}", "{2}. {1}", "- {1}", "{1}", "Option {2}: {1}"))
        lines = [form.format("ABCDEF"[i], option, i + 1) for i, option in enumerate(options)]
        if self._chance(0.2):
            lines = [line.replace("ABCDEF"[i], "abcdef"[i], 1) for i, line in enumerate(lines)]
        return self._rng.choice(("\n", "\n", " ", ", ")).join(lines)

    def _noise(self) -> str:
        letters = self._rng.choice(("abcdefghijklmnopqrstuvwxyz", "0123456789", "!?.,;:-_#*+%$&/", "asdfjkl"))
        words = (
            "".join(self._rng.choices(letters, k=self._rng.randint(1, 12))) for _ in range(self._rng.randint(0, 12))
        )
        return self._rng.choice((" ", " ", "")).join(words)

    def _draw(self, kind: str) -> Content:
        return self._rng.choice(self._contents[kind])

    def _few(self) -> int:
        return self._rng.choice((1, 1, 1, 2, 3, 6))

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share

    def _fill(self, patterns: Sequence[str], **slots: str) -> str:
        """One pattern with its alternatives and lists drawn; slots go in last, so that their own braces stay."""
        pattern = self._rng.choice(patterns)
        for _ in range(_MAX_PASSES):
            changed = _LIST.sub(self._entry, _CHOICE.sub(lambda match: self._rng.choice(match[1].split("|")), pattern))
            if changed == pattern:
                break
            pattern = changed
        for name, text in slots.items():
            pattern = pattern.replace(f"<{name}>", text)
        return pattern

    def _entry(self, match: re.Match[str]) -> str:
        name = match[1]
        if name == "N":
            return str(
                self._rng.choice((self._rng.randint(1, 20), self._rng.randint(10, 999), self._rng.randint(1, 9)))
            )
        if name == "OP":
            return self._rng.choice("+-*/")
        entries = _LISTS.get(name)
        return self._rng.choice(entries) if entries else f"({name.lower()})"


def _without_hint(question: str) -> str:
    return question.replace(" (yes or no)", "")
