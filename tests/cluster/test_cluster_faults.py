"""What clients see while parts die: nobody waits without an end, no token is wrong, everything is Ready again.

The answers that are asked for do not depend on who computes them, nor beside what: see `support.references`. Each was
computed alone before anything failed, and each answer under load is compared with it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import kube as k
import pytest
from asking import Load, Question, ask_each, load
from bed_access import crash, is_our_bed, reach, restart_part
from candidates import CANDIDATES
from release import Release
from support.references import Candidate, References, choose_references

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(480)]

NUM_STREAMS = 200
FEW_ANSWERS = 20
WORKER_CONCURRENCY = 8
SETTLE_SECONDS = 150.0
RESTART_SECONDS = 60.0
API_SECONDS = 60.0
PODS = {"worker": 2, "scheduler": 2, "loader": 1, "predictor": 1}
ONE_THREAD = {"name": "EMOE_WORKER_THREADS", "value": "1"}
"""Workers on one small node: with a thread for each core, all of them wait for each other's turns."""
SPEC = {
    "experts": {"memory": "50%", "missPolicy": "load"},
    "workers": {
        "replicas": PODS["worker"],
        "maxConcurrency": WORKER_CONCURRENCY,
        "resources": {"requests": {"cpu": "100m"}},
        "podTemplate": {"spec": {"containers": [{"name": "main", "env": [ONE_THREAD]}]}},
    },
    "services": {"scheduler": {"replicas": PODS["scheduler"]}},
    "rollout": {"drainSeconds": 120},  # a scheduler's half of the queue is answered by then
}
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
Figure = Callable[[str, str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Door:
    """The resource's Service, and what it is asked."""

    address: str
    questions: tuple[Question, ...]
    references: References


@dataclasses.dataclass(frozen=True, kw_only=True)
class Death:
    """Of a pod's process; `others` are the component's pods that live on."""

    pod: k.Body
    others: frozenset[str]
    at: float
    """On the monotonic clock, at the latest."""


@pytest.fixture(scope="module")
def busy(kube: k.Kube) -> k.Kube:
    kube.apply(k.demo("busy", **SPEC))
    settle(kube)
    return kube


@pytest.fixture(scope="module")
def door(busy: k.Kube, figure: Figure) -> Iterator[Door]:
    """Every candidate is asked alone, once."""
    with reach(busy, "busy") as address:
        asked = [dataclasses.replace(question, with_leads=True) for question in CANDIDATES]
        with asyncio.Runner() as runner:
            answers = runner.run(ask_each(address, asked))
        assert all(answer.is_ok for answer in answers), answers
        references = choose_references(
            [Candidate(prompt=one.prompt, token_ids=one.token_ids, leads_nats=one.leads_nats) for one in answers]
        )
        figure("prompts asked under load", f"{len(references.prompts)}, of {references.num_tokens} tokens that lead")
        questions = tuple(question for question in CANDIDATES if question.prompt in references.prompts)
        yield Door(address=address, questions=questions, references=references)


@contextlib.asynccontextmanager
async def under_load(
    kube: k.Kube, door: Door, *, num_streams: int = NUM_STREAMS, service_config: str = "{}"
) -> AsyncIterator[Load]:
    """Streams, well under way as the block begins; in the end every answer that came is checked."""
    await until_settled(kube)
    async with load(
        door.address, num_streams=num_streams, questions=door.questions, service_config=service_config
    ) as streams:
        await streams.until_answered(FEW_ANSWERS)
        yield streams
    assert door.references.wrong(streams.outcomes) == []
    assert [one for one in streams.outcomes if one.code in ("DEADLINE_EXCEEDED", "NO_FINISH")] == []


def settle(kube: k.Kube) -> None:
    k.wait_until(
        lambda: (kube.get("moed", "busy"), kube.select("pods", f"{k.OWNER_LABEL}=busy")),
        lambda seen: k.is_ready(seen[0]) and is_whole(seen[1]),
        seconds=SETTLE_SECONDS,
        what="busy is Ready and has all its pods",
    )


def is_whole(pods: list[k.Body]) -> bool:
    standing = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    components = collections.Counter(pod["metadata"]["labels"][k.COMPONENT_LABEL] for pod in standing)
    return components == PODS and all(map(k.is_pod_ready, standing))


async def until_settled(kube: k.Kube) -> None:
    await asyncio.to_thread(settle, kube)


def crash_now(kube: k.Kube, component: str) -> Death:
    """Of the pod that restarted least: a second restart of one is put off by the kubelet."""
    pod, *others = sorted(kube.pods("busy", component), key=num_restarts)
    crash(kube, pod)
    return Death(pod=pod, others=frozenset(map(k.name_of, others)), at=time.monotonic())


def wait_restarted(kube: k.Kube, pod: k.Body) -> None:
    k.wait_until(
        lambda: num_restarts(kube.get("pod", k.name_of(pod))),
        lambda now: now > num_restarts(pod),
        seconds=RESTART_SECONDS,
        what=f"{k.name_of(pod)} started again",
    )


def num_restarts(pod: k.Body) -> int:
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


async def crash_one(kube: k.Kube, component: str) -> Death:
    """In our bed returns when the pod runs anew: from then on its readiness is the new process's."""
    death = await asyncio.to_thread(crash_now, kube, component)
    if is_our_bed():
        await asyncio.to_thread(wait_restarted, kube, death.pod)
    return death


def tell_first_tokens(figure: Figure, streams: Load, death: Death) -> None:
    answered = [one for one in streams.outcomes if one.first_token]
    later = [one for one in answered if one.started > death.at]
    again = [one for one in answered if one.worker_id not in death.others and one.was_begun_after(death.at)]
    what = f"worker killed, {streams.num_streams} streams"
    for until, outcomes in (("the first token of a request sent then", later), ("it gives a token again", again)):
        seconds, queued = min(((one.first_token or 0.0) - death.at, one.queue_seconds) for one in outcomes)
        figure(f"{what}: until {until}", f"{seconds:.1f} s; that request was in the queue for {queued:.1f} s")


@pytest.mark.parametrize("num_streams", [4, NUM_STREAMS], ids=["idle", "loaded"])
async def test_a_worker_is_killed(busy: k.Kube, door: Door, figure: Figure, num_streams: int) -> None:
    """Its own begun streams end UNAVAILABLE; what had not begun is answered by the other."""
    async with under_load(busy, door, num_streams=num_streams) as streams:
        death = await crash_one(busy, "worker")
        await until_settled(busy)
        await streams.until(lambda one: one.worker_id not in death.others and one.was_begun_after(death.at))
    tell_first_tokens(figure, streams, death)
    failed = streams.failed()
    assert {one.code for one in failed} <= {"UNAVAILABLE"}, streams.reasons()
    assert all(one.token_ids for one in failed), "a request that had not begun was not tried elsewhere"
    assert len(failed) <= WORKER_CONCURRENCY, "more failed than one worker runs at once"
    moved = [one for one in streams.outcomes if one.is_ok and one.started < death.at < (one.first_token or 0.0)]
    what = f"worker killed, {num_streams} streams"
    figure(what, f"{streams.describe()}; {len(moved)} waited then for a first token, and were answered")


@pytest.mark.parametrize("component", ["loader", "predictor"])
async def test_a_service_behind_the_workers_is_killed(busy: k.Kube, door: Door, figure: Figure, component: str) -> None:
    """Nobody notices but in the speed."""
    async with under_load(busy, door) as streams:
        await crash_one(busy, component)
        await until_settled(busy)
        await streams.until_answered(FEW_ANSWERS)
    figure(f"{component} killed", streams.describe())
    assert not streams.failed(), streams.reasons()


def documented_retries() -> str:
    """The service config that the manual gives to clients."""
    (config,) = re.findall(r"```json\n(.*?methodConfig.*?)```", OPERATIONS.read_text(), flags=re.DOTALL)
    return str(config)


async def test_one_of_two_schedulers_is_killed(busy: k.Kube, door: Door, figure: Figure) -> None:
    """Its clients' calls end, and the other answers the next ones; with the manual's retries only begun answers end."""
    half = NUM_STREAMS // 2
    async with (
        under_load(busy, door, num_streams=half) as plain,
        under_load(busy, door, num_streams=half, service_config=documented_retries()) as retrying,
    ):
        await crash_one(busy, "scheduler")
        await until_settled(busy)
        await plain.until_answered(FEW_ANSWERS)
        await retrying.until_answered(FEW_ANSWERS)
    figure("one of two schedulers killed, plain clients", plain.describe())
    figure("one of two schedulers killed, clients with the manual's retries", retrying.describe())
    for streams in (plain, retrying):
        assert set(streams.codes()) <= {"OK", "UNAVAILABLE"}, streams.reasons()
    assert len(plain.failed()) <= half
    assert all(one.token_ids for one in retrying.failed()), retrying.reasons()
    assert len(retrying.failed()) <= PODS["worker"] * WORKER_CONCURRENCY


async def test_the_operator_is_killed_in_the_middle_of_a_change(
    busy: k.Kube, door: Door, figure: Figure, release: Release
) -> None:
    """Clients ask as the manual says: a gRPC server that closes cancels the calls that reach it just then."""
    async with under_load(busy, door, service_config=documented_retries()) as streams:
        change = {"spec": {"services": {"scheduler": {"podTemplate": {"metadata": {"annotations": {"round": "1"}}}}}}}
        await asyncio.to_thread(busy.patch, "moed", "busy", change)
        for pod in await asyncio.to_thread(release.operator_pods):
            await asyncio.to_thread(crash, release.system, pod)
        await until_settled(busy)
        await streams.until_answered(FEW_ANSWERS)
    figure("operator killed while schedulers were replaced", streams.describe())
    assert not streams.failed(), streams.reasons()


@pytest.mark.skipif(not is_our_bed(), reason="a given cluster's control plane is left alone")
async def test_the_api_server_restarts(busy: k.Kube, door: Door, figure: Figure) -> None:
    async with under_load(busy, door) as streams:
        died = time.monotonic()
        await asyncio.to_thread(restart_part, "kube-apiserver")
        await asyncio.to_thread(wait_for_api)
        figure("API server killed: until it answers again", f"{time.monotonic() - died:.1f} s")
        await until_settled(busy)
        await streams.until_answered(FEW_ANSWERS)
    figure("API server restarted", streams.describe())
    assert not streams.failed(), streams.reasons()


def wait_for_api() -> None:
    def says() -> str:
        try:
            return k.run("kubectl", "get", "--raw", "/readyz", "--request-timeout=5s")
        except k.CommandError as error:
            return error.message

    k.wait_until(says, lambda told: told == "ok", seconds=API_SECONDS, what="the API server answers")


async def test_the_budget_changes(busy: k.Kube, door: Door, figure: Figure) -> None:
    """Workers are replaced one by one, and no request notices."""
    async with under_load(busy, door) as streams:
        share = busy.get("moed", "busy")["spec"]["experts"]["memory"]
        other = "30%" if share == "50%" else "50%"
        started = time.monotonic()
        await asyncio.to_thread(busy.patch, "moed", "busy", {"spec": {"experts": {"memory": other}}})
        await until_settled(busy)
        figure("budget changed: until both workers are replaced", f"{time.monotonic() - started:.1f} s")
        await streams.until_answered(FEW_ANSWERS)
    figure("budget changed", streams.describe())
    assert not streams.failed(), streams.reasons()


async def test_workers_are_scaled_to_three_and_back(busy: k.Kube, door: Door, figure: Figure) -> None:
    async with under_load(busy, door) as streams:
        await asyncio.to_thread(busy.kubectl, "scale", "moed/busy", "--replicas=3")
        await asyncio.to_thread(busy.wait_pods, "busy", "worker", 3)
        await asyncio.to_thread(busy.kubectl, "scale", "moed/busy", "--replicas=2")
        await until_settled(busy)
        await streams.until_answered(FEW_ANSWERS)
    figure("scaled 2 to 3 to 2", streams.describe())
    assert not streams.failed(), streams.reasons()
