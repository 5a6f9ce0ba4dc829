"""A worker without a model of its own starts from its loader's: reads the same files, or makes them again without the
experts."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import xxhash
from support.base_tensors import read_base_tensor
from support.checkpoints import save_with_tokenizer
from support.workers import running_worker, stub_of

from emoe.core.errors import CheckpointError, InvalidRequestError, NotReadyError
from emoe.core.experts import from_grid
from emoe.loader.base_files import BaseFiles
from emoe.loader.main import serving
from emoe.loader.opened import OpenModel
from emoe.loader.settings import LoaderSettings
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import ModelId
from emoe.store.published import BASE_ONLY_MARKER, list_files
from emoe.store.store import ExpertStore
from emoe.v1 import generation_pb2 as pb
from emoe.v1 import loader_pb2, loader_pb2_grpc
from emoe.worker.base_files import recreate
from emoe.worker.checkpoint import open_checkpoint
from emoe.worker.loader_source import LoaderSource
from emoe.worker.settings import WorkerSettings

WAIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In shards, so that some hold experts alone."""
    return save_with_tokenizer("qwen3_moe", tmp_path_factory.mktemp("model"), max_shard_size="100KB")


def loader(folder: Path, **settings: Any) -> Any:
    return serving(LoaderSettings(model=folder, drain_seconds=0, **settings))


async def tokens(channel: Any) -> list[int]:
    request = pb.GenerateRequest(text="where do bytes come from", sampling=pb.Sampling(max_tokens=12))
    return [t async for piece in stub_of(channel).Generate(request, timeout=WAIT_SECONDS) for t in piece.token_ids]


async def recreated(folder: Path, target: Path) -> None:
    with ExpertStore.open(folder) as store:
        model = ModelId(digest=store.digest, family=store.family)
    async with loader(folder) as host, open_channel(host.address) as channel:
        await recreate(loader_pb2_grpc.LoaderServiceStub(channel), model, target)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


async def test_files_are_made_again_with_every_base_tensor_and_no_expert(folder: Path, tmp_path: Path) -> None:
    await recreated(folder, tmp_path)

    with ExpertStore.open(folder) as store, ExpertStore.open(tmp_path) as copy:
        assert copy.digest == store.digest
        assert all(read_base_tensor(copy, key) == read_base_tensor(store, key) for key in store.base_tensors)
        experts = list(from_grid(store.grid.all_experts()))
        assert not any(any(copy.read(expert)) for expert in experts)
        names = {file.name for file in list_files(store)}
    assert names_in(tmp_path) >= names
    small = [name for name in names if not name.endswith(".safetensors")]
    assert "tokenizer.json" in small
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in small)


async def test_files_that_are_here_are_not_fetched_again(folder: Path, tmp_path: Path) -> None:
    await recreated(folder, tmp_path)
    before = times(tmp_path)
    cut = min(before)
    (tmp_path / cut).write_bytes(b"cut short")

    await recreated(folder, tmp_path)

    after = times(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {cut}
    with ExpertStore.open(folder) as store, ExpertStore.open(tmp_path) as copy:
        assert copy.digest == store.digest


async def test_a_worker_without_a_model_reads_the_loaders_folder_where_it_sees_it(folder: Path, tmp_path: Path) -> None:
    async with (
        loader(folder) as host,
        running_worker(
            None, tmp_path, miss_policy="load", expert_memory="25%", loader=host.address, cache_dir=tmp_path / "cache"
        ) as channel,
    ):
        assert len(await tokens(channel)) == 12
    assert not (tmp_path / "cache" / "base").exists()


async def test_answers_are_the_same_when_the_loader_sends_all_of_the_model(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"miss_policy": "load", "expert_memory": "25%"}
    async with running_worker(folder, tmp_path, **settings) as channel:
        expected = await tokens(channel)
    (tmp_path / "w").mkdir()
    async with (
        loader(folder) as host,
        running_worker(
            None, tmp_path / "w", **settings, expert_source="loader", loader=host.address, cache_dir=tmp_path / "cache"
        ) as channel,
    ):
        assert await tokens(channel) == expected
    assert len(names_in(tmp_path / "cache" / "base")) == 1


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What a loader on another machine calls its folder; here nothing or something else is there."""
    path = tmp_path / "elsewhere"
    original = OpenModel.of

    def of(store: ExpertStore, reads: Any) -> OpenModel:
        return dataclasses.replace(original(store, reads), path=str(path))

    monkeypatch.setattr(OpenModel, "of", of)
    return path


@pytest.mark.parametrize("there", ["nothing", "another model", "half a model", "base files alone"])
async def test_a_folder_that_is_not_the_loaders_is_not_read(
    folder: Path, elsewhere: Path, tmp_path: Path, there: str
) -> None:
    if there == "another model":
        save_with_tokenizer("mixtral", elsewhere)
    elif there == "half a model":
        shutil.copytree(folder, elsewhere, ignore=shutil.ignore_patterns("model-00002*"))
    elif there == "base files alone":
        await recreated(folder, elsewhere)
    async with loader(folder) as host:
        settings = WorkerSettings(loader=host.address, cache_dir=tmp_path / "cache")
        store, source = await open_checkpoint(settings)
        expert = next(from_grid(store.grid.all_experts()))
        buffer = bytearray(store.layout.num_bytes)
        await asyncio.to_thread(source.read_into, expert, memoryview(buffer))
        source.close()
        store.close()

    assert store.folder.parent == tmp_path / "cache" / "base"
    with ExpertStore.open(folder) as whole:
        assert bytes(buffer) == whole.read(expert)


async def test_a_worker_that_may_only_read_files_says_that_they_are_not_here(
    folder: Path, elsewhere: Path, tmp_path: Path
) -> None:
    async with loader(folder) as host:
        with pytest.raises(CheckpointError, match="not here; mount them"):
            await open_checkpoint(WorkerSettings(loader=host.address, cache_dir=tmp_path, expert_source="local"))


async def test_a_worker_waits_for_a_loader_that_comes_later(folder: Path, tmp_path: Path) -> None:
    async with loader(folder) as host:
        address = host.address
    opening = asyncio.create_task(open_checkpoint(WorkerSettings(loader=address, cache_dir=tmp_path)))
    async with loader(folder, listen=address), asyncio.timeout(WAIT_SECONDS):
        store, source = await opening
    assert store.folder == folder
    source.close()


async def test_a_worker_gives_up_when_no_loader_comes(tmp_path: Path) -> None:
    settings = WorkerSettings(loader=f"unix:{tmp_path}/nobody", start_timeout_seconds=0.2)
    with pytest.raises(NotReadyError, match=r"no model within 0\.2 s"):
        await open_checkpoint(settings)


async def test_a_folder_without_experts_is_never_a_source_of_them(folder: Path, tmp_path: Path) -> None:
    await recreated(folder, tmp_path)
    with pytest.raises(ValueError, match="no loader is given"):
        await open_checkpoint(WorkerSettings(model=tmp_path))
    _, source = await open_checkpoint(WorkerSettings(model=tmp_path, loader="127.0.0.1:1"))
    assert isinstance(source, LoaderSource)
    source.close()


def test_a_worker_without_model_and_loader_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a loader"):
        WorkerSettings()


class LyingLoader(loader_pb2_grpc.LoaderServiceServicer):
    """One file, sent by script: each read takes the next answer."""

    def __init__(self, *answers: list[loader_pb2.ReadFileResponse], name: str = "config.json") -> None:
        self.answers = list(answers)
        self.name = name

    async def ListFiles(self, request: Any, context: Any) -> loader_pb2.ListFilesResponse:
        base = [loader_pb2.ByteRange(offset=0, num_bytes=2)]
        return loader_pb2.ListFilesResponse(files=[loader_pb2.CheckpointFile(name=self.name, num_bytes=2, base=base)])

    async def ReadFile(self, request: Any, context: Any) -> AsyncIterator[loader_pb2.ReadFileResponse]:
        for piece in self.answers.pop(0):
            yield piece


def sent(data: bytes, *, offset: int = 0, claimed: bytes | None = None) -> list[loader_pb2.ReadFileResponse]:
    checksum = xxhash.xxh3_64_intdigest(data if claimed is None else claimed)
    return [
        loader_pb2.ReadFileResponse(offset=offset, data=data),
        loader_pb2.ReadFileResponse(offset=2, last=True, xxh3=checksum),
    ]


async def told(lying: LyingLoader, target: Path) -> None:
    server = grpc.aio.server()
    loader_pb2_grpc.add_LoaderServiceServicer_to_server(lying, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(WAIT_SECONDS):
            await recreate(loader_pb2_grpc.LoaderServiceStub(channel), ModelId(digest="d", family="f"), target)
    finally:
        await server.stop(None)


async def test_a_file_that_arrives_damaged_is_sent_again(tmp_path: Path) -> None:
    await told(LyingLoader(sent(b"[]", claimed=b"{}"), sent(b"{}")[:1], sent(b"{}")), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("lying", "says"),
    [
        pytest.param(LyingLoader(*[sent(b"[]", claimed=b"{}")] * 3), "damaged 3 times", id="checksum"),
        pytest.param(LyingLoader(*[sent(b"{")] * 3), "damaged 3 times", id="short"),
        pytest.param(LyingLoader(sent(b"{}", offset=1)), "out of its place", id="beyond-the-end"),
        pytest.param(LyingLoader(name="../config.json"), "no file of a checkpoint", id="leads-out"),
    ],
)
async def test_what_cannot_be_is_refused_and_leaves_no_file(tmp_path: Path, lying: LyingLoader, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        await told(lying, tmp_path / "base")
    assert names_in(tmp_path / "base") == {BASE_ONLY_MARKER}


async def test_a_file_that_the_loader_does_not_list_is_not_sent(folder: Path) -> None:
    with ExpertStore.open(folder) as store, pytest.raises(InvalidRequestError, match="no file of this checkpoint"):
        await anext(BaseFiles.of(store).read("../secret"))
