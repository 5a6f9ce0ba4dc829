"""An operator inside the test's own loop, on a real API server, and the hands of the controllers that are not there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from opentelemetry import trace
from support.kube_objects import DEPLOYMENTS, MOED, PODS, Body, KubeObjects

from emoe_operator.cache import Key
from emoe_operator.client import KubeApi, open_client
from emoe_operator.metrics import Metrics
from emoe_operator.operation import Operation
from emoe_operator.settings import OperatorSettings

NOBODY = "127.0.0.1:1"


def settings(**changes: Any) -> OperatorSettings:
    given = {"control_image": "emoe/control:1", "worker_image": "emoe/worker:1", "status_interval_seconds": 0.2}
    return OperatorSettings(**{**given, **changes})


@contextlib.asynccontextmanager
async def operator_at_work(
    kube: KubeObjects,
    *,
    dial: Callable[[Key], str] = lambda _: NOBODY,
    tracer: trace.Tracer | None = None,
    **changes: Any,
) -> AsyncIterator[Metrics]:
    """It serves the test's namespace alone. The block fails with the operator."""
    metrics = Metrics()
    async with open_client() as client:
        operation = Operation(
            KubeApi(client, metrics=metrics),
            settings(**{"namespaces": (kube.namespace,), **changes}),
            metrics=metrics,
            tracer=tracer or trace.NoOpTracer(),
            dial=dial,
        )
        task = asyncio.create_task(operation.run())
        try:
            yield metrics
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def num_requests(metrics: Metrics, *verbs: str) -> int:
    """How many requests the operator made, watches aside."""
    return sum(
        int(sample.value)
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "emoe_operator_api_requests_total" and sample.labels["verb"] in verbs
    )


def num_reconciles(metrics: Metrics) -> int:
    return sum(
        int(sample.value)
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "emoe_operator_reconciles_total"
    )


async def make_resource(kube: KubeObjects, name: str = "tiny", **spec: Any) -> Body:
    body = {
        "apiVersion": "emoe.dev/v1alpha1",
        "kind": "MoEDeployment",
        "metadata": {"name": name},
        "spec": {"model": {"source": "demo://"}, **spec},
    }
    return await kube.create(MOED, body)


async def start_pods(kube: KubeObjects, name: str) -> None:
    """What the Deployment controller, scheduler and kubelet would do: one ready pod, and a status that says so."""
    deployment = await kube.until(DEPLOYMENTS, name, bool)
    template = deployment["spec"]["template"]
    await kube.create(
        PODS,
        {
            "metadata": {"name": f"{name}-0", "labels": template["metadata"]["labels"]},
            "spec": {"containers": [{"name": "main", "image": "any"}]},
        },
    )
    ready = [{"type": "Ready", "status": "True"}]
    await kube.merge(PODS, f"{name}-0", {"status": {"phase": "Running", "conditions": ready}}, subresource="status")
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 1)
    status = {"observedGeneration": deployment["metadata"]["generation"], **counts}
    await kube.merge(DEPLOYMENTS, name, {"status": status}, subresource="status")
