"""How `emoe up` tells what goes on: the seam, and its two forms without a terminal. `live` has the third, for a TTY."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from emoe.cli.supervisor import ChildEvent
from emoe.cli.view import QueueView, SystemView, WorkerRates, WorkerView, hit_rate_of

PLAIN_INTERVAL_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadySystem:
    scheduler: str
    loader: str
    model: str
    startup_seconds: float


class Display(Protocol):
    """Used as a context; nothing here may block."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *exc_info: object) -> None: ...
    def on_child(self, event: ChildEvent) -> None: ...
    def on_ready(self, system: ReadySystem) -> None: ...
    def on_view(self, view: SystemView) -> None:
        """Each second, from the moment that the loader is up."""
        ...


class JsonDisplay:
    """One JSON object a line, for programs."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout

    def __enter__(self) -> JsonDisplay:
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    def on_child(self, event: ChildEvent) -> None:
        self._print("service", {"name": event.name, "state": event.state.value, "detail": event.detail})

    def on_ready(self, system: ReadySystem) -> None:
        self._print("ready", dataclasses.asdict(system))

    def on_view(self, view: SystemView) -> None:
        self._print("status", describe_view(view))

    def _print(self, event: str, fields: dict[str, Any]) -> None:
        print(json.dumps({"event": event, **fields}), file=self._out, flush=True)


class PlainDisplay:
    """Lines for a log: every change of a service, and the figures now and then while something runs."""

    def __init__(self, out: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out or sys.stdout
        self._clock = clock
        self._last_line = ""
        self._last_seconds = -PLAIN_INTERVAL_SECONDS

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    def on_child(self, event: ChildEvent) -> None:
        self._print(f"{event.name}: {event.state.value}{f' ({event.detail})' if event.detail else ''}")

    def on_ready(self, system: ReadySystem) -> None:
        self._print(f"ready after {system.startup_seconds:.1f} s: {system.model} on {system.scheduler}")
        self._print('try: emoe generate "..."')

    def on_view(self, view: SystemView) -> None:
        if self._clock() - self._last_seconds < PLAIN_INTERVAL_SECONDS:
            return
        line = "; ".join(describe_worker(view, worker) for worker in view.workers)
        if line and line != self._last_line:
            self._print(line)
            self._last_line, self._last_seconds = line, self._clock()

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def describe_worker(view: SystemView, worker: WorkerView) -> str:
    """One worker in one line."""
    rates = view.rates[worker.worker_id]
    return (
        f"{worker.worker_id}: {worker.num_resident}/{view.num_experts or '?'} experts resident, "
        f"hit rate {format_ratio(rates.hit_rate)}, {rates.prefill_tokens_per_second:.0f} prefill and "
        f"{rates.decode_tokens_per_second:.0f} decode tokens/s, "
        f"{worker.num_running} running, {worker.num_waiting} waiting"
    )


def describe_view(view: SystemView) -> dict[str, Any]:
    """The same figures for a program."""
    return {
        "time_seconds": time.time(),
        "num_experts": view.num_experts,
        "queue": _queue(view.queue),
        "workers": [_worker(worker, view.rates[worker.worker_id]) for worker in view.workers],
    }


def format_ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1%}"


def _queue(queue: QueueView | None) -> dict[str, Any] | None:
    return None if queue is None else dataclasses.asdict(queue)


def _worker(worker: WorkerView, rates: WorkerRates) -> dict[str, Any]:
    return {
        **dataclasses.asdict(worker),
        **dataclasses.asdict(rates),
        "total_hit_rate": hit_rate_of(worker.counters),
    }
