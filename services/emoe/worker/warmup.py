"""Runs the model once over prompts of several lengths before the worker is ready.

Kernel libraries compile or pick a kernel at the first sight of a shape; the first client should not pay for it.
"""

from __future__ import annotations

import logging
import threading
import time

from emoe.core.generation import Sampling
from emoe.worker.build import EngineParts
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


def _sequence(name: str, length: int) -> Sequence:
    token_ids = [place % 2 for place in range(length)]
    sampling = Sampling(max_tokens=NUM_TOKENS)
    return Sequence(sequence_id=name, task="", token_ids=token_ids, num_prompt_tokens=length, sampling=sampling, seed=0)
