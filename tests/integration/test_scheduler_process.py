"""The scheduler as a real process: announcement, health, reflection, drain; and one span a hop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from scheduler_neighbours import PATIENCE_SECONDS, FrontDoor, Neighbourhood, ScriptedWorker

from emoe.runtime.channels import open_channel
from emoe.runtime.telemetry import Telemetry

ENTRY = """
import sys
from emoe.runtime.lifecycle import run_process
from emoe.scheduler.main import serve
from emoe.scheduler.settings import SchedulerSettings
sys.exit(run_process(serve, SchedulerSettings.model_validate_json(sys.argv[1]), name="scheduler"))
"""
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def neighbourhood() -> AsyncIterator[Neighbourhood]:
    async with contextlib.AsyncExitStack() as stack:
        yield Neighbourhood(stack)


async def start_process(neighbourhood: Neighbourhood, folder: Path) -> asyncio.subprocess.Process:
    await neighbourhood.start_loader()
    settings = {
        "loader": neighbourhood.loader_address,
        "listen": f"unix:{folder}/main",
        "health_listen": f"unix:{folder}/health",
        "announce_file": f"{folder}/announced.json",
        "drain_seconds": PATIENCE_SECONDS,
    }
    return await neighbourhood.start_process("-W", "error", "-c", ENTRY, json.dumps(settings))


async def test_terminated_process_finishes_its_streams_and_exits_cleanly(neighbourhood, tmp_path) -> None:
    process = await start_process(neighbourhood, tmp_path)
    async with open_channel(f"unix:{tmp_path}/main") as channel, open_channel(f"unix:{tmp_path}/health") as probes:
        watch = health_pb2_grpc.HealthStub(probes).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        states = aiter(watch)
        assert (await anext(states)).status == NOT_SERVING
        worker = await neighbourhood.start_worker(ScriptedWorker(stepwise=True))
        assert (await anext(states)).status == SERVING
        door = FrontDoor(channel)
        words = aiter(door.generate("hello"))
        worker.step()
        await anext(words)

        process.terminate()

        assert (await anext(states)).status == NOT_SERVING
        worker.step(2)
        assert [message.text async for message in words] == ["1 ", "2 "]
    assert await process.wait() == 0


async def test_process_announces_its_addresses_and_both_ports_tell_health(neighbourhood, tmp_path) -> None:
    await neighbourhood.start_worker(ScriptedWorker())
    process = await start_process(neighbourhood, tmp_path)
    async with open_channel(f"unix:{tmp_path}/main") as channel, open_channel(f"unix:{tmp_path}/health") as probes:
        states = aiter(health_pb2_grpc.HealthStub(probes).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True))
        while (await anext(states)).status != SERVING:
            pass
        for port in (channel, probes):
            for service in ("", "emoe.v1.SchedulerService"):
                reply = await health_pb2_grpc.HealthStub(port).Check(health_pb2.HealthCheckRequest(service=service))
                assert reply.status == SERVING
    announced = json.loads((tmp_path / "announced.json").read_text())
    assert announced == {
        "service": "scheduler",
        "pid": process.pid,
        "address": f"unix:{tmp_path}/main",
        "health_address": f"unix:{tmp_path}/health",
    }
    process.terminate()
    assert await process.wait() == 0


async def test_reflection_describes_the_service(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler()
    stub = reflection_pb2_grpc.ServerReflectionStub(door.channel)
    symbol = "emoe.v1.SchedulerService"
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol),
    ]

    listed, described = [reply async for reply in stub.ServerReflectionInfo(iter(requests))]

    assert "emoe.v1.SchedulerService" in [service.name for service in listed.list_services_response.service]
    assert described.file_descriptor_response.file_descriptor_proto


async def test_each_hop_makes_one_span_of_the_clients_trace(neighbourhood) -> None:
    spans = InMemorySpanExporter()
    await neighbourhood.start_worker(ScriptedWorker(), telemetry=recording(spans, "worker"))
    door = await neighbourhood.start_scheduler(telemetry=recording(spans, "scheduler"))
    trace_id, client_span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

    await door.answer("hello", metadata=[("traceparent", f"00-{trace_id}-{client_span}-01")])

    finished = [span for span in spans.get_finished_spans() if span.name.endswith("/Generate")]
    by_service = {span.resource.attributes["service.name"]: span for span in finished}
    assert len(finished) == len(by_service) == 2
    front, worker = by_service["scheduler"], by_service["worker"]
    assert {f"{span.context.trace_id:032x}" for span in finished} == {trace_id}
    assert f"{front.parent.span_id:016x}" == client_span
    assert worker.parent.span_id == front.context.span_id
    assert {span.kind for span in finished} == {SpanKind.SERVER}
    assert front.attributes["rpc.response.status_code"] == "OK"
    assert front.attributes["emoe.worker_id"] == "worker-1"


async def test_span_tells_how_often_full_workers_refused(neighbourhood) -> None:
    spans = InMemorySpanExporter()
    worker = await neighbourhood.start_worker(ScriptedWorker())
    worker.num_refusals_to_come = 2
    door = await neighbourhood.start_scheduler(telemetry=recording(spans, "scheduler"))

    await door.answer("hello")

    (span,) = [span for span in spans.get_finished_spans() if span.name.endswith("/Generate")]
    assert span.attributes["emoe.num_refusals"] == 2


async def test_failed_call_leaves_its_status_in_the_span(neighbourhood) -> None:
    spans = InMemorySpanExporter()
    door = await neighbourhood.start_scheduler(telemetry=recording(spans, "scheduler"))

    with pytest.raises(grpc.aio.AioRpcError):
        await door.answer("")

    (span,) = [span for span in spans.get_finished_spans() if span.name.endswith("/Generate")]
    assert span.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert not span.status.is_ok


def recording(spans: InMemorySpanExporter, service: str) -> Telemetry:
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return Telemetry(provider)
