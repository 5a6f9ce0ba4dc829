"""One trace over the services' processes, exported by OTLP to a collector that listens here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cli_models import save_small_model
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from support.up import running_up

from emoe.runtime.channels import open_channel
from emoe.v1 import generation_pb2, scheduler_pb2_grpc

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
WAIT_SECONDS = 60.0

pytestmark = pytest.mark.timeout(240)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span that arrives, by the service that sent it."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        self.arrived = asyncio.Condition()

    async def Export(self, request: Any, context: Any) -> Any:
        async with self.arrived:
            for resource in request.resource_spans:
                names = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                self.spans += [(names[0], span) for scope in resource.scope_spans for span in scope.spans]
            self.arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def of_trace(self) -> dict[str, Any]:
        return {name: span for name, span in self.spans if span.trace_id.hex() == TRACE_ID}


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    server, servicer = grpc.aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    await server.stop(None)


async def test_a_request_makes_one_trace_with_a_span_a_hop(
    collector: tuple[Collector, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received, endpoint = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    model = save_small_model(tmp_path / "model")
    async with running_up(model, tmp_path / "state", "--expert-memory=50%") as up:
        scheduler = (await up.until(event="ready"))["scheduler"]
        async with open_channel(scheduler) as channel:
            request = generation_pb2.GenerateRequest(text="hello", sampling=generation_pb2.Sampling(max_tokens=4))
            call = scheduler_pb2_grpc.SchedulerServiceStub(channel).Generate(
                request, timeout=WAIT_SECONDS, metadata=(("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),)
            )
            assert [piece async for piece in call][-1].finish_reason
        async with asyncio.timeout(WAIT_SECONDS), received.arrived:
            await received.arrived.wait_for(lambda: {"emoe-scheduler", "emoe-worker"} <= received.of_trace().keys())
    spans = received.of_trace()
    assert spans["emoe-scheduler"].parent_span_id.hex() == PARENT_ID
    assert spans["emoe-worker"].parent_span_id == spans["emoe-scheduler"].span_id
    assert len([1 for _, span in received.spans if span.trace_id.hex() == TRACE_ID]) == 2
