"""The pods of a MoEDeployment, as its spec speaks of them: workers, the services round them, cache and tracing."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from emoe.api.pods import AnnotationValue, PodTemplate, ResourceName, Resources
from emoe.api.quantity import Quantity
from emoe.api.schema import ApiModel, Rule
from emoe.api.source import PARENT_PATTERN

AnnotationMap = dict[ResourceName, AnnotationValue]
ClaimName = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
    ),
]
HOST_PATH_PATTERN = r"^/[^/]"
PORT_PATTERN = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
ENDPOINT_PATTERN = rf"^https?://([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]):{PORT_PATTERN}/?$"

POSITIVE_SIZE = Rule(
    cel="!has(self.size) || !isQuantity(string(self.size)) "
    "|| quantity(string(self.size)).compareTo(quantity('1Mi')) >= 0",
    message="a claim of less than 1Mi is a slip of the pen; write a size such as 20Gi",
    holds=lambda owner: owner.size is None or owner.size.value >= 2**20,
    field=".size",
)


def _is_whole_path(path: str) -> bool:
    return bool(re.match(HOST_PATH_PATTERN, path)) and not re.search(PARENT_PATTERN, path)


class Workers(ApiModel):
    """The pods that run the model. The resource is scaled by their number."""

    replicas: int = Field(default=1, ge=0, le=1000)
    """How many. kubectl scale and a HorizontalPodAutoscaler set it."""
    max_context: int = Field(default=2048, ge=8, le=1_048_576)
    """Longest prompt and answer together, in tokens; cut to what the model was made for."""
    max_concurrency: int = Field(default=8, ge=1, le=1024)
    """Requests that run at once in one worker; with maxContext it sizes the KV cache."""
    resources: Resources = Resources()
    """Of each worker. A memory limit that is left out follows from the plan in status.plan; one that is too low is
    refused. A GPU is asked for by limits: nvidia.com/gpu: 1."""
    pod_template: PodTemplate | None = None
    """What is added to the workers' pods."""


class SchedulerService(ApiModel):
    """The front door: it queues requests and hands each to the worker that suits it best."""

    replicas: int = Field(default=1, ge=1, le=100)
    """How many; two let one die without refused calls."""
    resources: Resources = Resources()
    """Of each of them."""
    pod_template: PodTemplate | None = None
    """What is added to their pods."""


class LoaderService(ApiModel):
    """Fetches the model, owns its bytes and plans which experts each worker keeps. There is one."""

    resources: Resources = Resources()
    """Of its container."""
    pod_template: PodTemplate | None = None
    """What is added to its pod."""


class Storage(ApiModel):
    """A claim that emoe makes."""

    size: Quantity
    """How large."""
    storage_class_name: str | None = Field(default=None, max_length=253)
    """Its storage class; the cluster's default if left out."""

    rules = (POSITIVE_SIZE,)


class PredictorService(ApiModel):
    """Learns which experts each task wants. There is one."""

    resources: Resources = Resources()
    """Of its container."""
    pod_template: PodTemplate | None = None
    """What is added to its pod."""
    storage: Storage | None = None
    """A claim for what it has learnt. Left out: it learns again after each restart."""


class Services(ApiModel):
    """The pods round the workers."""

    scheduler: SchedulerService = SchedulerService()
    """The front door: it queues requests and hands each to the worker that suits it best."""
    loader: LoaderService = LoaderService()
    """Fetches the model, owns its bytes and plans which experts each worker keeps."""
    predictor: PredictorService = PredictorService()
    """Learns which experts each task wants."""


class Cache(ApiModel):
    """Where the loader keeps the model's files: exactly one of claimName, size and hostPath."""

    claim_name: ClaimName | None = None
    """A claim that stands already. One that many nodes can mount is read by the workers too, directly."""
    size: Quantity | None = None
    """Let emoe make a claim of this size, named after the resource."""
    storage_class_name: str | None = Field(default=None, max_length=253)
    """With size: its storage class; the cluster's default if left out."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] | None = None
    """With size: ReadWriteMany lets the workers read the files too; ReadWriteOnce if left out."""
    host_path: str | None = Field(default=None, max_length=1024)
    """A folder of the node, below one of those that the operator's chart allows."""
    retain: bool = True
    """With size: whether the claim stays when the resource is deleted."""

    rules = (
        Rule(
            cel="[has(self.claimName), has(self.size), has(self.hostPath)].filter(given, given).size() == 1",
            message="give exactly one of claimName (a claim of yours), size (a claim that emoe makes) and hostPath "
            "(a folder of the node)",
            holds=lambda cache: [cache.claim_name, cache.size, cache.host_path].count(None) == 2,
        ),
        Rule(
            cel="has(self.size) || (!has(self.storageClassName) && !has(self.accessMode))",
            message="storageClassName and accessMode describe a claim that emoe makes; give size with them, or leave "
            "them out",
            holds=lambda cache: cache.size is not None or not (cache.storage_class_name or cache.access_mode),
        ),
        Rule(
            cel="self.retain || has(self.size)",
            message="retain: false deletes a claim that emoe made; without size there is none, so leave it out",
            holds=lambda cache: cache.retain or cache.size is not None,
            field=".retain",
        ),
        Rule(
            cel=f"!has(self.hostPath) || self.hostPath.matches('{HOST_PATH_PATTERN}') "
            f"&& !self.hostPath.matches(r'{PARENT_PATTERN}')",
            message="hostPath must be a whole path of the node, without '..'; write it like /var/lib/models",
            holds=lambda cache: cache.host_path is None or _is_whole_path(cache.host_path),
            field=".hostPath",
        ),
        POSITIVE_SIZE,
    )


class Tracing(ApiModel):
    """Where spans go, by OTLP over gRPC."""

    endpoint: str = Field(max_length=1024)
    """Of a collector, port and all, such as http://otel-collector.monitoring:4317."""
    sampling_ratio: float = Field(default=0.05, ge=0, le=1)
    """Share of the requests that are traced when the caller has not decided."""

    rules = (
        Rule(
            cel=f"self.endpoint.matches(r'{ENDPOINT_PATTERN}')",
            message="the endpoint must be a scheme, a host and a port, and nothing else; write it like "
            "http://otel-collector.monitoring:4317",
            holds=lambda tracing: re.fullmatch(ENDPOINT_PATTERN, tracing.endpoint, re.ASCII) is not None,
            field=".endpoint",
        ),
    )
