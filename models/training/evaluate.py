"""Measures a checkpoint on held-out rows: perplexity, classification, and how far its routing depends on the task.

    python models/training/evaluate.py models/emoe-tiny --data CORPUS --json models/emoe-tiny/evaluation.json
    python models/training/evaluate.py models/emoe-tiny --update-readme

The rows of a task are cut in two halves. A quarter of each layer's experts is chosen by the routing of one half and
judged on the other, both ways: once by the task's own routing, once by that of all tasks with equal weight.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from architecture import load_tokenizer
from corpus import TASKS, Example, Row, encode, read_rows
from metrics import ExactMatch, Score, combine, coverage, exact_match, pool, sum_scores, top_share
from report import (
    Evaluation,
    QuarterResult,
    TaskResult,
    classification_cells,
    language_cells,
    plain_table,
    read_json,
    routing_cells,
    update_readme,
    write_json,
)
from scoring import Scorer

QUARTER = 0.25
ANSWERS_PER_BATCH = 64
LONGEST_LABEL_TOKENS = 24

Halves = tuple[Score, Score]
Masks = tuple[np.ndarray | None, np.ndarray | None]


class Progress:
    """A line on stderr for every stage, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {what}", file=sys.stderr, flush=True)


def evaluate(folder: Path, scorer: Scorer, rows: Mapping[str, Sequence[Row]], *, split: str) -> Evaluation:
    progress = Progress()
    subtasks = dict(_classify(scorer, rows["classification"], progress))
    parameters = {name: p.numel() for name, p in scorer.model.named_parameters()}
    routed = sum(count for name, count in parameters.items() if ".mlp.experts." in name)
    record = folder / "training.json"
    tokenizer = load_tokenizer(folder)  # its own: a padded call leaves padding switched on in the scorer's
    return Evaluation(
        model=folder.name,
        split=split,
        parameters=sum(parameters.values()),
        routed_share=routed / sum(parameters.values()),
        checkpoint_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        training=json.loads(record.read_text()) if record.exists() else None,
        tasks=_score_tasks(scorer, {task: encode(tokenizer, list(part)) for task, part in rows.items()}, progress),
        classification=combine(list(subtasks.values())),
        subtasks=subtasks,
    )


def _classify(scorer: Scorer, rows: Sequence[Row], progress: Progress) -> Iterator[tuple[str, ExactMatch]]:
    ordered = sorted(rows, key=lambda row: len(row.prompt))
    answers: list[str] = []
    for first in range(0, len(ordered), ANSWERS_PER_BATCH):
        prompts = [row.prompt for row in ordered[first : first + ANSWERS_PER_BATCH]]
        answers += scorer.answer(prompts, max_new_tokens=LONGEST_LABEL_TOKENS)
        progress(f"classification: {len(answers)} of {len(ordered)} rows answered")
    for subtask in sorted({row.subtask for row in ordered}):
        pairs = [(answer, row.response) for answer, row in zip(answers, ordered, strict=True) if row.subtask == subtask]
        yield subtask, exact_match([answer for answer, _ in pairs], [expected for _, expected in pairs])


def _score_tasks(
    scorer: Scorer, examples: Mapping[str, Sequence[Example]], progress: Progress
) -> dict[str, TaskResult]:
    """Three passes over all examples: all experts, each task's own quarter, the global quarter."""
    full: dict[str, Halves] = {}
    for task, encoded in examples.items():
        full[task] = _score_halves(scorer, encoded, masks=(None, None))
        progress(f"{task}: {len(encoded)} rows scored with all experts")
    pooled = [pool([halves[half].choices_LE for halves in full.values()]) for half in (0, 1)]
    global_masks = _crossed_quarters(pooled)
    results = {}
    for task, encoded in examples.items():
        own_masks = _crossed_quarters([half.choices_LE for half in full[task]])
        own = _score_halves(scorer, encoded, masks=own_masks)
        rest = _score_halves(scorer, encoded, masks=global_masks)
        progress(f"{task}: scored with its own and with the global quarter of experts")
        all_resident = sum_scores(full[task])
        results[task] = TaskResult(
            rows=len(encoded),
            tokens=all_resident.num_tokens,
            response_perplexity=all_resident.response_perplexity,
            perplexity=all_resident.perplexity,
            own_quarter=_quarter(full[task], own_masks, rerouted=own),
            global_quarter=_quarter(full[task], global_masks, rerouted=rest),
        )
    return results


def _score_halves(scorer: Scorer, examples: Sequence[Example], *, masks: Masks) -> Halves:
    scores = []
    for half, mask in enumerate(masks):
        with scorer.only_resident(mask):
            scores.append(scorer.score(examples[half::2]))
    return scores[0], scores[1]


def _crossed_quarters(choices: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For each half the top quarter by the routing of the other."""
    return top_share(choices[1], share=QUARTER), top_share(choices[0], share=QUARTER)


def _quarter(full: Halves, masks: tuple[np.ndarray, np.ndarray], *, rerouted: Halves) -> QuarterResult:
    all_resident, quarter_resident = sum_scores(full), sum_scores(rerouted)
    covered = [coverage(half.choices_LE, mask) * half.num_tokens for half, mask in zip(full, masks, strict=True)]
    return QuarterResult(
        coverage=sum(covered) / all_resident.num_tokens,
        response_factor=quarter_resident.response_perplexity / all_resident.response_perplexity,
        factor=quarter_resident.perplexity / all_resident.perplexity,
    )


def _read(data: Path, split: str, num_rows: int | None) -> dict[str, list[Row]]:
    return {task: list(islice(read_rows(data, split, task), num_rows)) for task in TASKS}


def _print_samples(scorer: Scorer, rows: Mapping[str, Sequence[Row]], num_samples: int) -> None:
    for task, task_rows in rows.items():
        chosen = task_rows[:num_samples]
        for row, answer in zip(chosen, scorer.answer([row.prompt for row in chosen], max_new_tokens=96), strict=True):
            print(f"\n[{task}/{row.subtask}] {row.prompt}\n  answer:   {answer}\n  expected: {row.response}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the checkpoint")
    parser.add_argument("--data", type=Path, help="the corpus; without it, an evaluation made before is shown")
    parser.add_argument("--split", choices=["valid", "test"], default="test")
    parser.add_argument("--rows", type=int, help="at most so many rows a task")
    parser.add_argument("--json", type=Path, help="where the result is written, or read without --data")
    parser.add_argument("--samples", type=int, default=0, help="greedy answers to print for each task")
    parser.add_argument("--update-readme", action="store_true", help="put the tables into README.md beside the folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    if options.data:
        scorer = Scorer(options.model, torch.device(options.device))
        rows = _read(options.data, options.split, options.rows)
        if options.samples:
            _print_samples(scorer, rows, options.samples)
        evaluation = evaluate(options.model, scorer, rows, split=options.split)
        if options.json:
            write_json(evaluation, options.json)
    else:
        evaluation = read_json(options.json or options.model / "evaluation.json")
    for cells in (language_cells(evaluation), classification_cells(evaluation), routing_cells(evaluation)):
        print(plain_table(cells), end="\n\n")
    if options.update_readme:
        update_readme(options.model.parent / "README.md", evaluation)


if __name__ == "__main__":
    main()
