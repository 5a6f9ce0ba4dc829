"""Who takes part in `emoe bench engine`: which process each runs in, how it is started, and whether it can be.

Peers that emoe does not depend on run in environments of their own (`peers.places`); a missing one is named with what
to run, never guessed at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from emoe.bench.failures import BenchmarkError
from emoe.bench.peers.places import Places

OURS, THEIRS, LLAMA, AIRLLM = "emoe", "transformers", "llama.cpp", "airllm"
PEERS = ("eager", "grouped_mm", "disk", LLAMA, AIRLLM)
POLICIES = ("load", "reroute")
AIRLLM_TOKENS = 3
"""It reads the whole model again for every token."""
INTERPRETER_BYTES = 500_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """`files`: what its first turn may read, dropped from the page cache before. `likely_bytes`: of its memory."""

    engine: str
    mode: str
    budget_ratio: float | None
    module: str
    options: Mapping[str, object]
    files: tuple[Path, ...]
    likely_bytes: int
    python: str | None = None
    environment: Mapping[str, str] | None = None
    max_batch: int | None = None
    max_new_tokens: int | None = None

    @property
    def name(self) -> str:
        share = "" if self.budget_ratio is None else f" at {self.budget_ratio:.1%}"
        return f"{self.engine} {self.mode}{share}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A checkpoint, and the folder that takes what peers make of it."""

    folder: Path
    work: Path
    base_bytes: int
    expert_bytes: int


def build_ours(model: Model, budgets: Sequence[float], policies: Sequence[str]) -> list[Contestant]:
    return [
        Contestant(
            engine=OURS,
            mode=policy,
            budget_ratio=budget,
            module="emoe.bench.contestant_child",
            options={"kind": OURS, "expert_memory": f"{budget * 100:g}%", "miss_policy": policy},
            files=_weights(model.folder),
            likely_bytes=INTERPRETER_BYTES + model.base_bytes + int(budget * model.expert_bytes),
        )
        for policy in policies
        for budget in budgets
    ]


def build_peers(model: Model, peers: Sequence[str], places: Places) -> tuple[list[Contestant], list[str]]:
    """Those that can be measured, and a line for each that cannot. The in-memory ones, which keep the checkpoint's
    pages mapped, come last."""
    builders = {"disk": _disk, LLAMA: _llama, AIRLLM: _airllm}
    built: list[Contestant] = []
    notes: list[str] = []
    for name in sorted(peers, key=lambda name: name in {"eager", "grouped_mm"}):
        try:
            built.append(builders[name](model, places) if name in builders else _in_memory(model, name))
        except BenchmarkError as error:
            notes.append(str(error))
    return built, notes


def _in_memory(model: Model, function: str) -> Contestant:
    return Contestant(
        engine=THEIRS,
        mode=function,
        budget_ratio=None,
        module="emoe.bench.contestant_child",
        options={"kind": THEIRS, "experts_function": function},
        files=_weights(model.folder),
        likely_bytes=INTERPRETER_BYTES + 2 * (model.base_bytes + model.expert_bytes),
    )


def _disk(model: Model, places: Places) -> Contestant:
    accelerate = places.accelerate(f"{THEIRS} disk")
    offload = model.work / "offload"
    return Contestant(
        engine=THEIRS,
        mode="disk",
        budget_ratio=None,
        module="emoe.bench.contestant_child",
        options={"kind": "disk", "offload": str(offload)},
        files=(*_weights(model.folder), offload),
        likely_bytes=INTERPRETER_BYTES + model.base_bytes,
        environment=accelerate,
    )


def _llama(model: Model, places: Places) -> Contestant:
    gguf = model.work / "model.gguf"
    return Contestant(
        engine=LLAMA,
        mode="mmap",
        budget_ratio=None,
        module="emoe.bench.peers.llama_child",
        options={"gguf": str(gguf)},
        files=(gguf,),
        likely_bytes=INTERPRETER_BYTES,
        python=places.python("llama", LLAMA),
        environment=places.own_code(),
    )


def _airllm(model: Model, places: Places) -> Contestant:
    return Contestant(
        engine=AIRLLM,
        mode="layers",
        budget_ratio=None,
        module="emoe.bench.peers.airllm_child",
        options={"work": str(model.work / "airllm")},
        files=(*_weights(model.folder), model.work / "airllm"),
        likely_bytes=2 * INTERPRETER_BYTES,
        python=places.python("airllm", AIRLLM),
        environment=places.own_code(),
        max_batch=1,
        max_new_tokens=AIRLLM_TOKENS,
    )


def _weights(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.safetensors")))
