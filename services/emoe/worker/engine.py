"""The engine: admits sequences, runs one step of the model over all of them, hands out their next tokens.

Single-threaded: one thread calls `step` and everything else between steps. `step()` is build, run, record, sample.
It knows tokens, not text, and neither gRPC nor who is asking.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch

from emoe.core.experts import CountGrid
from emoe.core.generation import Sampling
from emoe.core.schedule.step_cost_fit import StepWork
from emoe.core.tasks import UNKNOWN
from emoe.worker.attention import AttentionStep
from emoe.worker.batch import PrefillChunk, StepBatch, tensor_on
from emoe.worker.kv import KvCache
from emoe.worker.own_counts import OwnCounts
from emoe.worker.residency import Residency
from emoe.worker.routing import DeviceTable, StepRouting
from emoe.worker.sampling import Draw, Sampler, sample
from emoe.worker.sequence import Sequence, TokenEvent
from emoe.worker.static_step import Replays, StaticStep

MAX_TASKS_COUNTED = 64
"""Routing of further tasks is counted as that of an unknown one."""


@dataclasses.dataclass(kw_only=True)
class EngineCounters:
    num_prompts: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    num_expert_hits: int = 0
    num_expert_choices: int = 0


class Engine:
    """`step_tokens` bounds a step's tokens: longer prompts are prefilled in chunks. `own_routing_tokens`: how often a
    sequence's coming routing is foretold; 0 keeps no count of it. `replays`: what runs steps of decodes alone, of up to
    `static_rows` sequences, as static ones; None: every step is an ordinary one."""

    def __init__(
        self,
        *,
        model: Any,
        residency: Residency,
        table: DeviceTable,
        routing: StepRouting,
        kv: KvCache,
        device: torch.device,
        eos_token_ids: frozenset[int],
        step_tokens: int,
        own_routing_tokens: int = 0,
        replays: Replays | None = None,
        static_rows: int = 0,
        sampler: Sampler = sample,
    ) -> None:
        self.residency = residency
        self.counters = EngineCounters()
        self.task_counts: dict[str, CountGrid] = {}
        """Routing counts [L, E] since they were last taken; the worker's reporter takes them."""
        self.own_routing_tokens = own_routing_tokens
        self.num_moments = 0
        """Rises when the coming routing of a running sequence is to be foretold."""
        self.logits_NV: torch.Tensor | None = None
        """The last step's logits, one row an event; for comparisons."""
        self.last_work: StepWork | None = None
        """What the last step did; None when it had nothing to do."""
        self._model = model
        self._table = table
        self._routing = routing
        self._kv = kv
        self._device = device
        self._eos_token_ids = eos_token_ids
        self._sampler = sampler
        self.step_tokens = max(step_tokens, kv.num_rows)
        self._static: StaticStep | None = None
        if replays is not None:
            self._static = StaticStep(
                model=model, kv=kv, table=table, routing=routing, replays=replays, device=device, max_rows=static_rows
            )
        self._waiting: collections.deque[Sequence] = collections.deque()
        self._running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def only_decodes(self) -> bool:
        """Whether the next step is a short one: a token for each running sequence."""
        return not self._waiting and all(sequence.is_decoding for sequence in self._running)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> Seq[Sequence]:
        return self._running

    @property
    def num_kv_bytes(self) -> int:
        """Of the blocks made so far: all of them after the first step."""
        return self._kv.num_bytes

    @property
    def sequences(self) -> list[Sequence]:
        return [*self._running, *self._waiting]

    def add(self, sequence: Sequence) -> None:
        assert 0 < sequence.num_prompt_tokens < self._kv.max_context, "lengths are checked before the engine"
        self._waiting.append(sequence)

    @torch.inference_mode()
    def cancel(self, sequence_id: str) -> None:
        """Between two steps; unknown ids are those that ended meanwhile."""
        self._waiting = collections.deque(s for s in self._waiting if s.sequence_id != sequence_id)
        for sequence in [s for s in self._running if s.sequence_id == sequence_id]:
            self._leave(sequence)

    @torch.inference_mode()
    def step(self) -> list[TokenEvent]:
        """Advances every running sequence. A fault of one expert fails the sequences that need it, no others."""
        self.residency.advance(now_seconds=time.monotonic())
        self.residency.check_routable()
        self._table.refresh()
        self._routing.begin()
        batch, spans = self._build()
        self.last_work = None
        if not spans:
            return []
        stalled = self.residency.counters.stall_seconds
        resident = self.residency.table.resident
        logits_NV = self._forward(batch)
        missed = self._record(spans, resident)
        self.last_work = StepWork(
            num_prompt_tokens=batch.num_tokens - batch.num_decodes,
            num_decoding=batch.num_decodes,
            num_context_tokens=sum(batch.decode_past),
            stall_seconds=self.residency.counters.stall_seconds - stalled,
            num_missed_tokens=missed,
        )
        return self._events(spans, logits_NV)

    def _forward(self, batch: StepBatch) -> torch.Tensor:
        if self._static is not None and self._static.takes(batch):
            return self._static.run(batch)
        logits_NV: torch.Tensor = self._model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=batch.logit_positions,
            emoe_step=AttentionStep(batch, self._kv),
        ).logits[0]
        return logits_NV

    def _build(self) -> tuple[StepBatch, list[tuple[Sequence, int, int]]]:
        """The step's batch, and each sequence's span [start, stop) in it; spans stand in the order of the batch."""
        while self._waiting and self._kv.num_used < self._kv.num_rows:
            sequence = self._waiting.popleft()
            sequence.row = self._kv.acquire()
            sequence.started_seconds = time.monotonic()
            self._running.append(sequence)
        decoding = sorted((s for s in self._running if s.is_decoding), key=lambda s: s.row)
        spans = [(sequence, place, place + 1) for place, sequence in enumerate(decoding)]
        used, prefills = len(decoding), []
        for sequence in self._running:
            size = min(sequence.num_pending, self.step_tokens - used)
            if sequence.is_decoding or size <= 0:
                continue
            prefills.append(PrefillChunk(used, used + size, sequence.row, sequence.num_in_kv))
            spans.append((sequence, used, used + size))
            used += size
        return self._to_batch(spans, decoding, prefills), spans

    def _to_batch(
        self, spans: list[tuple[Sequence, int, int]], decoding: list[Sequence], prefills: list[PrefillChunk]
    ) -> StepBatch:
        ids = [s.token_ids[s.num_in_kv : s.num_in_kv + stop - start] for s, start, stop in spans]
        places = [range(s.num_in_kv, s.num_in_kv + stop - start) for s, start, stop in spans]
        last = [stop - 1 for s, start, stop in spans if s.num_pending == stop - start]
        return StepBatch(
            input_ids=tensor_on(self._device, [token for piece in ids for token in piece])[None],
            position_ids=tensor_on(self._device, [place for piece in places for place in piece])[None],
            decode_rows=tuple(s.row for s in decoding),
            decode_past=tuple(s.num_in_kv for s in decoding),
            prefills=tuple(prefills),
            logit_positions=tensor_on(self._device, last),
        )

    def _record(self, spans: list[tuple[Sequence, int, int]], resident: np.ndarray[Any, Any]) -> float:
        """Adds the step's routing to its tasks' counts and its sequences' hits -> its misses, in whole tokens'."""
        layers, ids_LTK, hits_T = self._routing.collect(resident)
        shape = self.residency.grid.shape
        cells_LTK = layers[:, None, None] * shape[1] + ids_LTK
        choices = cells_LTK.shape[0] * cells_LTK.shape[2]
        for sequence, start, stop in spans:
            hits = int(hits_T[start:stop].sum())
            sequence.num_expert_hits += hits
            sequence.num_expert_choices += choices * (stop - start)
            self.counters.num_expert_hits += hits
            if self.own_routing_tokens:
                self._keep_own(sequence, layers, ids_LTK[:, start:stop])
        self.counters.num_expert_choices += choices * cells_LTK.shape[1]
        names = {s.task: self._counted_as(s.task) for s, _, _ in spans}
        for task in set(names.values()):
            tokens = np.concatenate([np.arange(start, stop) for s, start, stop in spans if names[s.task] == task])
            counts = np.bincount(cells_LTK[:, tokens].reshape(-1), minlength=shape[0] * shape[1]).reshape(shape)
            self.task_counts[task] = self.task_counts.get(task, 0) + counts
        return float(cells_LTK.shape[1] - hits_T.sum() / choices)

    def _keep_own(self, sequence: Sequence, layers: np.ndarray[Any, Any], ids_LTK: np.ndarray[Any, Any]) -> None:
        if sequence.own_counts is None:
            sequence.own_counts = OwnCounts(layers, self.residency.grid.shape)
        own, ends_prompt = sequence.own_counts, not sequence.is_decoding and sequence.num_pending == ids_LTK.shape[1]
        own.add(ids_LTK)
        if not own.is_due and (ends_prompt or own.num_new_tokens >= self.own_routing_tokens):
            own.is_due = True
            self.num_moments += 1

    def _counted_as(self, task: str) -> str:
        """Counts may wait long for a predictor, and clients name tasks as they like: so there is a bound."""
        return task if task in self.task_counts or len(self.task_counts) < MAX_TASKS_COUNTED else UNKNOWN

    def _events(self, spans: list[tuple[Sequence, int, int]], logits_NV: torch.Tensor) -> list[TokenEvent]:
        failed = {s: self._missing() for s, *span in spans if not self._routing.failed_tokens.isdisjoint(range(*span))}
        sampled: list[Sequence] = []
        for sequence, start, stop in spans:
            self.counters.num_prompt_tokens += 0 if sequence.is_decoding else stop - start
            sequence.num_in_kv += stop - start
            if sequence.num_pending == 0:
                sampled.append(sequence)
        self.logits_NV = logits_NV
        draws = [Draw(sampling=s.sampling, seed=s.seed, position=s.num_completion_tokens) for s in sampled]
        picks = self._sampler(logits_NV, draws) if sampled else []
        events = []
        for sequence, picked in zip(sampled, picks, strict=True):
            if sequence in failed:
                continue
            if picked is None:
                failed[sequence] = "the model's logits are no numbers for it", False
                continue
            self.counters.num_completion_tokens += 1
            self.counters.num_prompts += sequence.num_completion_tokens == 0
            sequence.token_ids.append(picked.token_id)
            finished = self._is_finished(sequence, picked.token_id, sequence.sampling)
            events.append(
                TokenEvent(sequence=sequence, token_id=picked.token_id, logprobs=picked.logprobs, finished=finished)
            )
            if finished:
                self._leave(sequence)
        for sequence, (error, is_for_want) in failed.items():
            self._kv.clear(sequence.row)
            self._leave(sequence)
            events.append(TokenEvent(sequence=sequence, finished=True, error=error, is_for_want=is_for_want))
        return events

    def _missing(self) -> tuple[str, bool]:
        """Why, and whether for want of a neighbour."""
        residency = self.residency
        reason = residency.last_error or "its routing made no numbers"
        return f"an expert that it needs is missing; {reason}", residency.source_is_away

    def _is_finished(self, sequence: Sequence, token_id: int, sampling: Sampling) -> bool:
        full = len(sequence.token_ids) >= self._kv.max_context
        ended = token_id in self._eos_token_ids and not sampling.ignore_eos
        return ended or full or sequence.num_completion_tokens >= sampling.max_tokens

    def _leave(self, sequence: Sequence) -> None:
        last = max(self._running, key=lambda s: s.row)
        moved_from = self._kv.release(sequence.row, last_row_tokens=last.num_in_kv)
        if moved_from != sequence.row:
            last.row = sequence.row
        sequence.row = -1
        self._running.remove(sequence)
