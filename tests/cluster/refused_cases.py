"""What the API must refuse at apply, as data: a valid resource, patches that spoil it, and words of the message.

Each case holds for a real API server and for `MoEDeployment.parse` alike, unless it is about a change. Patches are
merge patches (RFC 7386): null removes a field.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple


class Case(NamedTuple):
    id: str
    patch: dict[str, Any]
    words: tuple[str, ...]
    """All of them stand in the API server's message; the first is the field's path."""


VALID: dict[str, Any] = {
    "apiVersion": "emoe.dev/v1alpha1",
    "kind": "MoEDeployment",
    "metadata": {"name": "tiny", "namespace": "default"},
    "spec": {"model": {"source": "demo://"}, "suspend": True},
}


def spec(**fields: Any) -> dict[str, Any]:
    return {"spec": fields}


def limits(**amounts: Any) -> dict[str, Any]:
    return spec(workers={"resources": {"limits": amounts}})


SOURCE = ("spec.model.source", "hf://ORGANISATION/NAME", "demo://")
MEMORY = ("spec.experts.memory", "25%", "8Gi")
CACHE = ("spec.cache", "exactly one of claimName")
ENDPOINT = ("spec.tracing.endpoint", "a port", "http://otel-collector.monitoring:4317")
GPU = {"nvidia.com/gpu": 1}
TASK_NAME = ("spec.tasks[0].name", "legal-qa")

REFUSED = (
    Case("name too long", {"metadata": {"name": "a" * 41}}, ("40 characters", "shorter")),
    Case("name begins with a digit", {"metadata": {"name": "1st"}}, ("a letter first",)),
    Case("name has a dot", {"metadata": {"name": "a.b"}}, ("a letter first",)),
    Case("no model", spec(model=None), ("spec.model",)),
    Case("no source", spec(model={"source": None, "revision": "main"}), ("spec.model.source",)),
    Case("unknown scheme", spec(model={"source": "gs://bucket/x"}), SOURCE),
    Case("hub without an organisation", spec(model={"source": "hf://mixtral"}), SOURCE),
    Case("bare path", spec(model={"source": "/models/olmoe"}), SOURCE),
    Case("demo with a rest", spec(model={"source": "demo://x"}), SOURCE),
    Case("claim in capitals", spec(model={"source": "pvc://Claim/x"}), SOURCE),
    Case("source with a question mark", spec(model={"source": "https://host/x?token=1"}), SOURCE),
    Case("source that climbs", spec(model={"source": "pvc://claim/a/../../b"}), SOURCE),
    Case("empty source", spec(model={"source": ""}), SOURCE),
    Case("revision of a bucket", spec(model={"source": "s3://bucket/x", "revision": "main"}), ("revision", "hf://")),
    Case("secret without a name", spec(model={"source": "hf://a/b", "secretRef": {}}), ("spec.model.secretRef.name",)),
    Case("memory in words", spec(experts={"memory": "much"}), MEMORY),
    Case("memory as a decimal byte unit", spec(experts={"memory": "8GB"}), MEMORY),
    Case("memory above all", spec(experts={"memory": "101%"}), MEMORY),
    Case("memory of nothing", spec(experts={"memory": "0%"}), MEMORY[:2]),
    Case("memory of a few bytes", spec(experts={"memory": 25}), MEMORY),
    Case("memory in thousandths", spec(experts={"memory": "8000m"}), MEMORY),
    Case("negative memory", spec(experts={"memory": "-8Gi"}), MEMORY),
    Case("unknown miss policy", spec(experts={"missPolicy": "drop"}), ("spec.experts.missPolicy", "reroute", "load")),
    Case("unknown strategy", spec(experts={"strategy": "magic"}), ("spec.experts.strategy", "emoe")),
    Case("eviction beside reroute", spec(experts={"eviction": "lru"}), ("eviction", "missPolicy: load")),
    Case("pinned twice", spec(experts={"pinned": [{"layer": 0, "experts": [1]}] * 2}), ("spec.experts.pinned",)),
    Case("pinned expert twice", spec(experts={"pinned": [{"layer": 0, "experts": [1, 1]}]}), ("spec.experts.pinned",)),
    Case(
        "pinned nothing",
        spec(experts={"pinned": [{"layer": 0, "experts": []}]}),
        ("spec.experts.pinned[0].experts", "at least 1"),
    ),
    Case(
        "no refresh", spec(experts={"refreshIntervalPrompts": 0}), ("spec.experts.refreshIntervalPrompts", "equal to 1")
    ),
    Case("refresh in quotes", spec(experts={"refreshIntervalPrompts": "40"}), ("refreshIntervalPrompts", "auto")),
    Case("unknown planner", spec(experts={"planner": "magic"}), ("spec.experts.planner", "per-layer", "adapmoe")),
    Case("task in capitals", spec(tasks=[{"name": "QA"}]), TASK_NAME),
    Case("task called unknown", spec(tasks=[{"name": "unknown"}]), ("spec.tasks[0].name", "another name")),
    Case("task twice", spec(tasks=[{"name": "qa"}, {"name": "qa"}]), ("spec.tasks",)),
    Case(
        "no time to the first token",
        spec(tasks=[{"name": "qa", "slo": {"ttftSeconds": 0}}]),
        ("spec.tasks[0].slo.ttftSeconds", "greater than 0"),
    ),
    Case(
        "a minute and more a token",
        spec(tasks=[{"name": "qa", "slo": {"tpotSeconds": 61}}]),
        ("spec.tasks[0].slo.tpotSeconds", "less than or equal to 60"),
    ),
    Case("unknown policy", spec(scheduling={"policy": "lifo"}), ("spec.scheduling.policy", "fifo", "edf")),
    Case("no queue", spec(scheduling={"maxQueuedRequests": 0}), ("spec.scheduling.maxQueuedRequests", "equal to 1")),
    Case("negative workers", spec(workers={"replicas": -1}), ("spec.workers.replicas", "equal to 0")),
    Case("workers in quotes", spec(workers={"replicas": "3"}), ("spec.workers.replicas", "integer")),
    Case("context of nothing", spec(workers={"maxContext": 1}), ("spec.workers.maxContext", "equal to 8")),
    Case("no concurrency", spec(workers={"maxConcurrency": 0}), ("spec.workers.maxConcurrency", "equal to 1")),
    Case("limit in words", limits(memory="much"), ("spec.workers.resources.limits", "much")),
    Case("negative limit", limits(memory="-1Gi"), ("spec.workers.resources.limits", "0 or more")),
    Case(
        "request above its limit",
        spec(workers={"resources": {"limits": {"cpu": "1500m"}, "requests": {"cpu": 2}}}),
        ("spec.workers.resources.requests", "limit of the same name"),
    ),
    Case(
        "no scheduler",
        spec(services={"scheduler": {"replicas": 0}}),
        ("spec.services.scheduler.replicas", "equal to 1"),
    ),
    Case(
        "storage of nothing",
        spec(services={"predictor": {"storage": {"size": 1}}}),
        ("spec.services.predictor.storage.size", "20Gi"),
    ),
    Case("cache of nothing", spec(cache={}), CACHE),
    Case("cache of two kinds", spec(cache={"size": "20Gi", "hostPath": "/var/models"}), CACHE),
    Case("cache of three kinds", spec(cache={"size": "20Gi", "hostPath": "/var/models", "claimName": "c"}), CACHE),
    Case("cache too small", spec(cache={"size": "20"}), ("spec.cache.size", "20Gi")),
    Case(
        "class of a claim that stands",
        spec(cache={"claimName": "c", "storageClassName": "fast"}),
        ("spec.cache", "give size with them"),
    ),
    Case("a foreign claim deleted", spec(cache={"claimName": "c", "retain": False}), ("spec.cache.retain", "leave it")),
    Case("relative node path", spec(cache={"hostPath": "models"}), ("spec.cache.hostPath", "/var/lib/models")),
    Case("node path that climbs", spec(cache={"hostPath": "/var/../etc"}), ("spec.cache.hostPath", "'..'")),
    Case(
        "tracing without a scheme",
        spec(tracing={"endpoint": "otel:4317"}),
        ENDPOINT,
    ),
    Case("tracing without a port", spec(tracing={"endpoint": "http://otel"}), ENDPOINT),
    Case("tracing with a port that is none", spec(tracing={"endpoint": "http://otel:65536"}), ENDPOINT),
    Case("tracing by HTTP", spec(tracing={"endpoint": "http://otel:4318/v1/traces"}), ENDPOINT),
    Case(
        "more than every request traced",
        spec(tracing={"endpoint": "http://otel:4317", "samplingRatio": 1.5}),
        ("spec.tracing.samplingRatio", "less than or equal to 1"),
    ),
    Case("unknown kind of service", spec(service={"type": "ExternalName"}), ("spec.service.type", "ClusterIP")),
    Case("port out of range", spec(service={"port": 70000}), ("spec.service.port", "65535")),
    Case("nothing replaceable", spec(rollout={"maxSurge": 0, "maxUnavailable": "0%"}), ("spec.rollout", "raise one")),
    Case("surge in words", spec(rollout={"maxSurge": "some"}), ("spec.rollout.maxSurge", "%")),
    Case("endless drain", spec(rollout={"drainSeconds": 3601}), ("spec.rollout.drainSeconds", "equal to 3600")),
    Case("suspended in words", spec(suspend="yes"), ("spec.suspend", "boolean")),
    Case(
        "containers without a name",
        spec(workers={"podTemplate": {"spec": {"containers": [{"image": "x"}]}}}),
        ("spec.workers.podTemplate.spec.containers[0].name",),
    ),
)

CHANGES = (
    Case("another model", spec(model={"source": "hf://a/b"}), ("spec.model", "second resource")),
    Case("a secret for the model", spec(model={"secretRef": {"name": "s"}}), ("spec.model", "second resource")),
)
"""Refused of a resource that stands, though each would be valid by itself."""

ACCEPTED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("the smallest", {}),
    ("a name of 40", {"metadata": {"name": "a" * 40}}),
    *((f"source {one}", spec(model={"source": one})) for one in (
        "hf://allenai/OLMoE-1B-7B-0924", "s3://bucket", "s3://bucket/some/prefix/", "http://host:8080/models/x",
        "https://host", "pvc://claim", "pvc://claim/a/b..c",
    )),
    ("a revision", spec(model={"source": "hf://a/b", "revision": "refs/pr/1", "secretRef": {"name": "hub"}})),
    *((f"memory {one}", spec(experts={"memory": one})) for one in (
        "100%", "12.5%", "auto", "8Gi", "64Ki", "1e9", "500M", 1073741824, "1.5Gi",
    )),
    ("exact mode", spec(experts={"missPolicy": "load", "eviction": "demand"})),
    ("pinned experts", spec(experts={"pinned": [{"layer": 0, "experts": [0, 3]}, {"layer": 5, "experts": [1]}]})),
    ("refresh by drift", spec(experts={"refreshIntervalPrompts": "auto", "planner": "adapmoe"})),
    ("tasks", spec(tasks=[{"name": "code", "slo": {"ttftSeconds": 1, "tpotSeconds": 0.05}}, {"name": "legal-qa"}])),
    ("no workers", spec(workers={"replicas": 0})),
    ("a GPU", limits(**GPU, memory="16Gi")),
    ("memory auto on a GPU", spec(experts={"memory": "auto"}, workers={"resources": {"limits": GPU}})),
    (
        "memory auto on a part of a GPU",
        spec(experts={"memory": "auto"}, workers={"resources": {"requests": {"nvidia.com/mig-1g.10gb": "1"}}}),
    ),
    ("no GPU", spec(experts={"memory": "auto"}, workers={"resources": {"limits": {"nvidia.com/gpu": 0}}})),
    ("a claim of one's own", spec(cache={"claimName": "models"})),
    ("a claim to make", spec(cache={"size": "20Gi", "accessMode": "ReadWriteMany", "retain": False})),
    ("a node path", spec(cache={"hostPath": "/var/lib/models"})),
    ("tracing by TLS", spec(tracing={"endpoint": "https://[::1]:4317/"})),
    ("tracing", spec(tracing={"endpoint": "http://otel-collector.monitoring:4317", "samplingRatio": 0})),
    ("a rollout in shares", spec(rollout={"maxSurge": "25%", "maxUnavailable": 0})),
    (
        "a pod template",
        spec(workers={"podTemplate": {
            "metadata": {"labels": {"team": "a"}},
            "spec": {"tolerations": [{"operator": "Exists"}], "containers": [{"name": "main", "env": []}]},
        }}),
    ),
)  # fmt: skip


def apply_patch(patch: dict[str, Any], to: dict[str, Any] = VALID) -> dict[str, Any]:
    """`to` with a merge patch applied; `to` itself stays as it is."""
    merged = copy.deepcopy(to)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = apply_patch(value, merged[key])
        else:
            merged[key] = copy.deepcopy(value)
    return merged
