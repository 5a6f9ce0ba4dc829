"""A worker that does not read the checkpoint's experts itself pulls them from a real loader, byte for byte."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import save_with_tokenizer
from support.workers import running_worker, stub_of

from emoe.core.experts import from_grid
from emoe.loader.main import serving
from emoe.loader.settings import LoaderSettings
from emoe.runtime.grids import ModelId
from emoe.store.store import ExpertStore
from emoe.v1 import generation_pb2 as pb
from emoe.worker.loader_source import LoaderSource

WAIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_tokenizer("qwen3_moe", tmp_path_factory.mktemp("model"))


async def tokens(channel: Any) -> list[int]:
    request = pb.GenerateRequest(text="where do bytes come from", sampling=pb.Sampling(max_tokens=12))
    return [t async for piece in stub_of(channel).Generate(request, timeout=WAIT_SECONDS) for t in piece.token_ids]


async def test_every_expert_pulled_equals_the_one_in_the_file(folder: Path) -> None:
    async with serving(LoaderSettings(model=folder, drain_seconds=0)) as loader:
        with ExpertStore.open(folder) as store:
            source = LoaderSource(loader.address, ModelId(digest=store.digest, family=store.family))
            for expert in from_grid(store.grid.all_experts()):
                buffer = bytearray(store.layout.num_bytes)
                await asyncio.to_thread(source.read_into, expert, memoryview(buffer))
                assert bytes(buffer) == store.read(expert)
            source.close()


async def test_exact_answers_are_the_same_from_files_and_from_the_loader(folder: Path, tmp_path: Path) -> None:
    settings = {"miss_policy": "load", "expert_memory": "25%"}
    async with running_worker(folder, tmp_path, **settings) as channel:
        expected = await tokens(channel)
    (tmp_path / "pulling").mkdir()
    async with (
        serving(LoaderSettings(model=folder, drain_seconds=0)) as loader,
        running_worker(
            folder, tmp_path / "pulling", **settings, expert_source="loader", loader=loader.address
        ) as channel,
    ):
        assert await tokens(channel) == expected


async def test_a_plan_reaches_the_worker_and_its_residents_reach_the_loader(folder: Path, tmp_path: Path) -> None:
    from emoe.runtime.channels import open_channel
    from emoe.v1 import loader_pb2, loader_pb2_grpc

    async with (
        serving(LoaderSettings(model=folder, drain_seconds=0)) as loader,
        running_worker(folder, tmp_path, expert_memory="60%", loader=loader.address, heartbeat_seconds=0.05),
        open_channel(loader.address) as channel,
    ):
        watch = loader_pb2_grpc.LoaderServiceStub(channel).WatchWorkers(loader_pb2.WatchWorkersRequest())
        async with asyncio.timeout(WAIT_SECONDS):
            async for update in watch:
                if update.workers and update.workers[0].applied_epoch > 0:
                    break
        assert update.workers[0].num_slots == 12
        watch.cancel()
