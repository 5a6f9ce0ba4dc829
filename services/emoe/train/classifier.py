"""Trains the task classifier that ships, and says how good it is: `python -m emoe.train.classifier --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emoe.core.errors import EmoeError
from emoe.core.task_classifier import SHIPPED_FILE, TaskClassifier
from emoe.core.text_features import extract_features
from emoe.eval.rows import Row, read_rows
from emoe.train.classifier_contents import collect_contents
from emoe.train.classifier_figures import (
    Figures,
    Identify,
    KeywordLists,
    LabelledPrompt,
    measure,
    measure_tasks,
    read_labelled,
)
from emoe.train.classifier_fit import FitSettings, calibrate, fit
from emoe.train.classifier_plain import PlainTfIdf
from emoe.train.classifier_prompts import PromptWriter

ORDINARY_CHARACTERS = 1800
LONG_CHARACTERS = 100_000
MAX_TIMED_PROMPTS = 2000
KEYWORD_LIST_SIZES = (5, 10, 25, 50, 100, 200, 400)
Say = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        _run(options)
    except (EmoeError, ValueError, OSError) as error:
        print(f"emoe: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("emoe: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m emoe.train.classifier",
        description="Trains the classifier that names a prompt's task, calibrates it on prompts of other origin, and "
        "measures it beside keyword lists and plain TF-IDF.",
    )
    parser.add_argument("data", type=Path, help="folder with train/ and test/, in each TASK.jsonl[.zst]")
    parser.add_argument("other", type=Path, help="prompts of other origin: JSON lines with prompt, want, origin, half")
    parser.add_argument("--output", type=Path, default=SHIPPED_FILE, help="default: the file that ships")
    parser.add_argument("--keep", action="store_true", help="measure what --output has, train nothing")
    parser.add_argument("--sure", type=float, default=0.95, help="of named prompts, right (default %(default)s)")
    parser.add_argument("--prompts", type=int, default=16000, help="written for each task (default %(default)s)")
    parser.add_argument("--none", type=int, default=44000, help="written for no task (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, dest="json_file", help="write all figures there")
    return parser


def _run(options: argparse.Namespace) -> None:
    rows = read_rows(options.data, "train", max_rows=options.prompts)
    other = read_labelled(options.other)
    choose = [one for one in other if one.half == "choose"]
    report = [one for one in other if one.half == "report"]
    if options.keep:
        classifier = TaskClassifier.parse(options.output.read_bytes())
    else:
        classifier = _train(rows, choose, options)
        options.output.write_bytes(classifier.render())
        _say(f"{options.output}: {options.output.stat().st_size} bytes")
    _say(f"temperature {classifier.temperature:.2f}, threshold {classifier.threshold:.2f}; measuring")
    corpus = [
        LabelledPrompt(prompt=row.prompt, allowed=frozenset({task}), origin="corpus", half="report")
        for task, of_task in read_rows(options.data, "test").items()
        for row in of_task
    ]
    methods = {"emoe": classifier.identify, **_baselines(rows, choose)}
    figures = {
        name: {
            "corpus test": measure(identify, corpus),
            "other origin": measure(identify, report),
            **measure_tasks(identify, report),
        }
        for name, identify in methods.items()
    }
    _print_figures(figures)
    _print_speed(classifier, [one.prompt for one in (*corpus, *report)])
    if options.json_file:
        options.json_file.write_text(json.dumps(figures, default=dataclasses.asdict, indent=1) + "\n", encoding="utf-8")


def _train(rows: Mapping[str, list[Row]], choose: list[LabelledPrompt], options: argparse.Namespace) -> TaskClassifier:
    writer = PromptWriter(collect_contents(rows), rows, seed=options.seed)
    written = list(writer.write(options.prompts, options.none))
    _say(f"{len(written)} prompts written; reading their features")
    features = [extract_features(prompt) for _, prompt in written]
    _say("fitting")
    classifier = fit(features, [label for label, _ in written], FitSettings(seed=options.seed))
    return calibrate(
        classifier,
        [extract_features(one.prompt) for one in choose],
        [one.allowed for one in choose],
        sure_accuracy=options.sure,
    )


def _baselines(rows: Mapping[str, list[Row]], choose: list[LabelledPrompt]) -> dict[str, Identify]:
    """The keyword lists of the length that does best on the half that the classifier was calibrated on, too."""
    prompts = {task: [row.prompt for row in of_task] for task, of_task in rows.items()}
    lists = [KeywordLists(prompts, num_keywords=size) for size in KEYWORD_LIST_SIZES]
    best = max(lists, key=lambda one: measure(one.identify, choose).right_ratio)
    labelled = [(prompt, task) for task, of_task in prompts.items() for prompt in of_task]
    plain = PlainTfIdf([prompt for prompt, _ in labelled], [task for _, task in labelled])
    return {"keywords": best.identify, "tf-idf": plain.identify}


def _print_figures(figures: Mapping[str, Mapping[str, Figures]]) -> None:
    titles = f"{'right':>8}{'unknown':>9}{'named right':>13}{'named none':>12}{'ECE':>7}"
    print(f"{'method':10}{'prompts of':16}{'num':>6}{titles}")
    for method, groups in figures.items():
        for group, one in groups.items():
            ratios = (one.right_ratio, one.unknown_ratio, one.sure_right_ratio, one.false_name_ratio)
            cells = (f"{_percent(ratio):>{width}}" for ratio, width in zip(ratios, (8, 9, 13, 12), strict=True))
            print(f"{method:10}{group:16}{one.num_prompts:>6}{''.join(cells)}{one.calibration_error:>7.3f}")


def _print_speed(classifier: TaskClassifier, prompts: Sequence[str]) -> None:
    """Of one thread's time: what others do on the machine does not count."""
    whole = "\n".join(prompts)
    samples = {
        "prompts as they come": prompts[:: 1 + len(prompts) // MAX_TIMED_PROMPTS],
        f"of {ORDINARY_CHARACTERS} characters": _pieces(whole, ORDINARY_CHARACTERS),
        f"of {LONG_CHARACTERS} characters": _pieces(whole, LONG_CHARACTERS),
    }
    for name, texts in samples.items():
        seconds = [_time(classifier, text) for text in texts]
        p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
        print(f"{name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms ({len(texts)})")


def _pieces(text: str, num_characters: int) -> list[str]:
    starts = range(0, len(text) - num_characters + 1, num_characters)
    return [text[start : start + num_characters] for start in starts][:MAX_TIMED_PROMPTS]


def _time(classifier: TaskClassifier, text: str) -> float:
    started = time.thread_time()
    classifier.identify(text)
    return time.thread_time() - started


def _percent(ratio: float) -> str:
    return "-" if ratio != ratio else f"{100 * ratio:.1f} %"


def _say(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
