"""What a platform engineer and a developer do first: apply two lines, watch it turn Ready, ask it something."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

import kube as k
import pytest
from asking import PROMPTS, ask_once, load
from bed_access import is_our_bed, num_major_faults, reach
from recorder import Recording, recording
from support.up import Up

from emoe.core.quantity import parse_quantity

pytestmark = pytest.mark.cluster

CONDITIONS = {"Ready", "Available", "SpecAccepted", "ModelReady", "ServicesReady", "WorkersReady", "Progressing"}
MAX_TOKENS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """The demo resource, Ready; `record` has every state of it on the way."""

    record: Recording
    address: str


@pytest.fixture(scope="module")
def served(kube: k.Kube, figure: Callable[[str, str], None]) -> Iterator[Served]:
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(recording(kube, "moed"))
        kube.apply(k.demo(experts={"memory": "25%", "missPolicy": "load"}))
        kube.wait_ready("demo")
        figure("apply to Ready, demo://", f"{time.monotonic() - started:.1f} s")
        address = stack.enter_context(reach(kube, "demo"))
        yield Served(record=record, address=address)


@contextlib.asynccontextmanager
async def local_system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """host:port of `emoe up` on this machine with the same model and policy."""
    command = [
        *(sys.executable, "-m", "emoe.cli.main", "up", "--json", "--listen=127.0.0.1:0", "--expert-memory=25%"),
        *("--miss-policy=load", f"--state-dir={tmp_path_factory.mktemp('up')}"),
    ]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        ready = await Up(process).until(event="ready")
        yield ready["scheduler"]
    finally:
        process.terminate()
        await process.wait()


def test_every_condition_is_there_from_the_first_status_on_with_reason_and_generation(
    kube: k.Kube, served: Served
) -> None:
    statuses = served.record.statuses("demo")
    assert statuses
    for status in statuses:
        assert {one["type"] for one in status["conditions"]} == CONDITIONS, k.shorten(status)
        for one in status["conditions"]:
            assert one["reason"]
            assert one["observedGeneration"] == status["observedGeneration"]
            assert one["message"] or one["status"] == "True", one


def test_ready_says_what_is_missing_until_nothing_is(kube: k.Kube, served: Served) -> None:
    """Ready goes once from not True to True, and only when model, services and workers are."""
    told = []
    for status in served.record.statuses("demo"):
        by_type = {one["type"]: one for one in status["conditions"]}
        parts = {by_type[kind]["status"] for kind in ("SpecAccepted", "ModelReady", "ServicesReady", "WorkersReady")}
        assert (by_type["Ready"]["status"] == "True") == (parts == {"True"}), k.shorten(status["conditions"])
        if not told or told[-1] != by_type["Ready"]["reason"]:
            told.append(by_type["Ready"]["reason"])
    assert len(told) >= 3, f"nothing was told on the way: {told}"


def test_status_tells_address_plan_and_residency(kube: k.Kube, served: Served) -> None:
    pods = [k.name_of(pod) for pod in kube.pods("demo", "worker")]
    status = k.wait_until(
        lambda: kube.get("moed", "demo")["status"],
        lambda status: [one["name"] for one in status.get("residency", {}).get("workers", [])] == pods,
        seconds=60,
        what=f"residency of {pods} in the status",
    )
    assert status["address"] == f"demo.{kube.namespace}.svc:8000"
    assert (status["plan"]["totalExperts"], status["plan"]["slots"]) == (192, 48)
    assert status["residency"]["summary"].endswith("/192")
    assert status["workers"] == {"replicas": 1, "ready": 1}


def test_the_worker_stays_within_the_memory_that_the_plan_foretold(kube: k.Kube, served: Served) -> None:
    (pod,) = kube.pods("demo", "worker")
    limit = pod["spec"]["containers"][0]["resources"]["limits"]["memory"]
    assert parse_quantity(limit) == kube.get("moed", "demo")["status"]["plan"]["workerMemoryBytes"]
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


@pytest.mark.skipif(not is_our_bed(), reason="needs the node's own view of the process")
async def test_the_worker_has_room_for_its_code_beside_its_data(kube: k.Kube, served: Served) -> None:
    """A limit that leaves too little for mapped libraries kills nobody: the worker crawls, reading them anew."""
    (pod,) = kube.wait_pods("demo", "worker", 1)
    async with load(served.address, num_streams=16, num_channels=1) as streams:
        await streams.until_answered(16)
        before = num_major_faults(pod)
        await streams.until_answered(48)
        assert num_major_faults(pod) - before < 200


def test_no_finalizer_is_set(kube: k.Kube, served: Served) -> None:
    assert "finalizers" not in kube.get("moed", "demo")["metadata"]


def test_printer_columns_tell_the_state(kube: k.Kube, served: Served) -> None:
    header, line = kube.kubectl("get", "moed", "demo").splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "RESIDENT", "HIT", "WORKERS", "MODEL", "AGE"]
    assert line.split()[:2] == ["demo", "True"]
    assert line.split()[-2] == "demo://"


def test_grpcurl_finds_the_api_by_reflection_and_streams_an_answer(kube: k.Kube, served: Served) -> None:
    listed = k.run("grpcurl", "-plaintext", served.address, "list")
    assert "emoe.v1.SchedulerService" in listed.split()
    question = {"text": PROMPTS[0], "raw": True, "sampling": {"max_tokens": MAX_TOKENS}}
    streamed = k.run(
        *("grpcurl", "-plaintext", "-d", json.dumps(question), served.address, "emoe.v1.SchedulerService/Generate")
    )
    messages = [json.loads(part) for part in streamed.replace("}\n{", "}\0{").split("\0")]
    assert len(messages) > 1
    assert messages[-1]["finish_reason"].startswith("FINISH_REASON_")
    assert "".join(message.get("text", "") for message in messages).strip()


async def test_exact_mode_gives_the_tokens_that_it_gives_on_one_machine(
    kube: k.Kube, served: Served, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with local_system(tmp_path_factory) as local:
        for prompt in PROMPTS:
            here = await ask_once(local, prompt, max_tokens=MAX_TOKENS)
            there = await ask_once(served.address, prompt, max_tokens=MAX_TOKENS)
            assert here.is_ok, here
            assert (there.code, there.token_ids, there.text) == (here.code, here.token_ids, here.text)


def test_the_command_asks_the_cluster(kube: k.Kube, served: Served) -> None:
    command = [sys.executable, "-m", "emoe.cli.main", "generate", PROMPTS[1], "--json", "--max-tokens=8"]
    done = subprocess.run([*command, f"--address={served.address}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["worker_id"] == k.name_of(kube.pods("demo", "worker")[0])


async def test_workers_scale_up_and_down_by_kubectl_scale(
    kube: k.Kube, served: Served, figure: Callable[[str, str], None]
) -> None:
    started = time.monotonic()
    kube.kubectl("scale", "moed/demo", "--replicas=2")
    pods = kube.wait_pods("demo", "worker", 2)
    kube.wait_ready("demo")
    figure("kubectl scale 1 to 2, until Ready", f"{time.monotonic() - started:.1f} s")
    scale = json.loads(kube.kubectl("get", "--raw", scale_path(kube)))
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)
    selected = kube.select("pods", scale["status"]["selector"])
    assert {k.name_of(pod) for pod in selected} == {k.name_of(pod) for pod in pods}
    kube.kubectl("scale", "moed/demo", "--replicas=1")
    kube.wait_pods("demo", "worker", 1, seconds=120)
    kube.wait_ready("demo")
    assert (await ask_once(served.address, PROMPTS[0])).is_ok


def scale_path(kube: k.Kube) -> str:
    return f"/apis/emoe.dev/v1alpha1/namespaces/{kube.namespace}/moedeployments/demo/scale"
