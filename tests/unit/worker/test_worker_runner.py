"""The engine's thread: what happens to those who wait when a step fails, when it stalls, and when the engine ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engines import open_parts

from emoe.core.errors import NotReadyError
from emoe.core.generation import Sampling
from emoe.core.schedule.step_cost_fit import MIN_STEPS
from emoe.core.slots import SlotState
from emoe.worker.build import EngineParts
from emoe.worker.engine import Engine
from emoe.worker.runner import MAX_REBUILDS, EngineRunner
from emoe.worker.sequence import Sequence, TokenEvent

WAIT_SECONDS = 20.0


@pytest.fixture
def parts(checkpoint: Callable[[str], Path]) -> Iterator[EngineParts]:
    with open_parts(checkpoint("mixtral"), miss_policy="load", num_slots=3, max_concurrency=2) as opened:
        yield opened
        opened.residency.close()


class Runner:
    def __init__(self, parts: EngineParts, *, stream_interval_seconds: float = 0.0) -> None:
        self.readiness: list[bool] = []
        self.engine = EngineRunner(
            parts,
            loop=asyncio.get_running_loop(),
            on_ready=self.readiness.append,
            stream_interval_seconds=stream_interval_seconds,
        )

    async def generate(self, name: str, *, max_tokens: int = 3) -> list[TokenEvent]:
        events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self.engine.submit(sequence(name, max_tokens), events.put_nowait)
        taken: list[TokenEvent] = []
        async with asyncio.timeout(WAIT_SECONDS):
            while not (taken and taken[-1].finished):
                taken.append(await events.get())
        return taken


def sequence(name: str, max_tokens: int) -> Sequence:
    sampling = Sampling(max_tokens=max_tokens)
    return Sequence(sequence_id=name, task="chat", token_ids=[5, 6, 7], num_prompt_tokens=3, sampling=sampling, seed=0)


@pytest.fixture
async def runner(parts: EngineParts) -> AsyncIterator[Runner]:
    made = Runner(parts)
    made.engine.start()
    yield made
    await made.engine.stop()


def fail_in_a_layer(parts: EngineParts, times: int) -> None:
    """The last layer's next calls raise, when experts of it are being loaded and some of its work is done."""
    calls = iter(range(times))
    layers = parts.model.model.layers

    def break_down(*_: Any) -> None:
        if next(calls, None) is not None:
            raise RuntimeError("the device is on fire")

    layers[-1].mlp.register_forward_hook(break_down)


async def test_a_failed_step_ends_its_requests_with_an_error_and_the_next_one_is_answered(
    runner: Runner, parts: EngineParts
) -> None:
    whole = await runner.generate("before")
    fail_in_a_layer(parts, times=1)
    (failed,) = await runner.generate("unlucky")
    assert "rebuilt" in failed.error
    again = await runner.generate("after")
    assert [event.token_id for event in again] == [event.token_id for event in whole]
    assert runner.readiness == [False, True]


async def test_a_step_that_fails_while_experts_load_leaves_no_slot_behind(
    runner: Runner, parts: EngineParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_for = parts.residency.load_for
    failures = iter([True])

    def interrupted(layer: int, *needed: Any) -> Iterator[tuple[list[int], list[int]]]:
        for outcome in load_for(layer, *needed):
            if next(failures, False):
                raise RuntimeError("interrupted between two experts")
            yield outcome

    monkeypatch.setattr(parts.residency, "load_for", interrupted)
    assert "rebuilt" in (await runner.generate("unlucky"))[-1].error
    assert len(await runner.generate("after")) == 3
    table = parts.residency.table
    states = [table.state(slot) for slot in range(table.num_slots)]
    assert table.num_free + len(list(table.residents())) + states.count(SlotState.LOADING) == table.num_slots


async def test_an_engine_that_fails_again_and_again_ends_and_tells_whoever_waits(
    runner: Runner, parts: EngineParts
) -> None:
    fail_in_a_layer(parts, times=1000)
    for number in range(MAX_REBUILDS):
        await runner.generate(f"unlucky-{number}")
    assert (await runner.generate("last"))[-1].error
    async with asyncio.timeout(WAIT_SECONDS):
        await runner.engine.finished.wait()
    assert isinstance(runner.engine.failure, RuntimeError)
    with pytest.raises(NotReadyError, match="has ended"):
        await runner.engine.ask(lambda engine: None)
    with pytest.raises(NotReadyError, match="has ended"):
        runner.engine.submit(sequence("late", 1), lambda event: None)


async def test_a_question_to_a_stalled_engine_is_given_up_and_not_carried_out_later(runner: Runner) -> None:
    stalled, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def stall(engine: Engine) -> None:
        loop.call_soon_threadsafe(stalled.set)
        go_on.wait(WAIT_SECONDS)

    waiting = asyncio.create_task(runner.engine.ask(stall))
    await stalled.wait()
    carried_out: list[bool] = []
    with pytest.raises(NotReadyError, match="did not answer"):
        await runner.engine.ask(lambda engine: carried_out.append(True), timeout_seconds=0.01)
    go_on.set()
    await waiting
    await runner.engine.ask(lambda engine: None)
    assert carried_out == []


async def test_questions_under_way_when_the_engine_stops_are_answered_with_an_error(parts: EngineParts) -> None:
    runner = Runner(parts)
    asked = asyncio.create_task(runner.engine.ask(lambda engine: None))
    request = asyncio.create_task(runner.generate("waiting"))
    await asyncio.sleep(0)
    runner.engine._stopping = True
    runner.engine.start()
    with pytest.raises(NotReadyError, match="has ended"):
        await asked
    assert "ended" in (await request)[-1].error


async def test_requests_that_follow_others_that_ran_together_share_their_first_step(
    runner: Runner, parts: EngineParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COMPANY_SECONDS", "ARRIVAL_SECONDS", "GATHER_SECONDS"):
        monkeypatch.setattr(f"emoe.worker.runner.{name}", WAIT_SECONDS)
    batches: list[int] = []
    parts.model.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: batches.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    await asyncio.gather(*(runner.generate(f"first-{number}", max_tokens=8) for number in range(2)))
    num_before = len(batches)
    await asyncio.gather(*(runner.generate(f"second-{number}", max_tokens=1) for number in range(2)))
    assert batches[num_before:] == [6]


async def test_a_request_that_comes_alone_waits_for_nobody_twice(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emoe.worker.runner.COMPANY_SECONDS", WAIT_SECONDS)
    monkeypatch.setattr("emoe.worker.runner.ARRIVAL_SECONDS", 0.2)
    await asyncio.gather(*(runner.generate(f"first-{number}", max_tokens=8) for number in range(2)))
    await runner.generate("alone")
    assert runner.engine._company == 1


async def test_between_the_first_token_and_the_last_short_steps_are_told_of_together(parts: EngineParts) -> None:
    made = Runner(parts, stream_interval_seconds=WAIT_SECONDS)
    made.engine.start()
    deliveries: list[int] = []
    deliver = made.engine._deliver
    made.engine._deliver = lambda events: (deliveries.append(len(events)), deliver(events))[1]  # type: ignore[method-assign]
    assert len(await made.generate("long", max_tokens=9)) == 9
    assert deliveries == [1, 8]
    await made.engine.stop()


async def test_after_enough_steps_it_is_known_what_they_take(runner: Runner) -> None:
    assert runner.engine.step_costs is None
    while runner.engine.step_costs is None:
        await runner.generate("one", max_tokens=20)
    fitted = runner.engine.step_costs
    assert fitted.num_steps >= MIN_STEPS
    assert fitted.costs.step_seconds(num_prompt_tokens=3, num_decoding=1, num_context_tokens=9) > 0
    assert fitted.costs.missed_token_seconds > 0
