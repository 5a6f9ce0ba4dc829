"""Trains the sequence predictors and compares them with counting: `python -m emoe.train.sequence_main --help`.

For whoever chooses a predictor or doubts the choice; what is served is trained by `emoe profile`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from emoe.bench.machine import describe_machine
from emoe.core.errors import EmoeError
from emoe.core.experts import ExpertGrid
from emoe.eval.recorded import read_recorded
from emoe.train.prompt_counts import TEST, TRAIN, count_data, count_recorded, load_counts, save_counts
from emoe.train.sequence_compare import (
    AccuracyRow,
    CompareSettings,
    CoverageRow,
    MethodRow,
    build_streams,
    compare,
    time_methods,
)
from emoe.train.sequence_data import PromptCounts
from emoe.train.sequence_methods import LEARNED, counting_methods, learned_method
from emoe.train.sequence_table import render_tables
from emoe.worker.device import bound_kernel_cache

TRAINING_FIGURES = ("frequency_loss", "loss", "truth_fed_loss", "accuracy", "truth_fed_accuracy", "num_steps")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    bound_kernel_cache()
    torch.set_num_threads(options.threads)
    try:
        grid, counted = _count(options)
        _compare(options, grid, counted)
    except (EmoeError, ValueError) as error:
        print(f"emoe: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("emoe: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m emoe.train.sequence_main",
        description="Trains XLNet and GRU as eMoE-A and eMoE-L on the routing of training prompts, and says what plans "
        "made from each cover of held-out prompts, beside counting and hindsight.",
    )
    source = parser.add_argument_group("what routed")
    source.add_argument("model", nargs="?", type=Path, help="checkpoint folder, with --data")
    source.add_argument("--data", type=Path, help="folder with train/ and test/, in each TASK.jsonl[.zst]")
    source.add_argument("--rows", type=int, default=1000, help="training rows a task (default %(default)s)")
    source.add_argument("--test-rows", type=int, default=100, help="held-out rows a task (default %(default)s)")
    source.add_argument("--max-context", type=int, default=1024, help="longer rows are left out (default %(default)s)")
    source.add_argument("--counts", type=Path, help="keep what was counted there, or take it from there if it is kept")
    source.add_argument("--routing", type=Path, help="in their place: recorded routing, as `emoe eval --routing` reads")
    source.add_argument("--held-out", type=float, default=0.3, help="of the recorded prompts (default %(default)s)")
    parser.add_argument("--arrivals", type=Path, help="a .csv[.gz] whose column `task` orders the mixed stream")
    parser.add_argument("--networks", default=",".join(LEARNED), help="default %(default)s")
    parser.add_argument("--orders", type=int, default=2, help="orders of each stream (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, dest="json_file", help="write every row there")
    return parser


def _count(options: argparse.Namespace) -> tuple[ExpertGrid, dict[str, list[PromptCounts]]]:
    if options.routing is not None:
        return count_recorded(read_recorded(options.routing), held_out_ratio=options.held_out, seed=options.seed)
    if options.counts is not None and options.counts.exists():
        _say(f"taking the counts that {options.counts} keeps; the model and --data are not looked at")
        return load_counts(options.counts)
    if options.model is None or options.data is None:
        raise ValueError("give a model and --data, or --routing")
    num_rows = {TRAIN: options.rows, TEST: options.test_rows}
    counted = count_data(options.model, options.data, num_rows=num_rows, max_context=options.max_context, say=_say)
    if options.counts is not None:
        save_counts(options.counts, *counted)
    return counted


def _compare(options: argparse.Namespace, grid: ExpertGrid, counted: dict[str, list[PromptCounts]]) -> None:
    train, test = counted[TRAIN], counted[TEST]
    settings = CompareSettings(num_orders=options.orders, seed=options.seed)
    methods = counting_methods(train, moe_layers=grid.moe_layers, top_k=grid.rule.top_k)
    losses: dict[str, dict[str, float]] = {}
    for name in options.networks.split(","):
        _say(f"training {name} on {len(train)} prompts")
        method, trained = learned_method(
            name, train, moe_layers=grid.moe_layers, top_k=grid.rule.top_k, seed=options.seed, say=_say
        )
        methods.insert(-1, method)
        losses[name] = {key: getattr(trained, key) for key in TRAINING_FIGURES}
    streams = build_streams(test, settings, _read_arrivals(options.arrivals) if options.arrivals else None)
    coverage, accuracy = compare(methods, streams, grid, settings, say=_say)
    timed = time_methods(methods, streams["mixed"][0])
    print(render_tables(coverage, accuracy, timed))
    if options.json_file is not None:
        report = _report(options, settings, counted, losses, coverage, accuracy, timed)
        options.json_file.write_text(json.dumps(report, indent=1) + "\n")


def _report(
    options: argparse.Namespace,
    settings: CompareSettings,
    counted: dict[str, list[PromptCounts]],
    losses: dict[str, dict[str, float]],
    coverage: Sequence[CoverageRow],
    accuracy: Sequence[AccuracyRow],
    timed: Sequence[MethodRow],
) -> dict[str, object]:
    return {
        "source": (options.routing or options.model or options.counts).name,
        "machine": dataclasses.asdict(describe_machine(threads=options.threads)),
        "settings": dataclasses.asdict(settings),
        "num_prompts": {split: len(prompts) for split, prompts in counted.items()},
        "training": losses,
        "methods": [dataclasses.asdict(row) for row in timed],
        "accuracy": [dataclasses.asdict(row) for row in accuracy],
        "coverage": [dataclasses.asdict(row) for row in coverage],
    }


def _read_arrivals(path: Path) -> list[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines)
        if "task" not in (rows.fieldnames or ()):
            raise ValueError(f"{path} has no column `task`")
        return [str(row["task"]) for row in rows]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
