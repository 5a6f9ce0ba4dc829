"""The live view of `emoe up` on a terminal. Rendering only: values in, rich out."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from emoe.cli.display import ReadySystem, format_ratio
from emoe.cli.supervisor import ChildEvent, ChildState
from emoe.cli.view import SystemView, WorkerView

STATE_STYLES = {
    ChildState.STARTING: "yellow",
    ChildState.READY: "green",
    ChildState.RESTARTING: "red",
    ChildState.STOPPED: "dim",
}
REFRESHES_PER_SECOND = 4


class LiveDisplay:
    """Redraws in place; notices that should stay (a service that died) scroll above."""

    def __init__(self, *, console: Console, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._children: dict[str, ChildEvent] = {}
        self._system: ReadySystem | None = None
        self._view: SystemView | None = None
        self._live = Live(console=console, refresh_per_second=REFRESHES_PER_SECOND, get_renderable=self._render)

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def on_child(self, event: ChildEvent) -> None:
        self._children[event.name] = event
        if event.state is ChildState.RESTARTING:
            self._live.console.print(f"[red]{event.name}[/] {event.detail}; it is started again", highlight=False)

    def on_ready(self, system: ReadySystem) -> None:
        self._system = system

    def on_view(self, view: SystemView) -> None:
        self._view = view

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = [render_services(self._children.values())]
        if self._view is not None and self._view.workers:
            parts.append(render_workers(self._view))
        parts.append(self._footer())
        return Panel(Group(*parts), title=self._title, title_align="left", border_style="dim")

    def _footer(self) -> Text:
        if self._system is None:
            return Text(f"starting, {time.monotonic() - self._started:.0f} s", style="dim")
        queue = self._view.queue if self._view else None
        waiting = ""
        if queue:
            most = queue.max_queued_requests
            waiting = f"   queue: {queue.num_running} running, {queue.num_waiting} of {most} waiting"
        hint = 'emoe generate "..." asks it, Ctrl-C ends it'
        return Text(f"front door: {self._system.scheduler}{waiting}\n{hint}", "dim")


def render_services(events: Iterable[ChildEvent]) -> Text:
    text = Text()
    for event in events:
        text.append(f"{event.name} ")
        text.append(f"{event.state.value}   ", style=STATE_STYLES[event.state])
    return text


def render_workers(view: SystemView) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("worker", no_wrap=True)
    table.add_column("resident", ratio=1)
    for heading in ("", "hits", "prefill/s", "decode/s", "run", "wait", "loads"):
        table.add_column(heading, justify="right", no_wrap=True)
    for worker in view.workers:
        table.add_row(*_worker_row(view, worker))
    return table


def _worker_row(view: SystemView, worker: WorkerView) -> list[RenderableType]:
    rates = view.rates[worker.worker_id]
    total = view.num_experts or worker.num_slots
    return [
        Text(worker.worker_id, style="" if worker.ready else "yellow"),
        ProgressBar(total=max(total, 1), completed=worker.num_resident),
        f"{worker.num_resident}/{total}",
        format_ratio(rates.hit_rate),
        f"{rates.prefill_tokens_per_second:.0f}",
        f"{rates.decode_tokens_per_second:.0f}",
        str(worker.num_running),
        str(worker.num_waiting),
        str(worker.counters.num_experts_loaded),
    ]
