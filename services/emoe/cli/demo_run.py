"""The process side of `emoe demo`: a state folder of its own, progress on stderr, the table or JSON on stdout."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from emoe.cli.demo import DemoRow, demo
from emoe.cli.demo_prompts import DEMO_PROMPTS, TaskPrompt
from emoe.cli.demo_table import describe_demo, print_demo
from emoe.cli.display import PlainDisplay
from emoe.cli.failures import CommandError
from emoe.cli.signals import run_until_signalled
from emoe.cli.system import SystemOptions


def run_demo(model: Path, worker: Mapping[str, str], *, as_json: bool) -> int:
    """The exit status: 0 only if every prompt was answered by the paged model. The logs stay after a failure."""
    state_dir = Path(tempfile.mkdtemp(prefix="emoe-demo-"))
    options = SystemOptions(model=model, state_dir=state_dir, listen="127.0.0.1:0", worker=worker)
    started = time.monotonic()
    try:
        rows = _run(options)
    except CommandError as error:
        raise CommandError(f"{error}\nAll logs are in {state_dir / 'logs'}") from error
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps(describe_demo(rows, model=str(model), total_seconds=seconds)))
    else:
        print_demo(rows)
    num_passed = sum(row.passed for row in rows)
    _say(f"{num_passed} of {len(rows)} prompts were answered by the paged model, {seconds:.1f} s in all")
    if num_passed < len(rows):
        _say(f"the services' logs are in {state_dir / 'logs'}")
        return 1
    shutil.rmtree(state_dir)
    return 0


def one_a_task(prompts: Iterable[TaskPrompt]) -> tuple[TaskPrompt, ...]:
    """The first prompt of each task."""
    first: dict[str, TaskPrompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.task, prompt)
    return tuple(first.values())


def _run(options: SystemOptions) -> tuple[DemoRow, ...]:
    progress = PlainDisplay(sys.stderr)
    rows: tuple[DemoRow, ...] | None = None

    async def work() -> None:
        nonlocal rows
        rows = await demo(options, one_a_task(DEMO_PROMPTS), on_event=progress.on_child, on_row=_say_row)

    asyncio.run(run_until_signalled(work()))
    if rows is None:
        raise CommandError("the demo was stopped before its end")
    return rows


def _say_row(row: DemoRow) -> None:
    _say(f"{row.task}: {f'failed: {row.failure}' if row.failure else 'answered'}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
