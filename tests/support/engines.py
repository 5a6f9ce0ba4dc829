"""Engines over small checkpoints, driven step by step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from emoe.core.budget import slot_bytes
from emoe.core.experts import BoolGrid
from emoe.core.generation import Sampling
from emoe.store.calibration import read_calibration_info
from emoe.store.store import ExpertStore
from emoe.worker import experts
from emoe.worker.build import EngineOptions, EngineParts, bootstrap_plan, build_parts
from emoe.worker.engine import Engine
from emoe.worker.grouped import PlainStack, SlotStack
from emoe.worker.loading import experts_modules
from emoe.worker.sequence import Sequence as EngineSequence
from emoe.worker.sources import LocalSource

MAX_CONTEXT = 160


@contextlib.contextmanager
def open_parts(
    folder: Path,
    *,
    miss_policy: str,
    num_slots: int | None = None,
    plan: BoolGrid | None = None,
    max_concurrency: int = 8,
    step_tokens: int = 1024,
    device: str = "cpu",
    calibration: Path | None = None,
    lookahead: bool = False,
) -> Iterator[EngineParts]:
    """All experts fit unless `num_slots` is given. Reroute mode starts from `plan`, or as a worker would."""
    with ExpertStore.open(folder) as store:
        slots = store.grid.num_experts_total if num_slots is None else num_slots
        info = None
        if calibration is not None:
            info = read_calibration_info(calibration, digest=store.digest, fingerprint=store.fingerprint())
        options = EngineOptions(
            expert_memory=str(slots * slot_bytes(store.grid) + (info.num_bytes if info else 0)),
            calibration=info,
            miss_policy=miss_policy,
            max_context=MAX_CONTEXT,
            max_concurrency=max_concurrency,
            step_tokens=step_tokens,
            device=device,
            lookahead=lookahead,
        )
        parts = build_parts(store, LocalSource(store), options)
        assert parts.residency.arena.num_slots == slots
        if miss_policy == "reroute":
            first = bootstrap_plan(store.grid, parts.residency.plan_slots) if plan is None else plan
            parts.residency.set_plan(first, epoch=1)
            parts.residency.wait_until_settled(timeout_seconds=30)
        yield parts


def add(engine: Engine, name: str, prompt: Sequence[int], *, task: str = "chat", **sampling: object) -> EngineSequence:
    sequence = EngineSequence(
        sequence_id=name,
        task=task,
        token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        sampling=Sampling(**sampling),  # type: ignore[arg-type]
        seed=7,
    )
    engine.add(sequence)
    return sequence


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], *, max_tokens: int
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Greedy answers of all prompts at once, and the logits of every step."""
    sequences = [add(engine, f"request-{i}", prompt, max_tokens=max_tokens) for i, prompt in enumerate(prompts)]
    logits = []
    while engine.has_work:
        engine.step()
        assert engine.logits_NV is not None
        logits.append(engine.logits_NV.clone())
    return [s.token_ids[s.num_prompt_tokens :] for s in sequences], logits


def random_prompts(lengths: Sequence[int], *, vocab_size: int = 300, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def assert_logits_close(ours: torch.Tensor, reference: torch.Tensor) -> None:
    """Within 1e-5 of the largest logit's size: what float32 keeps through a few layers."""
    scale = max(1.0, float(reference.abs().max()))
    torch.testing.assert_close(ours, reference, rtol=0.0, atol=1e-5 * scale)


def use_grouped(parts: EngineParts, *, grouped: bool, stack: SlotStack | None = None) -> None:
    """Computes experts by grouped products, of `stack` if it is not the plain one, or by the loop, whatever the device
    would choose."""
    for module in experts_modules(parts.model).values():
        plain = PlainStack(parts.residency.arena, transposed=module.is_transposed)
        getattr(module, experts.LINK).grouped = (stack or plain) if grouped else None
