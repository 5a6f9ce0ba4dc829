"""What tests of this folder share: one API server for all that need a real one, who skip, by name, where there are no
binaries for it; and the model that loaders serve and fetch, written once."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import loader_models
import pytest
import pytest_asyncio
from support.apiserver import ApiServer, find_binaries, running_apiserver
from support.kube_objects import CRDS, NAMESPACES, KubeObjects, open_kube_client, until
from support.model_places import PLACES, Place

from emoe.api.crd import build_crd


@pytest.fixture(scope="session")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    binaries = find_binaries()
    if isinstance(binaries, str):
        pytest.skip(binaries)
    with running_apiserver(tmp_path_factory.mktemp("apiserver"), binaries) as server:
        asyncio.run(_install_crd(server))
        yield server


@pytest_asyncio.fixture
async def kube(apiserver: ApiServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KubeObjects]:
    """In a namespace of the test's own; KUBECONFIG is set."""
    monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig))
    async with open_kube_client(apiserver.kubeconfig) as client:
        objects = KubeObjects(client, f"test-{uuid.uuid4().hex[:8]}")
        await objects.create(NAMESPACES, {"metadata": {"name": objects.namespace}})
        yield objects


async def _install_crd(server: ApiServer) -> None:
    async with open_kube_client(server.kubeconfig) as client:
        objects = KubeObjects(client, "default")
        crd = build_crd()
        await objects.create(CRDS, crd)

        async def established() -> bool:
            body = await objects.get(CRDS, crd["metadata"]["name"])
            found = (body or {}).get("status", {}).get("conditions") or ()
            return any(one["type"] == "Established" and one["status"] == "True" for one in found)

        await until(established)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loader_models.save(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def own_model(pristine: Path, tmp_path: Path) -> Path:
    """A copy of one's own, to damage at will."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loader_models.publish(tmp_path_factory.mktemp("published"))


@pytest.fixture(params=[pytest.param(name, id=name) for name in PLACES])
async def place(
    request: pytest.FixtureRequest, published: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    async with PLACES[request.param](published, monkeypatch) as place:
        yield place
