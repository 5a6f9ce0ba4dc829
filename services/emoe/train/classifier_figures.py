"""How well tasks are identified: on a corpus's test prompts, and on prompts of other origin that chose nothing.

A prompt of other origin may allow several labels (a question about a proof is math and qa); `unknown` alone is for
those of no task. Beside the classifier stand eMoE's keyword lists and plain TF-IDF with logistic regression, both made
from the same corpus.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from emoe.core.errors import InvalidRequestError
from emoe.core.task_classifier import LABELS, Identified
from emoe.core.tasks import UNKNOWN

HALVES = ("choose", "report")
_NUM_BINS = 10
Identify = Callable[[str], Identified]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledPrompt:
    prompt: str
    allowed: frozenset[str]
    origin: str
    half: str
    """`choose`: temperature and threshold may be chosen by it. `report`: nothing was."""

    @property
    def has_task(self) -> bool:
        return UNKNOWN not in self.allowed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    num_prompts: int
    right_ratio: float
    """Of the prompts that have a task: named, and rightly."""
    unknown_ratio: float
    """Of the prompts that have a task."""
    sure_right_ratio: float
    """Of all prompts that got a name."""
    false_name_ratio: float
    """Of the prompts that have no task: named all the same."""
    calibration_error: float
    """Expected calibration error of the likeliest task's probability, in ten bins of equal width."""


def read_labelled(path: Path) -> list[LabelledPrompt]:
    """JSON lines with prompt, want (labels), origin and half. InvalidRequestError names file and line."""
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [_parse_labelled(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _parse_labelled(line: str, where: str) -> LabelledPrompt:
    try:
        row = json.loads(line)
        found = LabelledPrompt(
            prompt=str(row["prompt"]), allowed=frozenset(row["want"]), origin=row["origin"], half=row["half"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequestError(f"{where}: no labelled prompt ({error})") from error
    if not found.allowed or not found.allowed <= set(LABELS) or found.half not in HALVES:
        raise InvalidRequestError(
            f"{where}: want must be among {', '.join(LABELS)}, and half among {', '.join(HALVES)}"
        )
    return found


def measure(identify: Identify, prompts: Sequence[LabelledPrompt]) -> Figures:
    identified = [identify(one.prompt) for one in prompts]
    pairs = list(zip(prompts, identified, strict=True))
    of_task = [(one, got) for one, got in pairs if one.has_task]
    of_none = [(one, got) for one, got in pairs if not one.has_task]
    named = [(one, got) for one, got in pairs if got.task != UNKNOWN]
    return Figures(
        num_prompts=len(prompts),
        right_ratio=_ratio(got.task in one.allowed for one, got in of_task),
        unknown_ratio=_ratio(got.task == UNKNOWN for _, got in of_task),
        sure_right_ratio=_ratio(got.task in one.allowed for one, got in named),
        false_name_ratio=_ratio(got.task != UNKNOWN and got.task not in one.allowed for one, got in of_none),
        calibration_error=_calibration_error(pairs),
    )


def measure_tasks(identify: Identify, prompts: Sequence[LabelledPrompt]) -> dict[str, Figures]:
    """By the prompt's only label; those that allow several are under `several`."""
    groups: dict[str, list[LabelledPrompt]] = collections.defaultdict(list)
    for one in prompts:
        groups[next(iter(one.allowed)) if len(one.allowed) == 1 else "several"].append(one)
    return {name: measure(identify, groups[name]) for name in sorted(groups)}


def _calibration_error(pairs: Sequence[tuple[LabelledPrompt, Identified]]) -> float:
    """Guo et al. 2017, equation 3, over prompts of a task or none: how often the likeliest task is an allowed one."""
    probability_N = np.array([got.probability for _, got in pairs])
    right_N = np.array([got.likeliest in one.allowed for one, got in pairs])
    bin_N = np.minimum((probability_N * _NUM_BINS).astype(int), _NUM_BINS - 1)
    gaps = [
        abs(right_N[bin_N == b].mean() - probability_N[bin_N == b].mean()) * np.mean(bin_N == b) for b in set(bin_N)
    ]
    return float(sum(gaps))


def _ratio(outcomes: Iterable[bool]) -> float:
    listed = list(outcomes)
    return sum(listed) / len(listed) if listed else float("nan")


class KeywordLists:
    """eMoE's way: keywords of each task; the task with most matches in the prompt wins, `unknown` if none or a tie.

    The paper says not how lists are made: here the words that are in more of a task's prompts than of any other's,
    those with the widest gap first."""

    def __init__(self, prompts: Mapping[str, Sequence[str]], *, num_keywords: int) -> None:
        shares = {task: _document_shares(of_task) for task, of_task in prompts.items()}
        self._lists = {task: _keywords(task, shares, num_keywords) for task in shares}

    def identify(self, text: str) -> Identified:
        words = _words(text)
        matches = {task: sum(word in keywords for word in words) for task, keywords in self._lists.items()}
        (best, most), (_, second) = collections.Counter(matches).most_common(2)
        task = best if most > second else UNKNOWN
        return Identified(task=task, likeliest=best, probability=most / max(1, sum(matches.values())))


def _keywords(task: str, shares: Mapping[str, Mapping[str, float]], num_keywords: int) -> frozenset[str]:
    def gap(word: str) -> float:
        others = max(of_other.get(word, 0.0) for other, of_other in shares.items() if other != task)
        return shares[task][word] - others

    return frozenset(sorted((word for word in shares[task] if gap(word) > 0), key=gap, reverse=True)[:num_keywords])


def _document_shares(prompts: Sequence[str]) -> dict[str, float]:
    counts = collections.Counter(word for prompt in prompts for word in set(_words(prompt)))
    return {word: count / len(prompts) for word, count in counts.items()}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
