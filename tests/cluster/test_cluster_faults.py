"""What clients see while parts die: nobody waits without an end, no token is wrong, everything is Ready again.

The answers of exact mode do not depend on who computes them, so each one can be compared with the first of its prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

import kube as k
import pytest
from asking import PROMPTS, Load, Outcome, ask_once, load
from bed_access import crash, is_our_bed, reach, restart_part
from release import Release

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(480)]

NUM_STREAMS = 200
MAX_TOKENS = 12
WARM_ANSWERS = 20
SPEC = {
    "experts": {"memory": "50%", "missPolicy": "load"},
    "workers": {"replicas": 2, "resources": {"requests": {"cpu": "100m"}}},
    "services": {"scheduler": {"replicas": 2}},
    "rollout": {"drainSeconds": 60},
}
Figure = Callable[[str, str], None]


@pytest.fixture(scope="module")
def busy(kube: k.Kube) -> k.Kube:
    kube.apply(k.demo("busy", **SPEC))
    kube.wait_ready("busy")
    return kube


@pytest.fixture(scope="module")
def door(busy: k.Kube) -> Iterator[str]:
    with reach(busy, "busy") as address:
        yield address


@contextlib.asynccontextmanager
async def under_load(kube: k.Kube, door: str) -> AsyncIterator[Load]:
    """200 streams, well under way as the block begins; in the end every answer that came is checked."""
    await until_settled(kube)
    answers = [await ask_once(door, prompt, max_tokens=MAX_TOKENS) for prompt in PROMPTS]
    assert all(answer.is_ok for answer in answers), answers
    right = {answer.prompt: answer.token_ids for answer in answers}
    async with load(door, num_streams=NUM_STREAMS, max_tokens=MAX_TOKENS) as streams:
        await streams.until_answered(WARM_ANSWERS)
        yield streams
    assert [one for one in streams.outcomes if one.is_ok and one.token_ids != right[one.prompt]] == []
    assert [one for one in streams.outcomes if not is_prefix(one, right)] == []
    assert [one for one in streams.outcomes if one.code in ("DEADLINE_EXCEEDED", "NO_FINISH")] == []


def is_prefix(outcome: Outcome, right_answers: dict[str, tuple[int, ...]]) -> bool:
    return right_answers[outcome.prompt][: len(outcome.token_ids)] == outcome.token_ids


def settle(kube: k.Kube) -> None:
    kube.wait_ready("busy")
    for component, num in (("worker", 2), ("scheduler", 2), ("loader", 1), ("predictor", 1)):
        kube.wait_pods("busy", component, num)


async def until_settled(kube: k.Kube) -> None:
    """Not at once: the status needs a moment to notice what was done."""
    await asyncio.to_thread(settle, kube)


async def crash_one(kube: k.Kube, component: str) -> float:
    """Kills the first pod's process; seconds on the monotonic clock."""
    pods = await asyncio.to_thread(kube.pods, "busy", component)
    restarts = pods[0]["status"]["containerStatuses"][0]["restartCount"]
    name = k.name_of(pods[0])
    await asyncio.to_thread(crash, kube, pods[0])
    at = time.monotonic()
    if is_our_bed():
        await asyncio.to_thread(wait_restarted, kube, name, restarts)
    return at


def wait_restarted(kube: k.Kube, pod: str, restarts: int) -> None:
    k.wait_until(
        lambda: kube.get("pod", pod)["status"]["containerStatuses"][0]["restartCount"],
        lambda now: now > restarts,
        seconds=60,
        what=f"{pod} started again",
    )


async def test_a_worker_is_killed(busy: k.Kube, door: str, figure: Figure) -> None:
    """Its own begun streams end UNAVAILABLE; what had not begun is answered by the other."""
    async with under_load(busy, door) as streams:
        at = await crash_one(busy, "worker")
        await streams.until_answered(WARM_ANSWERS)
        firsts = [one.first_token for one in streams.outcomes if one.first_token and one.first_token > at]
        figure("worker killed: until the next answer's first token", f"{min(firsts) - at:.2f} s")
        await until_settled(busy)
        await streams.until_answered(WARM_ANSWERS)
        figure("worker killed", streams.describe())
        failed = [one for one in streams.outcomes if not one.is_ok]
        assert {one.code for one in failed} <= {"UNAVAILABLE"}, failed[:3]
        assert all(one.token_ids for one in failed), "a request that had not begun was not tried elsewhere"
        assert len(failed) <= 8, "more failed than one worker runs at once"


@pytest.mark.parametrize("component", ["loader", "predictor"])
async def test_a_service_behind_the_workers_is_killed(busy: k.Kube, door: str, figure: Figure, component: str) -> None:
    """Nobody notices but in the speed."""
    async with under_load(busy, door) as streams:
        await crash_one(busy, component)
        await streams.until_answered(WARM_ANSWERS)
        await until_settled(busy)
        await streams.until_answered(WARM_ANSWERS)
        figure(f"{component} killed", streams.describe())
        assert set(streams.codes()) == {"OK"}


async def test_one_of_two_schedulers_is_killed(busy: k.Kube, door: str, figure: Figure) -> None:
    """Its clients' calls end; the next ones are answered by the other."""
    async with under_load(busy, door) as streams:
        await crash_one(busy, "scheduler")
        await streams.until_answered(WARM_ANSWERS)
        await until_settled(busy)
        await streams.until_answered(WARM_ANSWERS)
        figure("one of two schedulers killed", streams.describe())
        assert set(streams.codes()) <= {"OK", "UNAVAILABLE"}
        assert len([one for one in streams.outcomes if not one.is_ok]) <= NUM_STREAMS


async def test_the_operator_is_killed_in_the_middle_of_a_change(
    busy: k.Kube, door: str, figure: Figure, release: Release
) -> None:
    async with under_load(busy, door) as streams:
        change = {"spec": {"services": {"scheduler": {"podTemplate": {"metadata": {"annotations": {"round": "1"}}}}}}}
        await asyncio.to_thread(busy.patch, "moed", "busy", change)
        for pod in await asyncio.to_thread(release.operator_pods):
            await asyncio.to_thread(crash, release.system, pod)
        await until_settled(busy)
        await streams.until_answered(WARM_ANSWERS)
        figure("operator killed while schedulers were replaced", streams.describe())
        assert set(streams.codes()) == {"OK"}


@pytest.mark.skipif(not is_our_bed(), reason="a given cluster's control plane is left alone")
async def test_the_api_server_restarts(busy: k.Kube, door: str, figure: Figure) -> None:
    async with under_load(busy, door) as streams:
        await asyncio.to_thread(restart_part, "kube-apiserver")
        await streams.until_answered(WARM_ANSWERS)
        await asyncio.to_thread(wait_for_api)
        await until_settled(busy)
        figure("API server restarted", streams.describe())
        assert set(streams.codes()) == {"OK"}


def wait_for_api() -> None:
    def answers() -> bool:
        try:
            return "ok" in k.run("kubectl", "get", "--raw", "/readyz", "--request-timeout=5s")
        except k.CommandError:
            return False

    k.wait_until(answers, bool, seconds=60, what="the API server")


async def test_the_budget_changes(busy: k.Kube, door: str, figure: Figure) -> None:
    """Workers are replaced one by one, and no request notices."""
    async with under_load(busy, door) as streams:
        share = busy.get("moed", "busy")["spec"]["experts"]["memory"]
        other = "30%" if share == "50%" else "50%"
        started = time.monotonic()
        await asyncio.to_thread(busy.patch, "moed", "busy", {"spec": {"experts": {"memory": other}}})
        await until_settled(busy)
        figure("budget changed: until both workers are replaced", f"{time.monotonic() - started:.1f} s")
        await streams.until_answered(WARM_ANSWERS)
        figure("budget changed", streams.describe())
        assert set(streams.codes()) == {"OK"}


async def test_workers_are_scaled_to_three_and_back(busy: k.Kube, door: str, figure: Figure) -> None:
    async with under_load(busy, door) as streams:
        await asyncio.to_thread(busy.kubectl, "scale", "moed/busy", "--replicas=3")
        await asyncio.to_thread(busy.wait_pods, "busy", "worker", 3)
        await asyncio.to_thread(busy.kubectl, "scale", "moed/busy", "--replicas=2")
        await until_settled(busy)
        await streams.until_answered(WARM_ANSWERS)
        figure("scaled 2 to 3 to 2", streams.describe())
        assert set(streams.codes()) == {"OK"}
