"""The chart as a platform engineer installs it: one release, the images of this run, and the operator's pods.

Also what an older version of the chart may have been, for upgrades.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import kube as k

CHART = Path(__file__).resolve().parents[2] / "charts" / "emoe"
SYSTEM_NAMESPACE = "emoe-system"
OPERATOR_SELECTOR = "app.kubernetes.io/component=operator,app.kubernetes.io/part-of=emoe"
INSTALL_SECONDS = 300.0


def image_options(images: str) -> list[str]:
    """helm's options for PREFIX:TAG; the part of PREFIX before its first slash is the registry."""
    prefix, _, tag = images.rpartition(":")
    registry, _, path = prefix.partition("/")
    options: list[str] = []
    for name in ("operator", "control", "worker"):
        image = f"image.{name}"
        options += [f"--set={image}.registry={registry}", f"--set={image}.repository={path}/{name}"]
        options += [f"--set-string={image}.tag={tag}"]
    return options


def package_older(folder: Path, *, version: str, without_column: str) -> Path:
    """The chart as a package of an older version, whose type has a printer column less."""
    chart = folder / CHART.name
    shutil.copytree(CHART, chart)
    crd = chart / "templates" / "crd.yaml"
    older, num_cut = re.subn(rf"^    - name: {without_column}\n(      .*\n)+", "", crd.read_text(), flags=re.MULTILINE)
    assert num_cut == 1, f"the type has no column {without_column}"
    crd.write_text(older)
    versions = (f"--version={version}", f"--app-version={version}")
    k.run("helm", "package", str(chart), *versions, f"--destination={folder}")
    return folder / f"{CHART.name}-{version}.tgz"


@dataclasses.dataclass(frozen=True)
class Release:
    """`options` are helm's, beside those that name the images; `chart` is a folder or a package."""

    name: str = "emoe"
    chart: Path = CHART
    options: tuple[str, ...] = ()

    @property
    def system(self) -> k.Kube:
        return k.Kube(SYSTEM_NAMESPACE)

    def install(self, *options: str) -> None:
        """Installs or upgrades; returns when the operator is ready."""
        k.run(
            *("helm", "upgrade", "--install", self.name, str(self.chart), f"--namespace={SYSTEM_NAMESPACE}"),
            *("--create-namespace", "--wait", f"--timeout={INSTALL_SECONDS:.0f}s"),
            *image_options(os.environ["EMOE_IMAGES"]),
            *self.options,
            *options,
            seconds=INSTALL_SECONDS + 30,
        )

    def drop_if_interrupted(self) -> None:
        """A run that was killed while helm worked leaves a release that helm will not touch again."""
        namespace = f"--namespace={SYSTEM_NAMESPACE}"
        if self.name in k.run("helm", "list", "--pending", "--short", namespace).split():
            self.uninstall()

    def uninstall(self) -> str:
        return k.run(
            *("helm", "uninstall", self.name, f"--namespace={SYSTEM_NAMESPACE}", "--wait", "--timeout=120s"),
            seconds=150,
        )

    def history(self) -> list[tuple[int, str, str]]:
        """Revision, status and chart of each."""
        told = k.run("helm", "history", self.name, f"--namespace={SYSTEM_NAMESPACE}", "--output=json")
        return [(one["revision"], one["status"], one["chart"]) for one in json.loads(told)]

    def operator_pods(self) -> list[k.Body]:
        pods = self.system.select("pods", OPERATOR_SELECTOR)
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def scale_operator(self, num: int) -> None:
        """Waits until so many operators are ready and no other is left."""
        deployment = k.name_of(self.system.select("deployments", OPERATOR_SELECTOR)[0])
        self.system.kubectl("scale", f"deployment/{deployment}", f"--replicas={num}")
        k.wait_until(
            lambda: self.system.select("pods", OPERATOR_SELECTOR),
            lambda pods: len(pods) == num and all(k.is_pod_ready(pod) for pod in pods),
            seconds=90,
            what=f"{num} operators",
        )
