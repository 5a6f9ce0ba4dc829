"""What a step takes beside base weights, slots and keys and values: measured by running the largest one.

Stands between loading the base model and making slots, where the expert memory is to be what is left (`sizing`). The
step runs with the fewest slots that the miss policy allows, on a copy of the model's modules that shares its weights:
nothing of it is left behind. Its prompt is one token again and again, at the end of the longest context: places that
see equal values route alike, so that each layer reads about as many experts as one token needs, and each of these has
all tokens, which is the most that one can have.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import threading
import time
from typing import Any

import torch

from emoe.core.errors import BudgetError, NotReadyError
from emoe.core.generation import Sampling
from emoe.store.store import ExpertStore
from emoe.worker.build import EngineOptions, EngineParts, build_parts, plan_slots
from emoe.worker.gauges import Gauge, gauge_of
from emoe.worker.sequence import Sequence
from emoe.worker.sources import ExpertSource
from emoe.worker.static_step import MIN_KEYS, padded_keys, padded_rows
from emoe.worker.warmup import bring_first_residents

SMALL_STEPS = (8, 4)
"""Parts of the largest step that run before it: what they take foretells whether it would be too much, for a process
that passes its limit is killed and says nothing."""
SPARED_PLACES = 4
"""At the end of a context: no sequence of a trial may end by it."""
_TOKEN = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPeak:
    num_bytes: int
    num_tokens: int
    seconds: float
    """That the measurement took."""
    code_bytes: int = 0
    """Of the bytes, pages of the libraries' code."""
    recording_bytes: int = 0
    """Of the bytes, those of all static steps' recordings as CUDA graphs."""
    is_foretold: bool = False
    """By smaller steps: one of this size was not tried, since it would not fit."""


def measure_steps(
    store: ExpertStore,
    source: ExpertSource,
    options: EngineOptions,
    model: Any,
    *,
    kv_bytes_per_token: int,
    allowed_bytes: int,
    timeout_seconds: float,
    cut_short: threading.Event,
) -> StepPeak:
    """`options` have the trial's own expert memory. Above `allowed_bytes` no step is tried. BudgetError where a device
    has not room for the least, NotReadyError where experts do not come, or when it is cut short."""
    began, gauge = time.monotonic(), gauge_of(torch.device(options.device))
    gauge.begin()
    parts = build_parts(store, source, options, sharing_weights(model))
    try:
        bring_first_residents(parts, timeout_seconds=timeout_seconds, cut_short=cut_short)
        reserved_bytes = plan_slots(store.grid, options).reserved_bytes
        trial = _Trial(parts, gauge, kv_bytes_per_token, reserved_bytes, cut_short)
        return dataclasses.replace(trial.run(allowed_bytes), seconds=time.monotonic() - began)
    except torch.OutOfMemoryError as error:
        raise BudgetError(
            f"expert_memory auto: with the fewest slots a step of {options.step_tokens} tokens does not fit {gauge} "
            f"({error}); lower max_context or max_concurrency, or free the device"
        ) from error
    finally:
        parts.residency.close()
        gc.collect()


def sharing_weights(model: torch.nn.Module) -> torch.nn.Module:
    """A model of the same parameters and buffers: what is hooked or set on its modules is not on the other's."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


class _Trial:
    def __init__(
        self,
        parts: EngineParts,
        gauge: Gauge,
        kv_bytes_per_token: int,
        reserved_bytes: int,
        cut_short: threading.Event,
    ) -> None:
        self._parts = parts
        self._options = parts.options
        self._gauge = gauge
        self._kv_bytes_per_token = kv_bytes_per_token
        self._reserved_bytes = reserved_bytes
        self._cut_short = cut_short
        self._engine = parts.build_engine()
        rows, longest = self._options.max_concurrency, self._options.max_context - SPARED_PLACES
        self._largest = min(max(self._options.step_tokens, rows), rows * longest)

    def run(self, allowed_bytes: int) -> StepPeak:
        sizes = sorted({max(self._options.max_concurrency, self._largest // part) for part in SMALL_STEPS})
        taken = [self._step_of(size) for size in sizes]
        if len(sizes) > 1 and sizes[-1] < self._largest:
            slope = max(0.0, (taken[-1] - taken[0]) / (sizes[-1] - sizes[0]))
            foretold = taken[-1] + int(slope * (self._largest - sizes[-1]))
            if foretold > allowed_bytes:
                return StepPeak(num_bytes=foretold, num_tokens=self._largest, seconds=0.0, is_foretold=True)
        # Read before anything is recorded: that gives the caches back, and with them what the prompts took.
        step_bytes = self._step_of(self._largest)
        code_bytes, recording_bytes = self._gauge.code_bytes, self._recordings()
        return StepPeak(
            num_bytes=step_bytes + recording_bytes,
            num_tokens=self._largest,
            seconds=0.0,
            code_bytes=code_bytes,
            recording_bytes=recording_bytes,
        )

    def _step_of(self, num_tokens: int) -> int:
        """-> the most taken so far."""
        self._cancel(spared=0)
        self._engine.step_tokens = num_tokens
        for sequence in largest_step(self._options, num_tokens):
            self._engine.add(sequence)
        self._step()
        return self._taken(num_tokens)

    def _cancel(self, *, spared: int) -> None:
        """All but so many; the last row first, so that no keys are moved."""
        by_row = sorted(self._engine.running, key=lambda sequence: sequence.row)
        for sequence in reversed(by_row[spared:]):
            self._engine.cancel(sequence.sequence_id)

    def _step(self) -> None:
        if self._cut_short.is_set():
            raise NotReadyError("told to stop before a step was measured")
        for event in self._engine.step():
            if event.is_for_want:
                raise NotReadyError(f"expert_memory auto: the step to measure failed: {event.error}")

    def _recordings(self) -> int:
        """What all take that an engine may come to make, where it makes any: the first, of the most rows, has what they
        share; each other one is taken to be as the second."""
        if not self._parts.static_rows:
            return 0
        first = self._decode(self._options.max_concurrency)
        num_others = num_shapes(self._parts.static_rows, self._options.max_context) - 1
        return first + (self._decode(1) * num_others if num_others else 0)

    def _decode(self, num_sequences: int) -> int:
        """A token for so many sequences -> what stays of it."""
        before = self._gauge.settled_bytes()
        self._cancel(spared=num_sequences)
        self._step()
        return max(0, self._gauge.settled_bytes() - before)

    def _taken(self, num_tokens: int) -> int:
        """Without slots, calibration, keys and values, which are counted by themselves."""
        residency, engine = self._parts.residency, self._engine
        held = self._gauge.held_bytes(
            slots=residency.arena.num_bytes,
            resident=int(residency.table.resident.sum()) * residency.arena.slots_SB.shape[1],
            kv=engine.num_kv_bytes,
            written_kv=num_tokens * self._kv_bytes_per_token,
        )
        return max(0, self._gauge.most_bytes() - held - self._reserved_bytes)


def largest_step(options: EngineOptions, num_tokens: int) -> list[Sequence]:
    """Sequences that fill a step of `num_tokens`: prompts as long as they may be, and where these leave rows, decodes;
    all at the end of the longest context, with keys and values before them that are zeros."""
    longest = options.max_context - SPARED_PLACES
    sequences, left = [], num_tokens
    for following in reversed(range(options.max_concurrency)):
        size = min(longest, left - following)
        left -= size
        sequences.append(_ending(f"trial/{following}", longest, size))
    return sequences


def num_shapes(max_rows: int, max_context: int) -> int:
    """Of static steps: how many recordings an engine may come to make."""
    rows = {padded_rows(count, max_rows) for count in range(1, max_rows + 1)}
    lengths = (min(MIN_KEYS << power, max_context) for power in range(max_context.bit_length()))
    keys = {padded_keys(length, max_context) for length in lengths}
    return len(rows) * len(keys)


def _ending(sequence_id: str, length: int, size: int) -> Sequence:
    """One whose last `size` tokens are still to be seen; a single one is a decode."""
    return Sequence(
        sequence_id=sequence_id,
        task="",
        token_ids=[_TOKEN] * length,
        num_prompt_tokens=length - 1 if size == 1 else length,
        sampling=Sampling(max_tokens=length, ignore_eos=True),
        seed=0,
        num_in_kv=length - size,
    )
