"""What the operator counts of itself, in a registry of its own, as Prometheus reads it. No label grows with use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_BUCKETS_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_READY_VALUES = ("True", "False", "Unknown")


class Metrics:
    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._reconciles = PrometheusCounter(
            "emoe_operator_reconciles", "Reconciles by result.", ["result"], registry=self.registry
        )
        self._seconds = Histogram(
            "emoe_operator_reconcile_seconds", "How long one takes.", buckets=_BUCKETS_SECONDS, registry=self.registry
        )
        self._queue = Gauge(
            "emoe_operator_queue_depth", "Resources that are due and not yet taken up.", registry=self.registry
        )
        self._requests = PrometheusCounter(
            "emoe_operator_api_requests",
            "Requests to the API server; code 0: no answer.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self._resources = Gauge(
            "emoe_operator_resources", "MoEDeployments by their Ready condition.", ["ready"], registry=self.registry
        )
        self._leader = Gauge("emoe_operator_leader", "1 on the replica that leads.", registry=self.registry)

    def count_reconcile(self, result: str, seconds: float) -> None:
        self._reconciles.labels(result).inc()
        self._seconds.observe(seconds)

    def count_request(self, *, verb: str, resource: str, code: int) -> None:
        self._requests.labels(verb, resource, str(code)).inc()

    def set_queue_depth(self, depth: int) -> None:
        self._queue.set(depth)

    def set_leader(self, leads: bool) -> None:
        self._leader.set(leads)

    def set_resources(self, ready: Iterable[str]) -> None:
        """The status of the Ready condition of every resource that stands."""
        counts = Counter(value if value in _READY_VALUES else "Unknown" for value in ready)
        for value in _READY_VALUES:
            self._resources.labels(value).set(counts[value])

    def page(self) -> bytes:
        return generate_latest(self.registry)
