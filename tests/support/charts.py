"""The chart as helm renders it. Tests that need helm are skipped by name where there is none."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "emoe"
EXAMPLES = ROOT / "charts" / "examples"
RELEASE = "emoe"
NAMESPACE = "emoe-system"
KUBE_VERSION = "1.34.0"
HELM_SECONDS = 30.0

Manifest = dict[str, Any]


class HelmError(Exception):
    """helm's own words."""


@functools.cache
def find_helm() -> str | None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folders = (os.environ.get("EMOE_KUBE_BIN"), str(cache / "emoe" / "testbed" / "bin"), os.environ.get("PATH"))
    return next((found for folder in folders if folder and (found := shutil.which("helm", path=folder))), None)


def require_helm() -> str:
    """Skips the test where there is none."""
    return find_helm() or pytest.skip("helm is in none of $EMOE_KUBE_BIN, ~/.cache/emoe/testbed/bin and PATH")


def run_helm(*arguments: str) -> str:
    """helm's output; HelmError if it refuses. Never meets a cluster."""
    helm = require_helm()
    environment = {**os.environ, "KUBECONFIG": os.devnull}
    done = subprocess.run(
        [helm, *arguments], env=environment, capture_output=True, text=True, timeout=HELM_SECONDS, check=False
    )
    if done.returncode:
        raise HelmError(done.stderr)
    return done.stdout


def render_text(values: Mapping[str, Any] | None = None, *, release: str = RELEASE, crd: bool = False) -> str:
    """All manifests, the test hook's too. Without the CRD, which is large and made elsewhere."""
    return _render(json.dumps({**(values or {}), "crds": {"install": crd}}), release)


@functools.cache
def _render(values: str, release: str) -> str:
    options = (f"--set-json={name}={json.dumps(value)}" for name, value in json.loads(values).items())
    where = (f"--namespace={NAMESPACE}", f"--kube-version={KUBE_VERSION}")
    return run_helm("template", release, str(CHART), *where, *options)


def render(values: Mapping[str, Any] | None = None, *, release: str = RELEASE, crd: bool = False) -> list[Manifest]:
    return parse_manifests(render_text(values, release=release, crd=crd))


def parse_manifests(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(manifests: Iterable[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def one(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [manifest for manifest in of_kind(manifests, kind) if manifest["metadata"]["name"] == name]
    return found


def pod_of(manifest: Manifest) -> Manifest:
    """The pod's spec of a Pod or of what has a pod template."""
    spec: Manifest = manifest["spec"]
    return spec["template"]["spec"] if "template" in spec else spec


def to_json(values: Mapping[str, Any]) -> str:
    """As a values file: JSON is YAML."""
    return json.dumps(values)


def chart_version() -> dict[str, str]:
    found: dict[str, str] = yaml.safe_load((CHART / "Chart.yaml").read_text())
    return found


def distribution_version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
