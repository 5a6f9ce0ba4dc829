"""Runs a model over given tokens as the worker would, and says how likely each next one was.

The worker's own model, attention, experts and routers' adapters. Which experts are resident is a mask a token here, so
that many streams with different residents go through one step. Experts that do not fit the memory given are paged.
T tokens, L layers, E experts, K choices a token, R tokens that are judged.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from emoe.core.experts import BoolGrid, ExpertGrid
from emoe.store.store import ExpertStore
from emoe.worker.attention import AttentionStep
from emoe.worker.batch import PrefillChunk, StepBatch
from emoe.worker.build import EngineOptions, EngineParts, build_parts
from emoe.worker.families import Family, family_of
from emoe.worker.kv import KvCache
from emoe.worker.loading import router_modules
from emoe.worker.prompts import PromptEncoder, vocab_size_of
from emoe.worker.sources import LocalSource


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Tokens [begin, end) of a sequence whose earlier ones are in KV row `row`.

    `resident` [L, E]: the experts to route among; None: all. Tokens from `judged_from` on are judged, each when the one
    before it runs: so the piece's last judged token is the one behind its end, if the sequence has one.
    """

    row: int
    token_ids: Sequence[int]
    begin: int
    end: int
    judged_from: int
    resident: BoolGrid | None = None

    @property
    def judged(self) -> range:
        """Places in the sequence."""
        return range(max(self.begin + 1, self.judged_from), min(self.end + 1, len(self.token_ids)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PieceScore:
    """`nll` [R] in nats, `is_best` [R]: whether the token was the likeliest. `wanted` [L, E]: how often the piece's
    routers chose each expert, resident or not, and `wanted_judged` those of tokens that ran to predict a judged one."""

    nll: npt.NDArray[np.float64]
    is_best: npt.NDArray[np.bool_]
    wanted: npt.NDArray[np.int64]
    wanted_judged: npt.NDArray[np.int64]


class ScoringModel:
    """Not thread-safe. `open` builds one from a checkpoint."""

    def __init__(self, parts: EngineParts, family: Family, encoder: PromptEncoder) -> None:
        self.grid: ExpertGrid = parts.residency.grid
        self.encoder = encoder
        self.family = str(parts.model.config.model_type)
        self.eos_token_ids = parts.eos_token_ids
        self.num_rows = parts.options.max_concurrency
        self.max_context = parts.options.max_context
        self.step_tokens = parts.options.step_tokens
        self._parts = parts
        self._kv = KvCache(num_rows=self.num_rows, max_context=self.max_context)
        self._device = torch.device(parts.options.device)
        self._resident_TLE: torch.Tensor | None = None
        self._wanted: dict[int, torch.Tensor] = {}
        for layer, router in router_modules(parts.model, family).items():
            router.register_forward_hook(self._hook(family, layer))

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, folder: Path, *, expert_memory: str, max_context: int, num_rows: int, step_tokens: int, device: str = "cpu"
    ) -> Iterator[ScoringModel]:
        options = EngineOptions(
            expert_memory=expert_memory,
            miss_policy="load",
            max_context=max_context,
            max_concurrency=num_rows,
            step_tokens=step_tokens,
            device=device,
        )
        with ExpertStore.open(folder) as store:
            encoder = PromptEncoder.open(folder, vocab_size=vocab_size_of(store), max_context=max_context)
            parts = build_parts(store, LocalSource(store), options)
            try:
                yield cls(parts, family_of(store.family), encoder)
            finally:
                parts.residency.close()

    @torch.inference_mode()
    def score(self, pieces: Sequence[Piece]) -> list[PieceScore]:
        """One step over all pieces; a row may stand in it once."""
        batch, judged, targets = self._batch(pieces)
        self._resident_TLE = self._masks(pieces)
        self._parts.routing.begin()
        logits_RV = self._parts.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=batch.logit_positions,
            emoe_step=AttentionStep(batch, self._kv),
        ).logits[0]
        nll_R = cross_entropy(logits_RV.float(), targets, reduction="none").cpu().double().numpy()
        best_R = (logits_RV.argmax(-1) == targets).cpu().numpy()
        wanted_LTK = {layer: ids.cpu().numpy() for layer, ids in self._wanted.items()}
        scores, start, first = [], 0, 0
        for piece, places in zip(pieces, judged, strict=True):
            stop, last = start + piece.end - piece.begin, first + len(places)
            scores.append(
                PieceScore(
                    nll=nll_R[first:last],
                    is_best=best_R[first:last],
                    wanted=self._count(wanted_LTK, slice(start, stop)),
                    wanted_judged=self._count(wanted_LTK, places),
                )
            )
            start, first = stop, last
        return scores

    def _batch(self, pieces: Sequence[Piece]) -> tuple[StepBatch, list[list[int]], torch.Tensor]:
        """The step; for each piece the places in the step that predict judged tokens; and all judged tokens [R]."""
        ids: list[int] = []
        positions: list[int] = []
        chunks, judged, targets = [], [], []
        for piece in pieces:
            start = len(ids)
            ids += piece.token_ids[piece.begin : piece.end]
            positions += range(piece.begin, piece.end)
            chunks.append(PrefillChunk(start, len(ids), piece.row, piece.begin))
            judged.append([start + place - 1 - piece.begin for place in piece.judged])
            targets += [piece.token_ids[place] for place in piece.judged]
        batch = StepBatch(
            input_ids=self._tensor(ids)[None],
            position_ids=self._tensor(positions)[None],
            decode_rows=(),
            decode_past=(),
            prefills=tuple(chunks),
            logit_positions=self._tensor([place for places in judged for place in places]),
        )
        return batch, judged, self._tensor(targets)

    def _masks(self, pieces: Sequence[Piece]) -> torch.Tensor | None:
        if all(piece.resident is None for piece in pieces):
            return None
        everything = self.grid.all_experts()
        masks = np.stack([everything if piece.resident is None else piece.resident for piece in pieces])
        lengths = self._tensor([piece.end - piece.begin for piece in pieces])
        return torch.from_numpy(masks).to(self._device).repeat_interleave(lengths, dim=0)

    def _hook(self, family: Family, layer: int) -> Any:
        def choose(router: Any, _args: object, output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            logits_TE, _, wanted_TK = output
            self._wanted[layer] = wanted_TK
            if self._resident_TLE is None:
                return output
            return logits_TE, *family.reroute(router, logits_TE, self._resident_TLE[:, layer])

        return choose

    def _count(self, wanted_LTK: dict[int, npt.NDArray[np.int64]], tokens: slice | list[int]) -> npt.NDArray[np.int64]:
        counts = np.zeros(self.grid.shape, dtype=np.int64)
        for layer, ids_TK in wanted_LTK.items():
            counts[layer] = np.bincount(ids_TK[tokens].reshape(-1), minlength=self.grid.shape[1])
        return counts

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
