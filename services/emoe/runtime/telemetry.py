"""Tracing: one SERVER span a hop, W3C trace context carried in gRPC metadata.

Spans are exported by OTLP only when OTEL_EXPORTER_OTLP_ENDPOINT (or its traces variant) is set; without it nothing is
recorded, but a caller's trace context is still passed on.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

log = logging.getLogger(__name__)

_PROPAGATOR = TraceContextTextMapPropagator()
_CARRIED = frozenset({"traceparent", "tracestate"})
_FLUSH_SECONDS = 3.0


class Telemetry:
    """A service's tracer, and the exporter's end."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self.tracer = provider.get_tracer("emoe")
        self._provider = provider

    async def close(self) -> None:
        """Flush what was recorded; an unreachable collector is given up after a few seconds."""
        if not isinstance(self._provider, TracerProvider):
            return
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await asyncio.to_thread(self._provider.shutdown)
        except TimeoutError:
            log.warning("the trace collector did not take the last spans within %s s", _FLUSH_SECONDS)


def open_telemetry(service: str) -> Telemetry:
    if not (os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return Telemetry(trace.NoOpTracerProvider())
    # Imported here: the exporter brings a second gRPC channel stack that a process without a collector does not need.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"emoe-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Telemetry(provider)


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata that makes the called service's span a child of the current one; empty outside of any trace."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return tuple(carrier.items())


def incoming_context(metadata: Iterable[tuple[str, str | bytes]] | None) -> Context:
    """The caller's trace context; an empty one if it sent none or a malformed one."""
    carrier = {key: value for key, value in metadata or () if key in _CARRIED and isinstance(value, str)}
    return _PROPAGATOR.extract(carrier, context=Context())
