"""The worker of `emoe bench refresh`: `emoe serve worker`, whose answers are forced to those of a file.

Usage: python -m emoe.cli.bench_refresh_worker ANSWERS [options of emoe serve worker].
"""

from __future__ import annotations

import sys
from pathlib import Path

from emoe.cli.reporting import reported_errors


def main(answers: str, *arguments: str) -> None:
    from emoe.bench.refresh_answers import forced_answers, read_answers
    from emoe.cli.serve import serve

    with reported_errors(), forced_answers(read_answers(Path(answers))):
        serve("worker", arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
