"""Tests on a real Kubernetes; `tests/cluster/run` (`make test-cluster`) brings one, sets EMOE_CLUSTER and EMOE_IMAGES.

Without EMOE_CLUSTER everything here is deselected, so that `make test` needs no cluster. Each module has a namespace of
its own, in which Kubernetes itself enforces the restricted pod security standard.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from evidence import describe_namespace, describe_operator
from kube import Kube, run
from release import Release

HERE = Path(__file__).parent
TEST_SECONDS = 420
OURS = "emoe.dev/test=true"
"""On every namespace of a test, so that what a run that was killed left is removed by the next."""
FIGURES = pytest.StashKey[dict[str, str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(HERE) and item.get_closest_marker("cluster")]
    if "EMOE_CLUSTER" not in os.environ:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in set(ours)]
        return
    for item in ours:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failure shows what stood in the cluster when it happened."""
    report = yield
    arguments = getattr(item, "funcargs", {})
    if report.failed and call.when != "teardown" and item.get_closest_marker("cluster"):
        if isinstance(arguments.get("kube"), Kube):
            report.sections.append(("namespace", describe_namespace(arguments["kube"])))
        report.sections.append(("operator", describe_operator(Release())))
    return report


@pytest.fixture(scope="session")
def release() -> Release:
    """The chart, installed once; what a test does to it, it undoes."""
    installed = Release()
    run("kubectl", "delete", "namespace", f"--selector={OURS}", "--wait", "--timeout=150s", seconds=160)
    installed.drop_if_interrupted()
    installed.install()
    return installed


@pytest.fixture(scope="session")
def figure(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """(what, how much): printed under the results."""
    figures = request.config.stash.setdefault(FIGURES, {})
    return lambda what, how_much: figures.update({what: how_much})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(FIGURES, {})
    if figures:
        terminalreporter.section("figures")
    for what, how_much in sorted(figures.items()):
        terminalreporter.write_line(f"{what}: {how_much}")


def make_namespace(name: str, *, security: str = "restricted") -> Kube:
    kube = Kube(name)
    run("kubectl", "delete", "namespace", name, "--ignore-not-found", "--wait", "--timeout=150s", seconds=160)
    labels = {**dict([OURS.split("=")]), "pod-security.kubernetes.io/enforce": security}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    return kube


def remove_namespace(kube: Kube) -> None:
    kube.delete("moed", "--all", "--wait=false")
    run("kubectl", "delete", "namespace", kube.namespace, "--wait", "--timeout=150s", seconds=160)


@pytest.fixture(scope="module")
def kube(request: pytest.FixtureRequest, release: Release) -> Iterator[Kube]:
    """A namespace for the module, gone with all in it when the module is done; KEEP keeps one that had failures."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(request.module.__file__).stem.removeprefix("test_"))
    num_failed = request.session.testsfailed
    kube = make_namespace(name)
    yield kube
    if not (os.environ.get("KEEP") and request.session.testsfailed > num_failed):
        remove_namespace(kube)
