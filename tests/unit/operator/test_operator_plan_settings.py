"""What the pods are told is what their services understand: a variable that is none of theirs would end them."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import yaml
from operator_cases import COMPONENTS, environment
from write_golden import plan_golden, resource_paths

from emoe.runtime.settings import ServiceSettings


def settings_class(component: str) -> type[ServiceSettings]:
    module = importlib.import_module(f"emoe.{component}.settings")
    found = getattr(module, f"{component.capitalize()}Settings")
    assert issubclass(found, ServiceSettings)
    return found


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("path", resource_paths(), ids=lambda path: path.name.split(".")[0])
def test_a_service_understands_what_its_pod_is_told(path: Any, component: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = environment(plan_golden(path), component)
    prefix = f"EMOE_{component.upper()}_"
    assert [name for name in told if name.startswith("EMOE_") and not name.startswith(prefix)] == []
    for name, value in told.items():
        if name.startswith(prefix):
            monkeypatch.setenv(name, value if isinstance(value, str) else "main")
    known = settings_class(component)
    fields = {f"{prefix}{name.upper()}" for name in known.model_fields}
    assert {name for name in told if name.startswith(prefix)} <= fields
    known()


def test_an_experts_memory_is_told_in_bytes_that_a_worker_reads_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    from emoe.core.memory import parse_memory

    path = next(one for one in resource_paths() if one.name.startswith("everything"))
    told = environment(plan_golden(path), "worker")["EMOE_WORKER_EXPERT_MEMORY"]
    asked = yaml.safe_load(path.read_text())["spec"]["experts"]["memory"]
    assert asked == "40Mi"
    assert parse_memory(told, total_bytes=1) == 40 * 2**20
