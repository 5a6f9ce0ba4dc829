"""`emoe demo`: the four services with a part of the experts resident, one prompt for each task, a verdict.

The verdict is the point: every prompt must be answered, by a worker that holds fewer experts than the model has.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

import grpc.aio

from emoe.cli.clients import LoaderWatch
from emoe.cli.demo_prompts import TaskPrompt
from emoe.cli.failures import CommandError
from emoe.cli.generation_client import Answer, Question, ask
from emoe.cli.supervisor import ChildEvent
from emoe.cli.system import SystemOptions, local_system
from emoe.core.generation import Sampling
from emoe.runtime.channels import open_channel

ANSWER_SECONDS = 120.0
RESIDENCY_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoRow:
    """One prompt's outcome: an answer with its worker's residency, or what went wrong."""

    task: str
    prompt: str
    answer: Answer | None = None
    num_resident: int | None = None
    num_experts: int | None = None
    failure: str = ""

    @property
    def passed(self) -> bool:
        return not self.failure


async def demo(
    options: SystemOptions,
    prompts: Sequence[TaskPrompt],
    *,
    on_event: Callable[[ChildEvent], None],
    on_row: Callable[[DemoRow], None],
) -> tuple[DemoRow, ...]:
    """A row for each prompt, in order; SupervisionError if the services do not come up."""
    rows: list[DemoRow] = []
    async with local_system(options, on_event=on_event) as system:
        await system.start_planning()
        await system.start_serving()
        watch = LoaderWatch(system.loader_address)
        following = asyncio.create_task(watch.follow())
        try:
            async with open_channel(system.scheduler_address) as channel:
                for prompt in prompts:
                    rows.append(await _outcome(channel, watch, prompt))
                    on_row(rows[-1])
        finally:
            following.cancel()
    return tuple(rows)


async def _outcome(channel: grpc.aio.Channel, watch: LoaderWatch, prompt: TaskPrompt) -> DemoRow:
    row = DemoRow(task=prompt.task, prompt=prompt.prompt)
    question = Question(prompt=prompt.prompt, task=prompt.task, sampling=Sampling(max_tokens=prompt.max_tokens))
    try:
        answer = await ask(channel, question, timeout_seconds=ANSWER_SECONDS)
        async with asyncio.timeout(RESIDENCY_SECONDS):
            worker = await watch.worker(answer.worker_id)
    except CommandError as error:
        return dataclasses.replace(row, failure=str(error))
    except TimeoutError:
        return dataclasses.replace(row, failure="the loader does not list the worker that answered")
    row = dataclasses.replace(row, answer=answer, num_resident=worker.num_resident, num_experts=watch.num_experts)
    return dataclasses.replace(row, failure=find_fault(answer, worker.num_slots, watch.num_experts))


def find_fault(answer: Answer, num_slots: int, num_experts: int | None) -> str:
    """Why an answer does not count; empty if it does. Slots bound the residents at every moment, not only now."""
    if not answer.text.strip():
        return "the answer is empty"
    if num_experts is None or num_slots >= num_experts:
        return f"the worker has {num_slots} slots for {num_experts} experts: nothing was paged"
    return ""
