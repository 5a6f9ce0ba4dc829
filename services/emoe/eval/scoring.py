"""Runs a model over given tokens as the worker would, and says how likely each next one was.

The worker's own model, attention, experts and routers' adapters. Which experts are resident is a mask a token here, so
that many streams with different residents go through one step. Experts that do not fit the memory given are paged.
T tokens, L layers, M layers with experts, E experts, K choices a token, R tokens that are judged.
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

from emoe.core.budget import slot_bytes
from emoe.core.errors import CheckpointError
from emoe.core.experts import BoolGrid, ExpertGrid
from emoe.store.calibration import read_calibration_info
from emoe.store.store import ExpertStore
from emoe.worker.attention import AttentionStep
from emoe.worker.batch import PrefillChunk, StepBatch
from emoe.worker.build import EngineOptions, EngineParts, build_parts
from emoe.worker.calibration import CalibratedLayer, Calibration, RouterOutput
from emoe.worker.calibration_file import load_calibration
from emoe.worker.calibration_hooks import attach_calibration
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
    The first `random_layers` MoE layers send each token to experts drawn at random, with the weights that its own would
    have had: what changes is who computes, not how much is added.
    """

    row: int
    token_ids: Sequence[int]
    begin: int
    end: int
    judged_from: int
    resident: BoolGrid | None = None
    random_layers: int = 0
    random_seed: int = 0

    @property
    def judged(self) -> range:
        """Places in the sequence."""
        return range(max(self.begin + 1, self.judged_from), min(self.end + 1, len(self.token_ids)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PieceScore:
    """`nll` [R] in nats, `is_best` [R]: whether the token was the likeliest. `wanted` [L, E]: how often the piece's
    routers chose each expert, resident or not, and `wanted_judged` those of tokens that ran to predict a judged one.
    `wanted_ids` [T, M, K]: the same one by one, of the M layers that have experts.
    `mean_state` [D]: of the last hidden states from which the judged tokens were predicted; zeros where none is."""

    nll: npt.NDArray[np.float64]
    is_best: npt.NDArray[np.bool_]
    wanted: npt.NDArray[np.int64]
    wanted_judged: npt.NDArray[np.int64]
    wanted_ids: npt.NDArray[np.int64]
    mean_state: npt.NDArray[np.float32]


class ScoringModel:
    """Not thread-safe. `open` builds one from a checkpoint."""

    calibrated = False
    """Whether absent experts are made up for, by the calibration that it was opened with."""
    calibration_slots = 0.0
    """What the calibration takes, in expert slots."""

    def __init__(
        self, parts: EngineParts, family: Family, encoder: PromptEncoder, calibration: Calibration | None = None
    ) -> None:
        self.grid: ExpertGrid = parts.residency.grid
        self.encoder = encoder
        self.family = str(parts.model.config.model_type)
        self.eos_token_ids = parts.eos_token_ids
        self.vocab_size = int(parts.model.config.vocab_size)
        self.num_rows = parts.options.max_concurrency
        self.max_context = parts.options.max_context
        self.step_tokens = parts.options.step_tokens
        self._parts = parts
        self._kv = KvCache(num_rows=self.num_rows, max_context=self.max_context)
        self._device = torch.device(parts.options.device)
        self._resident_TLE: torch.Tensor | None = None
        self._random: list[tuple[slice, Piece]] = []
        self._wanted: dict[int, torch.Tensor] = {}
        self._states_RD = torch.empty(0, 0)
        parts.model.get_output_embeddings().register_forward_pre_hook(self._keep_states)
        self._calibrated: dict[int, CalibratedLayer] = {}
        if calibration is not None:
            self._calibrated = attach_calibration(calibration, parts.model, family, lacking=self._lacking)
        for layer, router in router_modules(parts.model, family).items():
            router.register_forward_hook(self._hook(family, layer))

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        folder: Path,
        *,
        expert_memory: str,
        max_context: int,
        num_rows: int,
        step_tokens: int,
        device: str = "cpu",
        calibration: Path | None = None,
    ) -> Iterator[ScoringModel]:
        """`calibration`: a file of these weights; CheckpointError where it is not. It is used while `calibrated` is
        set."""
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
                yield cls._build(parts, store, encoder, calibration)
            finally:
                parts.residency.close()

    @classmethod
    def _build(
        cls, parts: EngineParts, store: ExpertStore, encoder: PromptEncoder, calibration: Path | None
    ) -> ScoringModel:
        family = family_of(store.family)
        if calibration is None:
            return cls(parts, family, encoder)
        info = read_calibration_info(calibration, digest=store.digest, fingerprint=store.fingerprint())
        if info is None:
            raise CheckpointError(f"{calibration}: there is no such file; make it with `emoe profile --calibrate`")
        device, hidden_size = torch.device(parts.options.device), parts.model.config.hidden_size
        loaded = load_calibration(info, store.grid, hidden_size=hidden_size, device=device)
        model = cls(parts, family, encoder, loaded)
        model.calibration_slots = info.num_bytes / slot_bytes(store.grid)
        return model

    @torch.inference_mode()
    def score(self, pieces: Sequence[Piece]) -> list[PieceScore]:
        """One step over all pieces; a row may stand in it once."""
        batch, judged, targets = self._batch(pieces)
        self._resident_TLE = self._masks(pieces)
        self._random = _random_tokens(pieces)
        self._parts.routing.begin()
        logits_RV = self._parts.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=batch.logit_positions,
            emoe_step=AttentionStep(batch, self._kv),
        ).logits[0]
        nll_R = cross_entropy(logits_RV.float(), targets, reduction="none").cpu().double().numpy()
        states_RD = self._states_RD.float().cpu().numpy()
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
                    wanted_ids=np.stack([ids[start:stop] for _, ids in sorted(wanted_LTK.items())], axis=1),
                    mean_state=states_RD[first:last].sum(axis=0) / max(1, len(places)),
                )
            )
            start, first = stop, last
        return scores

    @torch.inference_mode()
    def mean_embedding(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """[D]: of these tokens' input embeddings."""
        embedded_TD = self._parts.model.get_input_embeddings()(self._tensor(token_ids))
        return np.asarray(embedded_TD.float().mean(dim=0).cpu().numpy())

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
        def choose(router: Any, args: tuple[torch.Tensor], output: RouterOutput) -> RouterOutput:
            logits_TE, weights_TK, wanted_TK = output
            self._wanted[layer] = ids_TK = wanted_TK
            if self._resident_TLE is not None and self._is_calibrated:
                resident_TE = self._resident_TLE[:, layer]
                _, weights_TK, ids_TK = self._calibrated[layer].choose(router, args[0], output, resident_TE)
            elif self._resident_TLE is not None:
                weights_TK, ids_TK = family.reroute(router, logits_TE, self._resident_TLE[:, layer])
            return logits_TE, weights_TK, self._randomised(layer, ids_TK)

        return choose

    @property
    def _is_calibrated(self) -> bool:
        return self.calibrated and bool(self._calibrated)

    def _lacking(self) -> torch.Tensor | bool:
        """Whether a token lacks an expert anywhere: [T, 1]."""
        if self._resident_TLE is None or not self._is_calibrated:
            return False
        return (~self._resident_TLE[:, list(self.grid.moe_layers)]).flatten(1).any(1, keepdim=True)

    def _keep_states(self, _module: object, args: tuple[torch.Tensor, ...]) -> None:
        self._states_RD = args[0][0]

    def _randomised(self, layer: int, ids_TK: torch.Tensor) -> torch.Tensor:
        depth, num_experts = self.grid.moe_layers.index(layer), self.grid.shape[1]
        drawn = [(tokens, piece) for tokens, piece in self._random if depth < piece.random_layers]
        if drawn:
            ids_TK = ids_TK.clone()
        for tokens, piece in drawn:
            seed = (piece.random_seed, depth, piece.begin)
            random_TE = np.random.default_rng(seed).random((piece.end - piece.begin, num_experts), dtype=np.float32)
            chosen_TK = torch.from_numpy(random_TE).topk(ids_TK.shape[1], dim=-1).indices
            ids_TK[tokens] = chosen_TK.to(ids_TK)
        return ids_TK

    def _count(self, wanted_LTK: dict[int, npt.NDArray[np.int64]], tokens: slice | list[int]) -> npt.NDArray[np.int64]:
        counts = np.zeros(self.grid.shape, dtype=np.int64)
        for layer, ids_TK in wanted_LTK.items():
            counts[layer] = np.bincount(ids_TK[tokens].reshape(-1), minlength=self.grid.shape[1])
        return counts

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _random_tokens(pieces: Sequence[Piece]) -> list[tuple[slice, Piece]]:
    """Where in the step those pieces stand whose routing is random."""
    found, start = [], 0
    for piece in pieces:
        stop = start + piece.end - piece.begin
        if piece.random_layers:
            found.append((slice(start, stop), piece))
        start = stop
    return found
