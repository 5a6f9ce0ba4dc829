"""Every way in which a resource is not Ready, for its real cause, and what a person is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kube as k
import pytest
from bed_access import is_our_bed
from model_server import serving

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "models" / "emoe-tiny"
TOLD_SECONDS = 120.0
needs_our_bed = pytest.mark.skipif(not is_our_bed(), reason="pods of a given cluster cannot reach this machine")


@contextlib.contextmanager
def applied(kube: k.Kube, name: str, **spec: Any) -> Iterator[None]:
    kube.apply(k.demo(name, **spec))
    try:
        yield
    finally:
        kube.delete("moed", name, "--wait=false")


def check_not_ready(kube: k.Kube, name: str, *words: str) -> None:
    """Ready is not True, and its message has these words."""
    ready = kube.conditions(name)["Ready"]
    assert ready["status"] != "True"
    assert all(word in ready["message"] for word in words), k.message_of(ready)


@needs_our_bed
async def test_a_model_that_is_not_there(kube: k.Kube, tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with applied(kube, "missing", model={"source": server.url}):
            told = await wait_beside(kube, "missing", "ModelReady", reason="ModelNotFound")
            assert told["status"] == "False"
            assert "spec.model.source" in told["message"]
            check_not_ready(kube, "missing", "config.json")


@needs_our_bed
async def test_a_model_whose_weights_are_damaged(kube: k.Kube, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "damaged"))
    weights = folder / "model.safetensors"
    weights.write_bytes(b"\xff" * 64 + weights.read_bytes()[64:])
    async with serving(folder) as server:
        with applied(kube, "damaged", model={"source": server.url}):
            told = await wait_beside(kube, "damaged", "ModelReady", reason="ModelCorrupt")
            assert "model.safetensors" in told["message"]


@needs_our_bed
async def test_a_server_that_is_away_is_waited_for_and_a_cut_transfer_resumed(kube: k.Kube, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "tiny"))
    async with serving(folder) as server:
        server.is_open = False
        server.cut_at = 4 * 2**20
        with applied(kube, "cut", model={"source": server.url}):
            told = await wait_beside(kube, "cut", "ModelReady", reason="ModelUnreachable")
            assert "503" in told["message"]
            server.is_open = True
            await wait_beside(kube, "cut", "ModelReady", status="True")
            await wait_beside(kube, "cut", "Ready", seconds=k.READY_SECONDS, status="True")
        offsets = [offset for name, offset in server.asked if name == "model.safetensors"]
    assert offsets[0] == 0
    assert offsets[1:], "the transfer was never taken up again"
    assert all(offset > 0 for offset in offsets[1:])


async def wait_beside(kube: k.Kube, name: str, kind: str, *, seconds: float = TOLD_SECONDS, **fields: object) -> k.Body:
    """Waits while the server of this test goes on answering."""
    return await asyncio.to_thread(kube.wait_condition, name, kind, seconds=seconds, **fields)


def test_a_claim_that_is_not_there(kube: k.Kube) -> None:
    with applied(kube, "unclaimed", model={"source": "pvc://nowhere/tiny"}):
        told = kube.wait_condition("unclaimed", "ServicesReady", reason="Unschedulable", seconds=TOLD_SECONDS)
        assert "nowhere" in told["message"]
        check_not_ready(kube, "unclaimed", "nowhere")


def test_a_worker_that_only_starts_is_named_and_not_the_scheduler_that_waits_for_it(kube: k.Kube) -> None:
    main = {"name": "main", "volumeMounts": [{"name": "late", "mountPath": "/late"}]}
    late = {"containers": [main], "volumes": [{"name": "late", "configMap": {"name": "not-yet"}}]}
    with applied(kube, "starts", workers={"podTemplate": {"spec": late}}):
        told = kube.wait_condition("starts", "Ready", reason="WaitingForWorkers", seconds=TOLD_SECONDS)
        assert "ContainerCreating (its volumes and network are made)" in told["message"], k.message_of(told)
        assert kube.conditions("starts")["ServicesReady"]["reason"] == "WaitingForWorkers"


def test_a_worker_that_fits_no_node(kube: k.Kube) -> None:
    template = {"spec": {"nodeSelector": {"emoe.dev/nowhere": "true"}}}
    with applied(kube, "placeless", workers={"podTemplate": template}):
        told = kube.wait_condition("placeless", "WorkersReady", reason="Unschedulable", seconds=TOLD_SECONDS)
        assert "no node" in told["message"]
        check_not_ready(kube, "placeless", "no node")


@pytest.fixture
def feigned_gpus() -> Iterator[Any]:
    """A function that says how many GPUs the only node has; none after the test."""
    (node,) = json.loads(k.run("kubectl", "get", "nodes", "--output=json"))["items"]

    def set_gpus(num: int) -> None:
        path = "/status/capacity/nvidia.com~1gpu"
        patch = [{"op": "add", "path": path, "value": str(num)}] if num else [{"op": "remove", "path": path}]
        k.run(
            *("kubectl", "patch", "node", k.name_of(node), "--subresource=status", "--type=json"),
            f"--patch={json.dumps(patch)}",
        )

    set_gpus(1)
    yield set_gpus
    set_gpus(0)


@needs_our_bed
def test_a_worker_that_waits_for_a_gpu_that_another_holds(kube: k.Kube, feigned_gpus: Any) -> None:
    gpu = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
    pause = {"name": "hold", "image": "localhost/pause:1", "resources": {"limits": {"nvidia.com/gpu": 1}}}
    kube.kubectl("create", "namespace", "gpu-holder")
    k.Kube("gpu-holder").apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "holder"}, "spec": {"containers": [pause]}}
    )
    try:
        with applied(kube, "gpu", workers=gpu):
            told = kube.wait_condition("gpu", "WorkersReady", reason="WaitingForGPU", seconds=TOLD_SECONDS)
            assert "nvidia.com/gpu" in told["message"]
            check_not_ready(kube, "gpu", "GPU")
            k.Kube("gpu-holder").delete("pod", "holder", "--grace-period=0", "--force")
            k.wait_until(
                lambda: kube.conditions("gpu")["WorkersReady"],
                lambda condition: condition["reason"] != "WaitingForGPU",
                seconds=60,
                what="the worker gets the GPU that was freed",
            )
    finally:
        k.run("kubectl", "delete", "namespace", "gpu-holder", "--wait=false")


def crashing(message: str = "nonsense") -> dict[str, Any]:
    env = [{"name": "EMOE_WORKER_LOG_LEVEL", "value": message}]
    return {"podTemplate": {"spec": {"containers": [{"name": "main", "env": env}]}}}


def test_a_worker_that_crashes_again_and_again(kube: k.Kube) -> None:
    with applied(kube, "crashes", workers=crashing()):
        told = kube.wait_condition("crashes", "WorkersReady", reason="CrashLoop", seconds=180)
        assert "last words" in told["message"]
        check_not_ready(kube, "crashes", "EMOE_WORKER_LOG_LEVEL")


def test_a_revision_that_crashes_never_shows_ready_and_the_one_before_serves_on(kube: k.Kube) -> None:
    with applied(kube, "revised"):
        kube.wait_ready("revised")
        kube.apply(k.demo("revised", workers=crashing()))
        kube.wait_condition("revised", "WorkersReady", reason="CrashLoop", observedGeneration=2, seconds=180)
        conditions = kube.conditions("revised")
        assert conditions["Ready"]["status"] != "True"
        assert conditions["Available"]["status"] == "True", k.message_of(conditions["Available"])
        kube.patch("moed", "revised", {"spec": {"workers": None}})
        kube.wait_ready("revised")


def test_a_memory_limit_below_the_plan_is_refused_with_the_figure(kube: k.Kube) -> None:
    with applied(kube, "tight", workers={"resources": {"limits": {"memory": "64Mi"}}}):
        told = kube.wait_condition("tight", "SpecAccepted", status="False", seconds=TOLD_SECONDS)
        assert "memory limit of 64Mi" in told["message"]
        assert re.search(r"raise it to \d+Mi", told["message"]), k.message_of(told)
        check_not_ready(kube, "tight", "spec.workers.resources.limits.memory", "64Mi")
        assert kube.find("deployment", "tight-worker") is None


def test_an_expert_memory_below_the_least_is_refused_with_the_least(kube: k.Kube) -> None:
    with applied(kube, "small", experts={"memory": "64Ki"}):
        told = kube.wait_condition("small", "SpecAccepted", status="False", seconds=TOLD_SECONDS)
        assert re.search(r"raise it to \d+Ki", told["message"]), k.message_of(told)
        assert kube.get("moed", "small")["status"]["plan"]["minBytes"] > 64 * 1024
        check_not_ready(kube, "small", "spec.experts.memory")


def test_a_refused_change_keeps_the_old_revision_serving_and_corrected_and_can_be_suspended(kube: k.Kube) -> None:
    with applied(kube, "keeps"):
        kube.wait_ready("keeps")
        before = kube.get("deployment", "keeps-worker")["spec"]["template"]
        kube.patch("moed", "keeps", {"spec": {"experts": {"memory": "64Ki"}}})
        kube.wait_condition("keeps", "SpecAccepted", status="False", observedGeneration=2, seconds=60)
        conditions = kube.conditions("keeps")
        assert (conditions["Ready"]["status"], conditions["Available"]["status"]) == ("False", "True")
        assert kube.wait_pods("keeps", "worker", 1)
        kube.kubectl("set", "env", "deployment/keeps-worker", "EMOE_WORKER_MAX_CONTEXT=64")
        wait_template(kube, "keeps-worker", before)
        kube.patch("moed", "keeps", {"spec": {"suspend": True}})
        for component in k.SERVICES:
            kube.wait_pods("keeps", component, 0, seconds=60)
        kube.patch("moed", "keeps", {"spec": {"suspend": False, "experts": {"memory": "25%"}}})
        kube.wait_ready("keeps")


def wait_template(kube: k.Kube, name: str, template: k.Body) -> None:
    k.wait_until(
        lambda: kube.get("deployment", name)["spec"]["template"],
        lambda standing: standing == template,
        seconds=20,
        what=f"the pod template of {name} put back",
    )


def test_a_node_folder_that_the_operator_does_not_allow(kube: k.Kube) -> None:
    with applied(kube, "pathed", model={"source": "hf://a/b"}, cache={"hostPath": "/etc/kubernetes"}):
        told = kube.wait_condition("pathed", "SpecAccepted", reason="HostPathNotAllowed", seconds=60)
        assert "hostPaths" in told["message"]
        assert kube.children("pathed") == []


def test_suspended_and_scaled_to_nothing_say_so_and_wake_again(kube: k.Kube) -> None:
    with applied(kube, "sleeps", suspend=True):
        kube.wait_condition("sleeps", "WorkersReady", reason="Suspended", seconds=60)
        assert kube.pods("sleeps", "loader") == []
        kube.patch("moed", "sleeps", {"spec": {"suspend": False, "workers": {"replicas": 0}}})
        kube.wait_condition("sleeps", "WorkersReady", reason="ScaledToZero", seconds=TOLD_SECONDS)
        kube.patch("moed", "sleeps", {"spec": {"workers": {"replicas": 1}}})
        kube.wait_ready("sleeps")


def with_sidecar(**fields: Any) -> dict[str, Any]:
    side = {"name": "side", "image": "localhost:5000/emoe/nothing:1", **fields}
    return {"podTemplate": {"spec": {"containers": [side]}}}


def test_an_image_that_cannot_be_pulled(kube: k.Kube) -> None:
    modest = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    with applied(kube, "imageless", workers=with_sidecar(securityContext=modest)):
        told = kube.wait_condition("imageless", "WorkersReady", reason="ImagePullFailed", seconds=TOLD_SECONDS)
        assert "localhost:5000/emoe/nothing:1" in told["message"]


def test_a_pod_that_the_namespace_does_not_allow(kube: k.Kube) -> None:
    with applied(kube, "immodest", workers=with_sidecar()):
        told = kube.wait_condition("immodest", "WorkersReady", reason="PodsNotCreated", seconds=TOLD_SECONDS)
        assert "restricted" in told["message"]
