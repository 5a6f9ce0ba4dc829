from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from emoe.cli.display import Display, JsonDisplay, PlainDisplay, ReadySystem
from emoe.cli.live import LiveDisplay
from emoe.cli.supervisor import ChildEvent, ChildState
from emoe.cli.view import Counters, QueueView, SystemView, WorkerRates, WorkerView

WORKER = WorkerView(
    worker_id="w1",
    address="127.0.0.1:1",
    ready=True,
    miss_policy="reroute",
    num_resident=48,
    num_slots=50,
    slot_bytes=1024,
    num_running=2,
    num_waiting=1,
    counters=Counters(num_expert_hits=3, num_expert_choices=4, num_experts_loaded=60),
)
VIEW = SystemView(
    num_experts=192,
    queue=QueueView(
        num_waiting=5, num_running=2, num_workers=1, max_queued_requests=256, max_queued_bytes=64 * 1024 * 1024
    ),
    workers=(WORKER,),
    rates={"w1": WorkerRates(prefill_tokens_per_second=200.0, decode_tokens_per_second=31.0, hit_rate=0.875)},
)
EMPTY_VIEW = SystemView(num_experts=None, queue=None, workers=(), rates={})
READY = ReadySystem(scheduler="127.0.0.1:50051", loader="127.0.0.1:2", model="/models/m", startup_seconds=3.21)


def play(display: Display) -> None:
    with display:
        display.on_child(ChildEvent(name="worker", state=ChildState.STARTING))
        display.on_view(EMPTY_VIEW)
        display.on_child(ChildEvent(name="worker", state=ChildState.READY))
        display.on_ready(READY)
        display.on_view(VIEW)
        display.on_child(ChildEvent(name="worker", state=ChildState.RESTARTING, detail="it ended with signal 9"))


def test_json_is_one_object_a_line() -> None:
    out = io.StringIO()
    play(JsonDisplay(out))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["service", "status", "service", "ready", "status", "service"]
    assert lines[3]["scheduler"] == "127.0.0.1:50051"
    [worker] = lines[4]["workers"]
    assert (worker["num_resident"], worker["hit_rate"], worker["total_hit_rate"]) == (48, 0.875, 0.75)
    assert (lines[4]["num_experts"], lines[4]["queue"]["num_waiting"]) == (192, 5)
    assert lines[4]["queue"]["max_queued_requests"] == 256


def test_plain_lines_say_what_changed() -> None:
    out = io.StringIO()
    play(PlainDisplay(out))
    assert out.getvalue().splitlines() == [
        "worker: starting",
        "worker: ready",
        "ready after 3.2 s: /models/m on 127.0.0.1:50051",
        'try: emoe generate "..."',
        "w1: 48/192 experts resident, hit rate 87.5%, 200 prefill and 31 decode tokens/s, 2 running, 1 waiting",
        "worker: restarting (it ended with signal 9)",
    ]


def test_plain_figures_come_only_now_and_then() -> None:
    out, now = io.StringIO(), [0.0]
    display = PlainDisplay(out, clock=lambda: now[0])
    for now[0] in (0.0, 1.0, 2.0):
        display.on_view(VIEW)
    assert len(out.getvalue().splitlines()) == 1


@pytest.mark.parametrize("expected", ["48/192", "87.5%", "200", "31", "queue: 2 running, 5 of 256 waiting", "signal 9"])
def test_the_live_view_shows_each_figure(expected: str) -> None:
    out = io.StringIO()
    play(LiveDisplay(console=Console(file=out, force_terminal=True, width=140, color_system=None), title="emoe: m"))
    assert expected in out.getvalue()
