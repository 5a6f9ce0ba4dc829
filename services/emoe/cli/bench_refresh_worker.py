"""The worker of `emoe bench refresh`: `emoe serve worker`, whose answers are forced to those of a file.

Usage: python -m emoe.cli.bench_refresh_worker ANSWERS [options of emoe serve worker].
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from emoe.cli.reporting import reported_errors


def main(answers: str, *arguments: str) -> None:
    from emoe.bench.refresh_answers import forced_sampler, read_answers
    from emoe.cli.serve import parse_settings
    from emoe.runtime.lifecycle import run_process
    from emoe.worker.main import serve
    from emoe.worker.settings import WorkerSettings

    with reported_errors():
        run = functools.partial(serve, sampler=forced_sampler(read_answers(Path(answers))))
        raise SystemExit(run_process(run, parse_settings("worker", WorkerSettings, arguments), name="worker"))


if __name__ == "__main__":
    main(*sys.argv[1:])
