"""Models from a hub and from a bucket: fetched once whatever breaks on the way, checked, and then served.

The shipped model is what is published, so every answer can be compared with that of demo://.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import kube as k
import pytest
from asking import PROMPTS, ask_once
from bed_access import NODE_ADDRESS, is_our_bed, reach
from gate import WEIGHTS, Gate, gate_before
from release import Release
from support.model_places import in_a_bucket, on_a_hub
from support.model_servers import COMMIT, Hub
from volumes import CLASS_NAME, SIZE, claim, volume_for

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not is_our_bed(), reason="pods of a given cluster cannot reach this machine"),
]

P = ParamSpec("P")
T = TypeVar("T")
SHIPPED = Path(__file__).resolve().parents[2] / "models" / "emoe-tiny"
NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
CUT_AT = 4 << 20
HOLD_AT = 8 << 20
BLOCK_BYTES = 1 << 20
"""So much may have arrived and not have been written yet."""
TOLD_SECONDS = 120.0
MAX_TOKENS = 16
EXACT = {"memory": "25%", "missPolicy": "load"}
REPO = "emoe/tiny"
TOKEN = "let-me-in"
KEYS = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "not-for-others", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def hub_port(release: Release) -> Iterator[int]:
    """Where loaders look for a hub, here; the chart's default after the module."""
    with socket.create_server((NODE_ADDRESS, 0)) as free:
        port = int(free.getsockname()[1])
    release.install(f"--set=workloads.hfEndpoint=http://{NODE_ADDRESS}:{port}")
    yield port
    release.install()


@pytest.fixture(scope="module")
def demo_door(kube: k.Kube) -> Iterator[str]:
    """Of the model in the images."""
    kube.apply(k.demo(experts=EXACT))
    kube.wait_ready("demo")
    with reach(kube, "demo") as address:
        yield address


async def beside(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """While the servers of this test go on answering."""
    return await asyncio.to_thread(call, *args, **kwargs)


@contextlib.asynccontextmanager
async def applied(kube: k.Kube, name: str, **spec: Any) -> AsyncIterator[None]:
    await beside(kube.apply, k.demo(name, experts=EXACT, **spec))
    try:
        yield
    finally:
        await beside(kube.delete, "moed", name, "--wait=false")


def make_secret(kube: k.Kube, name: str, **values: str) -> None:
    kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values})


async def check_answers(kube: k.Kube, name: str, demo_door: str) -> None:
    with reach(kube, name) as door:
        for prompt in PROMPTS[:3]:
            right = await ask_once(demo_door, prompt, max_tokens=MAX_TOKENS)
            given = await ask_once(door, prompt, max_tokens=MAX_TOKENS)
            assert right.is_ok, right
            assert (given.code, given.token_ids, given.text) == (right.code, right.token_ids, right.text), given


async def wait_model(kube: k.Kube, name: str, *, num_bytes: int) -> k.Body:
    """status.model once it tells of so many bytes."""
    return await beside(
        k.wait_until,
        lambda: kube.get("moed", name).get("status", {}).get("model", {}),
        lambda model: model.get("bytesDone", 0) >= num_bytes,
        seconds=TOLD_SECONDS,
        what=f"{num_bytes} bytes of {name}'s model in its status",
    )


async def break_twice(kube: k.Kube, name: str, gate: Gate, cache: Path) -> None:
    """The connection is cut, then the loader's pod killed; Ready in the end, and nothing that was there came again."""
    model = await wait_model(kube, name, num_bytes=HOLD_AT - BLOCK_BYTES)
    assert model["bytesDone"] < model["bytesTotal"]
    told = kube.conditions(name)["ModelReady"]
    assert (told["status"], told["reason"]) == ("False", "ModelFetching"), k.message_of(told)
    assert "MiB" in told["message"], k.message_of(told)
    assert len(gate.offsets()) > 1, "the connection was not cut"
    assert CUT_AT - BLOCK_BYTES <= gate.offsets()[1] <= CUT_AT + BLOCK_BYTES

    num_bytes_there, num_reads = num_bytes_of_part(cache), len(gate.offsets())
    (pod,) = await beside(kube.pods, name, "loader")
    await beside(kube.delete, "pod", k.name_of(pod), "--grace-period=0", "--force", "--wait=false")
    await beside(
        k.wait_until,
        lambda: gate.offsets()[num_reads:],
        bool,
        seconds=TOLD_SECONDS,
        what=f"a new loader of {name} asks for the rest of {WEIGHTS}",
    )
    gate.open()
    ready = await beside(kube.wait_ready, name)

    assert num_bytes_there >= HOLD_AT - BLOCK_BYTES
    assert min(gate.offsets()[num_reads:]) >= num_bytes_there
    asked = Counter(read.name for read in gate.reads)
    assert {file: asked[file] for file in NEEDED} == dict.fromkeys(NEEDED, 1)
    total = ready["status"]["model"]["bytesTotal"]
    assert ready["status"]["model"]["bytesDone"] == total == sum((SHIPPED / f).stat().st_size for f in fetched(cache))


def num_bytes_of_part(cache: Path) -> int:
    (part,) = cache.glob(f"*.partial/{WEIGHTS}.part")
    return part.stat().st_size


def fetched(cache: Path) -> set[str]:
    """Names of the files of the only model there."""
    (manifest,) = cache.glob("*/.emoe-source.json")
    return {path.name for path in manifest.parent.iterdir() if not path.name.startswith(".")}


def say_sent(gate: Gate) -> str:
    sent = sum(read.num_bytes for read in gate.reads if read.name == WEIGHTS)
    return f"{sent} bytes of {(SHIPPED / WEIGHTS).stat().st_size} sent, from {gate.offsets()} on"


async def test_a_model_of_a_hub_is_resumed_after_a_cut_and_after_the_loaders_death(
    kube: k.Kube,
    hub_port: int,
    demo_door: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str, str], None],
) -> None:
    """A gated one, into a claim that emoe makes."""
    hub = Hub(SHIPPED, REPO, token=TOKEN)
    cache = tmp_path / "cache"
    make_secret(kube, "hub", HF_TOKEN=TOKEN)
    model = {"source": f"hf://{REPO}", "revision": "main", "secretRef": {"name": "hub"}}
    with volume_for(kube, "hubbed-cache", cache):
        async with (
            on_a_hub(SHIPPED, monkeypatch, hub) as place,
            gate_before(place.line.port, port=hub_port) as gate,
            applied(kube, "hubbed", model=model, cache={"size": SIZE, "storageClassName": CLASS_NAME}),
        ):
            gate.cut_at, gate.hold_at = CUT_AT, HOLD_AT
            await break_twice(kube, "hubbed", gate, cache)
            assert kube.get("moed", "hubbed")["status"]["model"]["revision"] == COMMIT
            assert hub.revisions == ["main", COMMIT]
            await check_answers(kube, "hubbed", demo_door)
            figure("weights from a hub, connection cut and loader killed", say_sent(gate))


async def test_a_model_of_a_bucket_is_resumed_and_its_keys_are_in_the_loader_alone(
    kube: k.Kube,
    demo_door: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str, str], None],
) -> None:
    """Into a claim that somebody made, which the workers read too."""
    cache = tmp_path / "cache"
    with volume_for(kube, "shared", cache):
        kube.apply(claim("shared"))
        async with in_a_bucket(SHIPPED, monkeypatch) as place, gate_before(place.line.port) as gate:
            make_secret(kube, "bucket", AWS_ENDPOINT_URL=gate.url, **KEYS)
            gate.cut_at, gate.hold_at = CUT_AT, HOLD_AT
            model = {"source": place.address, "secretRef": {"name": "bucket"}}
            async with applied(kube, "bucketed", model=model, cache={"claimName": "shared"}):
                await break_twice(kube, "bucketed", gate, cache)
                assert all(f"Credential={KEYS['AWS_ACCESS_KEY_ID']}/" in read.authorization for read in gate.reads)
                await check_answers(kube, "bucketed", demo_door)
                figure("weights from a bucket, connection cut and loader killed", say_sent(gate))
                await check_keys(kube, "bucketed")


async def check_keys(kube: k.Kube, name: str) -> None:
    """Whose environment has them, and that no manifest does."""
    holders = []
    for component in k.SERVICES:
        (pod,) = await beside(kube.wait_pods, name, component, 1)
        assert not any(value in str(pod) for value in (KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"]))
        look = ("exec", k.name_of(pod), "--", "python", "-c", "import os; print(*os.environ.values())")
        if KEYS["AWS_SECRET_ACCESS_KEY"] in (await beside(kube.kubectl, *look)).split():
            holders.append(component)
    assert holders == ["loader"]


async def test_a_hub_that_sends_other_bytes_than_it_says_is_not_served_until_it_is_mended(
    kube: k.Kube, hub_port: int, demo_door: str, monkeypatch: pytest.MonkeyPatch, figure: Callable[[str, str], None]
) -> None:
    """First a byte is wrong, then the file ends in the middle."""
    weights = (SHIPPED / WEIGHTS).read_bytes()
    hub = Hub(SHIPPED, REPO)
    hub.served[WEIGHTS] = weights[:-1] + bytes([weights[-1] ^ 1])
    env = [{"name": "EMOE_LOADER_PERMANENT_RETRY_SECONDS", "value": "3"}]
    soon = {"loader": {"podTemplate": {"spec": {"containers": [{"name": "main", "env": env}]}}}}
    async with (
        on_a_hub(SHIPPED, monkeypatch, hub) as place,
        gate_before(place.line.port, port=hub_port),
        applied(kube, "lied", model={"source": f"hf://{REPO}"}, services=soon),
    ):
        await wait_corrupt(kube, "lied", "checksum")
        await check_nothing_served(kube, "lied")
        hub.served[WEIGHTS] = weights[:CUT_AT]
        await wait_corrupt(kube, "lied", "ends before it should")
        await check_nothing_served(kube, "lied")
        hub.served.clear()
        mended = time.monotonic()
        await beside(kube.wait_ready, "lied")
        figure("a hub was mended: until Ready", f"{time.monotonic() - mended:.1f} s")
        await check_answers(kube, "lied", demo_door)


async def wait_corrupt(kube: k.Kube, name: str, words: str) -> None:
    """ModelReady and Ready say so, with these words and the file's name."""
    await beside(
        k.wait_until,
        lambda: kube.conditions(name),
        lambda conditions: (
            all(
                conditions.get(kind, {}).get("status") == "False"
                and all(word in conditions[kind]["message"] for word in (WEIGHTS, words))
                for kind in ("ModelReady", "Ready")
            )
            and conditions["ModelReady"]["reason"] == "ModelCorrupt"
        ),
        seconds=TOLD_SECONDS,
        what=f"{name} says {words!r} of {WEIGHTS}",
    )


async def check_nothing_served(kube: k.Kube, name: str) -> None:
    assert kube.find("deployment", f"{name}-worker") is None
    with reach(kube, name) as door:
        outcome = await ask_once(door, PROMPTS[0], seconds=2)
    assert (outcome.is_ok, outcome.token_ids) == (False, ()), outcome
