"""Resources and observations for the tests of the operator's pure half, as short as each test lets them be."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emoe.core.experts import ExpertGrid, RoutingRule
from emoe_operator import drift
from emoe_operator.desired import Desired
from emoe_operator.observed import Body, ChildKey, Geometry, ModelPhase, ModelView, Observed, Resource
from emoe_operator.plan import plan_children
from emoe_operator.settings import OperatorSettings

GOLDEN = Path(__file__).parent / "golden"
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
COMPONENTS = ("scheduler", "loader", "predictor", "worker")
MIB = 2**20


def settings(**fields: Any) -> OperatorSettings:
    return OperatorSettings(
        **{"control_image": "emoe/control:1", "worker_image": "emoe/worker:1", "host_paths": ("/srv/models",), **fields}
    )


def resource(spec: Mapping[str, Any] | None = None, **fields: Any) -> Resource:
    return Resource(
        **{
            "name": "tiny",
            "namespace": "apps",
            "uid": "0b54a1de-1111-4222-8333-444455556666",
            "generation": 1,
            "spec": {"model": {"source": "demo://"}, **(spec or {})},
            **fields,
        }
    )


def geometry(**fields: Any) -> Geometry:
    """Four layers of sixteen experts of 1 MiB, two a token."""
    rule = RoutingRule(num_experts=16, top_k=2)
    grid = ExpertGrid(num_layers=4, moe_layers=(0, 1, 2, 3), rule=rule, expert_bytes=MIB)
    return Geometry(
        **{
            "digest": "sha256-0123",
            "family": "olmoe",
            "grid": grid,
            "base_bytes": 10 * MIB,
            "kv_bytes_per_token": 2048,
            "max_context": 4096,
            **fields,
        }
    )


def model_ready(**fields: Any) -> ModelView:
    return ModelView(
        **{
            "phase": ModelPhase.READY,
            "revision": "abc123",
            "num_bytes_done": 74 * MIB,
            "num_bytes_total": 74 * MIB,
            "geometry": geometry(),
            **fields,
        }
    )


def observed(**fields: Any) -> Observed:
    return Observed(**{"now": NOW, "model": model_ready(), **fields})


def plan(spec: Mapping[str, Any] | None = None, **fields: Any) -> Desired:
    """What is planned for a spec whose model is known."""
    return plan_children(resource(spec), observed(), settings(**fields))


def deployment(desired: Desired, component: str) -> dict[str, Any]:
    found = desired.child("Deployment", f"tiny-{component}")
    assert found is not None, f"no Deployment of the {component} among {[keys(desired)]}"
    return found


def pod_spec(desired: Desired, component: str) -> dict[str, Any]:
    spec = deployment(desired, component)["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def main_container(desired: Desired, component: str) -> dict[str, Any]:
    return next(one for one in pod_spec(desired, component)["containers"] if one["name"] == "main")


def environment(desired: Desired, component: str) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in main_container(desired, component)["env"]}


def keys(desired: Desired) -> set[ChildKey]:
    return {(manifest["kind"], manifest["metadata"]["name"]) for manifest in desired.children}


def standing(desired: Desired, **overrides: Mapping[str, Any]) -> dict[ChildKey, Body]:
    """Everything applied, every Deployment rolled out; `worker={"availableReplicas": 0}` changes one's status."""
    children = {}
    for manifest in desired.children:
        body = drift.with_hash(copy.deepcopy(manifest))
        body["metadata"] |= {"uid": "child", "generation": 1}
        if manifest["kind"] == "Deployment":
            component = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
            body["status"] = {**_rolled_out(manifest["spec"]["replicas"]), **overrides.get(component, {})}
        children[manifest["kind"], manifest["metadata"]["name"]] = body
    return children


def _rolled_out(replicas: int) -> dict[str, Any]:
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), replicas)
    return {"observedGeneration": 1, **counts}


def pod(component: str, *, ready: bool = True, **status: Any) -> Body:
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    return {
        "metadata": {
            "name": f"tiny-{component}-x1",
            "labels": {"emoe.dev/moedeployment": "tiny", "app.kubernetes.io/component": component},
        },
        "spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": "600Mi"}}}]},
        "status": {"phase": "Running", "conditions": [condition], **status},
    }


def pods_but(component: str, *others: Body) -> tuple[Body, ...]:
    """A ready pod of every service but one, and these."""
    return (*(pod(one) for one in COMPONENTS if one != component), *others)


def container_status(**fields: Any) -> dict[str, Any]:
    return {"name": "main", "image": "emoe/worker:1", "ready": False, "restartCount": 0, "state": {}, **fields}
