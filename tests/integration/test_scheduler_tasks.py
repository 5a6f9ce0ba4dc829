"""A request without a task is named at the front door, and goes the whole way under that name."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from scheduler_neighbours import PATIENCE_SECONDS, FrontDoor, Neighbourhood, ScriptedWorker

from emoe.oip import open_inference_pb2 as oip
from emoe.oip.open_inference_pb2_grpc import GRPCInferenceServiceStub
from emoe.runtime.telemetry import Telemetry
from emoe.v1 import generation_pb2

TRANSLATION = "Translate into German: The library closes at eight."
TICKET = "Which team takes this ticket: facilities or IT?\n"
EXAMPLES = {"tickets": tuple(TICKET + rest for rest in ("The lift is stuck.", "I cannot log in.", "A lamp is broken."))}


@pytest.fixture
async def neighbourhood() -> AsyncIterator[Neighbourhood]:
    async with contextlib.AsyncExitStack() as stack:
        yield Neighbourhood(stack)


async def test_worker_client_and_trace_are_told_the_task_that_was_identified(neighbourhood) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    worker = await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler(telemetry=Telemetry(provider))

    messages = await door.answer(TRANSLATION)

    assert (worker.requests[0].task, messages[0].task) == ("translation", "translation")
    said = [dict(span.attributes or {}) for span in spans.get_finished_spans()]
    assert ("translation", "classifier") in [(one.get("emoe.task"), one.get("emoe.task_named_by")) for one in said]


async def test_loader_hears_of_the_task_that_was_identified(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(stepwise=True))
    door = await neighbourhood.start_scheduler()
    answer = asyncio.create_task(door.answer(TRANSLATION))

    async with asyncio.timeout(PATIENCE_SECONDS):
        report = await neighbourhood.loader.reports.get()
        while not report.loads:
            report = await neighbourhood.loader.reports.get()

    assert [load.task for load in report.loads] == ["translation"]
    worker.step(3)
    await answer


@pytest.mark.parametrize("task", ["chat", "unknown"])
async def test_what_a_client_names_is_left_as_it_is(neighbourhood, task: str) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler()
    await door.answer(TRANSLATION, task=task)
    assert worker.requests[0].task == task


async def test_the_targets_of_an_identified_task_are_promised(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler(task_slos={"translation": {"ttft_seconds": 2.5}})
    await door.answer(TRANSLATION)
    assert worker.requests[0].slo.ttft_seconds == 2.5


async def test_identification_can_be_switched_off(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler(identify_tasks=False, task_examples=EXAMPLES)
    await door.answer(TRANSLATION)
    assert worker.requests[0].task == "unknown"


async def test_tasks_by_examples_of_setting_and_file_are_found_and_may_be_named(neighbourhood, tmp_path: Path) -> None:
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps({"rhymes": ["Find words that rhyme with house.", "Find words that rhyme with light."]}))
    worker = await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler(task_examples=EXAMPLES, tasks_file=file)

    await door.answer(TICKET + "The window does not close.")
    await door.answer("Find words that rhyme with stone.")
    await door.answer("hello", task="tickets")

    assert [request.task for request in worker.requests] == ["tickets", "rhymes", "tickets"]


async def test_a_chat_is_identified_too(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler()
    chat = generation_pb2.ChatMessages(messages=[generation_pb2.ChatMessage(role="user", content=TRANSLATION)])
    request = generation_pb2.GenerateRequest(chat=chat)
    [_ async for _ in door.stub.Generate(request, timeout=PATIENCE_SECONDS)]
    assert worker.requests[0].task == "translation"


async def test_the_open_inference_protocol_tells_the_task_that_was_identified(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    response = await infer(await neighbourhood.start_scheduler(), TRANSLATION)
    assert worker.requests[0].task == "translation"
    assert response.parameters["task"].string_param == "translation"


async def test_a_task_that_is_not_known_is_still_refused(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await door.answer(TRANSLATION, task="tickets")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def infer(door: FrontDoor, prompt: str) -> Any:
    contents = oip.InferTensorContents(bytes_contents=[prompt.encode()])
    tensor = oip.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[1], contents=contents)
    request = oip.ModelInferRequest(model_name="emoe", inputs=[tensor])
    return await GRPCInferenceServiceStub(door.channel).ModelInfer(request, timeout=PATIENCE_SECONDS)
