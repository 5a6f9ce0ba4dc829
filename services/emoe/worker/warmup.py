"""What comes between an engine's parts and a worker that is ready: its first experts, and a run of the model over
prompts of several lengths.

Kernel libraries compile or pick a kernel at the first sight of a shape; the first client should not pay for it.
"""

from __future__ import annotations

import logging
import threading
import time

from emoe.core.generation import Sampling
from emoe.worker.build import EngineParts, bootstrap_plan
from emoe.worker.sequence import Sequence

log = logging.getLogger(__name__)

PROMPT_LENGTHS = (1, 5, 24, 100, 300)
NUM_TOKENS = 4


def warm_up(parts: EngineParts, *, cut_short: threading.Event | None = None) -> None:
    """On an engine of its own, so that neither counters nor routing counts remember it."""
    began = time.monotonic()
    engine = parts.build_engine()
    longest = parts.options.max_context - NUM_TOKENS
    for length in sorted({min(length, longest) for length in PROMPT_LENGTHS}):
        for number in range(parts.options.max_concurrency if length == min(PROMPT_LENGTHS) else 1):
            engine.add(_sequence(f"warm-up/{length}/{number}", length))
        while engine.has_work and not (cut_short is not None and cut_short.is_set()):
            engine.step()
    log.info("warmed up in %.1f s", time.monotonic() - began)


def bring_first_residents(parts: EngineParts, *, timeout_seconds: float, cut_short: threading.Event) -> None:
    """The plan that a worker starts from, in full; in load mode nothing, for there experts come when they are needed.
    Errors as of `Residency.wait_until_settled`."""
    residency = parts.residency
    if parts.options.miss_policy == "reroute":
        residency.set_plan(bootstrap_plan(residency.grid, residency.plan_slots), epoch=0)
        residency.wait_until_settled(timeout_seconds=timeout_seconds, cut_short=cut_short)


def _sequence(name: str, length: int) -> Sequence:
    token_ids = [place % 2 for place in range(length)]
    sampling = Sampling(max_tokens=NUM_TOKENS)
    return Sequence(sequence_id=name, task="", token_ids=token_ids, num_prompt_tokens=length, sampling=sampling, seed=0)
