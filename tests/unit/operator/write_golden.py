"""Writes golden/NAME.yaml from golden/NAME.moed.yaml: run it after a change of renderings, and read the difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from operator_cases import GOLDEN, observed, resource, settings

from emoe_operator.desired import Desired
from emoe_operator.plan import plan_children

SETTINGS = settings(
    image_pull_secrets=("registry",),
    pod_env={"HTTPS_PROXY": "http://proxy:3128"},
    ca_bundle="certificates",
)


def plan_golden(path: Path) -> Desired:
    spec: dict[str, Any] = yaml.safe_load(path.read_text())["spec"]
    plain = path.name.startswith("minimal")
    return plan_children(resource(spec), observed(), settings() if plain else SETTINGS)


def resource_paths() -> list[Path]:
    return sorted(GOLDEN.glob("*.moed.yaml"))


def children_path(path: Path) -> Path:
    return path.with_name(path.name.replace(".moed.yaml", ".yaml"))


if __name__ == "__main__":
    for path in resource_paths():
        text = yaml.safe_dump_all(plan_golden(path).children, sort_keys=False, explicit_start=True)
        children_path(path).write_text(text)
