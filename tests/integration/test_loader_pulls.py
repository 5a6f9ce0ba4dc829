"""What a real loader serves of its model: the description, and experts that are pulled, whole or refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from loader_clients import client, code_of, loader, running
from loader_models import ALL_EXPERTS, NUM_EXPERTS, NUM_LAYERS
from loader_source import TIMEOUT_SECONDS

from emoe.core.experts import ExpertId
from emoe.loader import streams
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import expert_to_proto, grid_to_proto
from emoe.store.store import ExpertStore, xxh3_64
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc as rpc
from emoe.v1 import residency_pb2


async def test_it_is_ready_once_the_checkpoint_is_open(own_model: Path) -> None:
    async with running(own_model) as host, open_channel(host.health_address) as channel:
        request = health_pb2.HealthCheckRequest(service="emoe.v1.LoaderService")
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_model_is_described_as_the_store_sees_it(own_model: Path) -> None:
    async with loader(own_model) as (_, model):
        with ExpertStore.open(own_model) as store:
            assert model.model == residency_pb2.ModelId(digest=store.digest, family="qwen2_moe")
            assert model.grid == grid_to_proto(store.grid)
            assert model.path == str(own_model)


async def pull(
    stub: rpc.LoaderServiceAsyncStub, model: residency_pb2.ModelId, experts: Iterable[ExpertId]
) -> list[pb.PullExpertsResponse]:
    request = pb.PullExpertsRequest(model=model, experts=[expert_to_proto(expert) for expert in experts])
    return [message async for message in stub.PullExperts(request, timeout=TIMEOUT_SECONDS)]


def assemble(messages: Iterable[pb.PullExpertsResponse]) -> list[tuple[ExpertId, bytes]]:
    """What a client makes of the stream, checking as it goes."""
    experts: list[tuple[ExpertId, bytes]] = []
    data = b""
    for message in messages:
        assert message.offset == len(data)
        data += message.data
        if message.last:
            assert xxh3_64(data) == message.xxh3
            experts.append((ExpertId(message.expert.layer, message.expert.index), data))
            data = b""
    assert not data
    return experts


async def test_pulled_experts_are_the_stores_bytes_in_the_order_asked_for(own_model: Path) -> None:
    experts = [ExpertId(1, 7), ExpertId(0, 0), ExpertId(1, 7), *ALL_EXPERTS]
    async with loader(own_model) as (stub, model):
        messages = await pull(stub, model.model, experts[: len(ALL_EXPERTS)])
    assert max(len(message.data) for message in messages) == 1 << 20, "experts take more than one message"
    with ExpertStore.open(own_model) as store:
        assert assemble(messages) == [(expert, store.read(expert)) for expert in experts[: len(ALL_EXPERTS)]]


async def test_many_clients_pull_at_once_within_a_narrow_bound(own_model: Path) -> None:
    async with loader(own_model, max_pulled_bytes=1) as (stub, model):
        pulls = (pull(stub, model.model, ALL_EXPERTS) for _ in range(4))
        first, *others = [assemble(messages) for messages in await asyncio.gather(*pulls)]
    assert [expert for expert, _ in first] == ALL_EXPERTS
    assert others == [first] * 3


async def test_no_experts_are_an_empty_stream(own_model: Path) -> None:
    async with loader(own_model) as (stub, model):
        assert await pull(stub, model.model, []) == []


@pytest.mark.parametrize(
    ("digest", "experts", "code"),
    [
        ("other", [ExpertId(0, 0)], grpc.StatusCode.FAILED_PRECONDITION),
        ("", [ExpertId(0, 0)], grpc.StatusCode.INVALID_ARGUMENT),
        (None, [ExpertId(0, NUM_EXPERTS)], grpc.StatusCode.INVALID_ARGUMENT),
        (None, [ExpertId(NUM_LAYERS, 0)], grpc.StatusCode.INVALID_ARGUMENT),
        (None, [ExpertId(0, 0)] * 1000, grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=["another model", "no model", "no such expert", "no such layer", "more experts than there are"],
)
async def test_a_bad_pull_is_refused(
    own_model: Path, digest: str | None, experts: list[ExpertId], code: grpc.StatusCode
) -> None:
    async with loader(own_model) as (stub, model):
        wanted = model.model if digest is None else residency_pb2.ModelId(digest=digest)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pull(stub, wanted, experts)
    assert caught.value.code() is code


async def test_a_corrupt_expert_is_named_and_the_others_are_still_served(own_model: Path) -> None:
    bad, good = ExpertId(1, 2), ExpertId(1, 3)
    with ExpertStore.open(own_model) as store:
        expected = {expert: store.read(expert) for expert in ALL_EXPERTS}
    damage(own_model / "model.safetensors", expected[bad][-64:])
    async with loader(own_model) as (stub, model):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pull(stub, model.model, [bad])
        assert assemble(await pull(stub, model.model, [good])) == [(good, expected[good])]
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert "model.safetensors" in (caught.value.details() or "")
    assert "layers.1." in (caught.value.details() or "")


async def test_a_file_cut_short_while_serving_is_data_loss_for_its_experts_alone(own_model: Path) -> None:
    async with loader(own_model) as (stub, model):
        file = own_model / "model.safetensors"
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size // 2)
        codes = {await pulled_code(stub, model, expert) for expert in ALL_EXPERTS}
        assert codes == {grpc.StatusCode.OK, grpc.StatusCode.DATA_LOSS}


async def test_a_client_that_leaves_or_stops_reading_does_not_hold_up_others(
    own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "WRITE_SECONDS", 0.2)
    async with running(own_model, max_pulled_bytes=1) as host, client(host.address) as (stub, model):
        request = pb.PullExpertsRequest(model=model.model, experts=[expert_to_proto(expert) for expert in ALL_EXPERTS])
        async with client(host.address) as (other, _):
            stuck: Any = other.PullExperts(request)
            await stuck.read()
            gone: Any = other.PullExperts(request)
            await gone.read()
            gone.cancel()
            assert len(assemble(await pull(stub, model.model, ALL_EXPERTS))) == len(ALL_EXPERTS)


async def pulled_code(
    stub: rpc.LoaderServiceAsyncStub, model: pb.GetModelResponse, expert: ExpertId
) -> grpc.StatusCode:
    request = pb.PullExpertsRequest(model=model.model, experts=[expert_to_proto(expert)])
    call: Any = stub.PullExperts(request, timeout=TIMEOUT_SECONDS)
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    return await code_of(call)


def damage(file: Path, needle: bytes) -> None:
    """One bit of one expert, where its last bytes lie."""
    content = bytearray(file.read_bytes())
    content[content.index(needle)] ^= 1
    file.write_bytes(content)
