"""Runs a Tiltfile without Tilt: its built-ins only note what they were asked, but those that read or render do so.

What Tilt itself would do with the notes is not imitated.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import starlark as sl
import yaml

from support import charts

Call = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """Calls by the built-in's name, in their order, arguments by name."""

    calls: dict[str, list[Call]]
    manifests: list[charts.Manifest]
    """All that was given to k8s_yaml."""


_PARAMETERS: dict[str, tuple[str, ...]] = {
    "docker_build": ("ref", "context"),
    "k8s_resource": ("workload",),
    "k8s_kind": ("kind",),
    "local_resource": ("name", "cmd"),
    "sync": ("local_path", "remote_path"),
    "run": ("cmd", "trigger"),
    "fall_back_on": ("files",),
    "helm": ("path",),
}
"""Names of the arguments that may be given by place."""


def run_tiltfile(path: Path) -> Recording:
    """Starlark as Tilt has it: without types, without strings with a leading f."""
    recorder = _Recorder(path.parent)
    dialect = sl.Dialect.extended()
    dialect.enable_f_strings = False
    dialect.enable_types = sl.DialectTypes.DISABLE
    module = sl.Module()
    for name, function in recorder.builtins().items():
        module.add_callable(name, function)
    module["TRIGGER_MODE_MANUAL"] = "manual"
    sl.eval(module, sl.parse(path.name, path.read_text(), dialect), sl.Globals.standard())
    return Recording(calls=recorder.calls, manifests=recorder.manifests)


class _Recorder:
    def __init__(self, root: Path) -> None:
        self.calls: dict[str, list[Call]] = {name: [] for name in _PARAMETERS}
        self.manifests: list[charts.Manifest] = []
        self._root = root

    def builtins(self) -> dict[str, Any]:
        noted = {name: self._noting(name) for name in _PARAMETERS}
        return {
            **noted,
            "helm": self._helm,
            "k8s_yaml": self._k8s_yaml,
            "read_yaml": lambda path: yaml.safe_load((self._root / path).read_text()),
            "decode_yaml_stream": lambda text: list(yaml.safe_load_all(text)),
            "encode_yaml_stream": yaml.safe_dump_all,
        }

    def _noting(self, name: str) -> Any:
        def note(*args: Any, **kwargs: Any) -> Call:
            call = {**dict(zip(_PARAMETERS[name], args, strict=False)), **kwargs}
            self.calls[name].append(call)
            return {"builtin": name, **call}

        return note

    def _helm(self, path: str, name: str = "chart", namespace: str = "") -> str:
        self.calls["helm"].append({"path": path, "name": name, "namespace": namespace})
        return charts.run_helm("template", name, str(self._root / path), f"--namespace={namespace}")

    def _k8s_yaml(self, text: str) -> None:
        self.manifests.extend(charts.parse_manifests(text))
