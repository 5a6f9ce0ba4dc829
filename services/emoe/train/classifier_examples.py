"""What a task by examples finds, and what it takes from others: `python -m emoe.train.classifier_examples --help`.

Every origin of labelled prompts with enough of them plays a user's task once: some of its prompts are the examples, the
others should be found, those of all other origins should not.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from emoe.core.errors import EmoeError
from emoe.core.example_tasks import ExampleTasks
from emoe.core.task_classifier import TaskClassifier, load_shipped_classifier
from emoe.core.tasks import MAX_EXAMPLE_CHARACTERS
from emoe.core.text_features import TextFeatures, extract_features
from emoe.train.classifier_figures import read_labelled

TASK = "mine"
MAX_PROMPTS = 100
"""Of an origin."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        prompts: dict[str, list[str]] = {}
        for path in options.prompts:
            for one in read_labelled(path):
                prompts.setdefault(one.origin, []).append(one.prompt)
        for num_examples in options.examples:
            _print_figures(prompts, load_shipped_classifier(), num_examples, options)
    except (EmoeError, ValueError, OSError) as error:
        print(f"emoe: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m emoe.train.classifier_examples",
        description="Takes every origin of prompts for a user's task and says how many of its prompts a few of them "
        "find, and how many of the other origins'.",
    )
    parser.add_argument("prompts", type=Path, nargs="+", help="JSON lines with prompt, want, origin, half")
    parser.add_argument("--examples", type=int, nargs="+", default=[3, 5, 10], help="a task (default 3 5 10)")
    parser.add_argument("--draws", type=int, default=3, help="of examples, for each origin (default %(default)s)")
    parser.add_argument("--least", type=int, default=25, help="prompts of an origin that plays (default %(default)s)")
    parser.add_argument("--each", action="store_true", help="print every origin, not the means alone")
    return parser


def _print_figures(
    prompts: Mapping[str, Sequence[str]], classifier: TaskClassifier, num_examples: int, options: argparse.Namespace
) -> None:
    features = {origin: [extract_features(one) for one in some[:MAX_PROMPTS]] for origin, some in prompts.items()}
    players = [origin for origin, some in features.items() if len(some) >= options.least]
    figures = {
        origin: _measure(origin, prompts[origin], features, classifier, num_examples, options.draws)
        for origin in players
    }
    for origin, (found, taken) in figures.items() if options.each else ():
        print(f"  {origin:32} found {100 * found:5.1f} %  taken {100 * taken:6.2f} %")
    found, taken = (statistics.mean(values) for values in zip(*figures.values(), strict=True))
    print(
        f"{num_examples} examples, {len(players)} tasks: found {100 * found:.1f} %, of others taken {100 * taken:.2f} %"
    )


def _measure(
    origin: str,
    prompts: Sequence[str],
    features: Mapping[str, Sequence[TextFeatures]],
    classifier: TaskClassifier,
    num_examples: int,
    num_draws: int,
) -> tuple[float, float]:
    """Shares: of the origin's other prompts found, and of other origins' prompts taken, the mean over draws."""
    rng = random.Random(origin)
    others = [one for other, some in features.items() if other != origin for one in some]
    found, taken = [], []
    for _ in range(num_draws):
        chosen = set(rng.sample(range(len(features[origin])), num_examples))
        examples = {TASK: [prompts[index][:MAX_EXAMPLE_CHARACTERS] for index in sorted(chosen)]}
        tasks = ExampleTasks.build(examples, classifier)
        rest = [one for index, one in enumerate(features[origin]) if index not in chosen]
        found.append(statistics.mean(tasks.match(one) is not None for one in rest))
        taken.append(statistics.mean(tasks.match(one) is not None for one in others))
    return statistics.mean(found), statistics.mean(taken)


if __name__ == "__main__":
    raise SystemExit(main())
