"""One span for every look at a resource. Its context never gets into a manifest, whose pods outlive any trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from opentelemetry import trace

from emoe_operator.cache import Key


@contextlib.contextmanager
def reconcile_span(tracer: trace.Tracer, key: Key) -> Iterator[trace.Span]:
    attributes = {"k8s.namespace.name": key[0], "emoe.moedeployment.name": key[1]}
    with tracer.start_as_current_span("reconcile", attributes=attributes) as span:
        yield span
