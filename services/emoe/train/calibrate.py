"""Trains a calibration: the model with few residents learns to answer as it does with all of them.

Teacher and student are one frozen model in memory; what is trained is `worker.calibration`'s parameters, against the
divergence of the next token's distribution on answers and, less, on prompts, with residents drawn round the task
profiles. Kept as it goes, so that the same command goes on after any interruption. The same options, seed and threads
give the same calibration, if the budget is in tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from emoe.core.budget import slot_bytes
from emoe.core.errors import InvalidRequestError, UnsupportedModelError
from emoe.eval.rows import Row, read_rows
from emoe.runtime.cpus import usable_cpus
from emoe.store.calibration import (
    GATE,
    LINEAR,
    NORM,
    PARTS,
    STANDIN,
    CalibrationShape,
    read_calibration_info,
    render_metadata,
)
from emoe.store.profile import CALIBRATION_FILE, PROFILE_FILE, Profile, read_profile
from emoe.store.store import ExpertStore
from emoe.train.calibrate_batches import Dealer, Encoding
from emoe.train.calibrate_loop import Budget, Schedule, Trainer
from emoe.train.calibrate_masks import MaskDrawer, MaskSettings, task_frequencies
from emoe.train.calibrate_memory import check_memory, estimate_bytes, expert_width
from emoe.train.calibrate_model import StudentModel, open_model
from emoe.train.calibrate_plot import check_plotting, plot_loss
from emoe.train.calibrate_state import TrainingState
from emoe.worker.arena import DTYPES
from emoe.worker.build import read_eos_token_ids
from emoe.worker.calibration import Calibration
from emoe.worker.calibration_file import save_calibration
from emoe.worker.calibration_hooks import dense_linears
from emoe.worker.device import pick_device
from emoe.worker.families import family_of
from emoe.worker.prompts import PromptEncoder, vocab_size_of

Say = Callable[[str], None]

TRAIN_SPLIT = "train"
DEFAULT_TOKENS = 2_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """`tasks`: those of the profile that have rows, if none are named. Training ends after `tokens` or `minutes`,
    whichever comes first; with neither, after DEFAULT_TOKENS."""

    tasks: tuple[str, ...] = ()
    tokens: int | None = None
    minutes: float | None = None
    parts: tuple[str, ...] = (STANDIN, GATE, NORM)
    standin_width: int | None = None
    """None: as wide as one expert."""
    gate_rank: int = 0
    """Of the routers' correction; 0: a whole matrix."""
    linear_rank: int = 8
    """Of the dense linears' corrections, where `parts` has them."""
    masks: MaskSettings = dataclasses.field(default_factory=MaskSettings)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    rows_per_task: int | None = 8000
    """The first of each; None: all."""
    max_context: int = 1024
    """Rows of more tokens are left out."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen model; what is trained is float32."""
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    output: Path | None = None
    """The file; beside the model if not given. State and log of the training lie beside it."""
    plot: Path | None = None
    """Where the loss is drawn when the training is done."""


NOT_SIGNED = frozenset({"tokens", "minutes", "device", "threads", "output", "plot"})
"""A training may go on with other values of these."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """`first_loss` and `loss` in nats a token: at the beginning, where nothing is corrected yet, and smoothed at the
    end. `num_slots`: what its bytes come to in expert slots."""

    path: str
    num_bytes: int
    num_slots: float
    num_parameters: int
    num_steps: int
    num_tokens: int
    seconds: float
    first_loss: float
    loss: float


def run_calibration(
    folder: Path, data: Path, options: CalibrateOptions, *, profile: Profile | None = None, say: Say
) -> CalibrationReport:
    """`profile`: the one beside the model if not given. Writes the calibration when the training is done.

    KeyboardInterrupt leaves the state behind that the same call goes on from. InvalidRequestError for options or data
    that do not fit, UnsupportedModelError for a quantised model, BudgetError when memory is too small, CheckpointError
    for files of other weights.
    """
    if options.plot is not None:
        check_plotting()
    torch.set_num_threads(options.threads or usable_cpus())
    with ExpertStore.open(folder) as store:
        if store.quantisation is not None:
            raise UnsupportedModelError(
                f"{folder}: a calibration is trained on weights that are not quantised; give the checkpoint that this "
                "one was made from"
            )
        fingerprint = store.fingerprint()
        profile = profile or read_profile(folder, digest=store.digest, fingerprint=fingerprint)
        if profile is None:
            raise InvalidRequestError(
                f"{folder} has no {PROFILE_FILE}, and residents are drawn round it; make it with `emoe profile`"
            )
        rows = _choose_rows(read_rows(data, TRAIN_SPLIT, max_rows=options.rows_per_task), profile, options.tasks)
        trainer = _build(store, rows, profile, options, say=say)
        output = options.output or folder / CALIBRATION_FILE
        state = TrainingState(output, signature=_sign(options, store, fingerprint, data, tuple(rows)))
        progress = trainer.run(state, say=say)
        metadata = render_metadata(
            trainer.calibration.shape,
            digest=store.digest,
            fingerprint=fingerprint,
            num_tokens=progress.num_tokens,
            loss=progress.loss,
            made=f"emoe {version('emoe')}, {progress.num_steps} steps, tasks {', '.join(rows)}",
        )
        save_calibration(trainer.calibration, output, dtype=DTYPES[store.dtype], metadata=metadata)
        if options.plot is not None:
            plot_loss(state.log, options.plot, title=f"Calibration of {folder.name}")
        state.remove()
        return _report(output, store, trainer)


def _choose_rows(
    found: Mapping[str, Sequence[Row]], profile: Profile, asked: Sequence[str]
) -> dict[str, Sequence[Row]]:
    unknown = [task for task in asked if task not in found or task not in profile.tasks]
    if unknown:
        known = sorted(found.keys() & profile.tasks.keys())
        raise InvalidRequestError(f"{', '.join(unknown)}: not both profiled and in the data; {', '.join(known)} are")
    rows = {task: part for task, part in found.items() if part and task in (asked or profile.tasks)}
    if not rows:
        raise InvalidRequestError("the profile and the data have no task in common; profile the model on this data")
    return rows


def _build(
    store: ExpertStore, rows: Mapping[str, Sequence[Row]], profile: Profile, options: CalibrateOptions, *, say: Say
) -> Trainer:
    device, dtype = pick_device(options.device), getattr(torch, options.dtype)
    encoder = PromptEncoder.open(store.folder, vocab_size=vocab_size_of(store), max_context=options.max_context)
    encoding = Encoding(encoder=encoder, eos_token_ids=read_eos_token_ids(store), max_context=options.max_context)
    shape = _shape(store, options)
    _check_memory(store, shape, options, device, dtype, say=say)
    model = open_model(store.folder, device=device, dtype=dtype)
    calibration = _new_calibration(shape, store, model, seed=options.seed).to(device)
    return Trainer(
        student=StudentModel(model, family_of(store.family), calibration),
        calibration=calibration,
        dealer=Dealer(rows, encoding, seed=options.seed),
        masks=MaskDrawer(task_frequencies(profile, list(rows)), store.grid, options.masks),
        grid=store.grid,
        schedule=options.schedule,
        budget=_budget(options),
        device=device,
        seed=options.seed,
    )


def _shape(store: ExpertStore, options: CalibrateOptions) -> CalibrationShape:
    try:
        return CalibrationShape(
            parts=tuple(part for part in PARTS if part in options.parts) or options.parts,
            standin_width=(options.standin_width or expert_width(store)) if STANDIN in options.parts else 0,
            gate_rank=options.gate_rank if GATE in options.parts else 0,
            linear_rank=options.linear_rank if LINEAR in options.parts else 0,
        )
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error


def _check_memory(
    store: ExpertStore,
    shape: CalibrationShape,
    options: CalibrateOptions,
    device: torch.device,
    dtype: torch.dtype,
    *,
    say: Say,
) -> None:
    # The last example may reach over a batch's end by all but a token.
    longest = options.schedule.tokens_per_batch + options.max_context
    needed = estimate_bytes(store, shape, tokens_per_batch=longest, dtype=dtype)
    say(f"calibrating {store.folder} takes about {needed / 2**30:.1f} GiB of memory, on {device}")
    check_memory(needed, device, shown=str(store.folder))


def _new_calibration(shape: CalibrationShape, store: ExpertStore, model: Any, *, seed: int) -> Calibration:
    sizes = {name: (linear.in_features, linear.out_features) for name, linear in dense_linears(model).items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Calibration(
            shape,
            moe_layers=store.grid.moe_layers,
            hidden_size=model.config.hidden_size,
            num_experts=store.grid.rule.num_experts,
            sizes=sizes,
        )


def _budget(options: CalibrateOptions) -> Budget:
    if options.tokens is None and options.minutes is None:
        return Budget(tokens=DEFAULT_TOKENS)
    return Budget(tokens=options.tokens, minutes=options.minutes)


def _sign(options: CalibrateOptions, store: ExpertStore, fingerprint: str, data: Path, tasks: tuple[str, ...]) -> str:
    fields = {name: value for name, value in dataclasses.asdict(options).items() if name not in NOT_SIGNED}
    named = json.dumps([fields, store.digest, fingerprint, str(data.resolve()), tasks], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()


def _report(output: Path, store: ExpertStore, trainer: Trainer) -> CalibrationReport:
    progress = trainer.progress
    info = read_calibration_info(output, digest=store.digest, fingerprint=store.fingerprint())
    assert info is not None, "it was just written"
    return CalibrationReport(
        path=str(output),
        num_bytes=info.num_bytes,
        num_slots=info.num_bytes / slot_bytes(store.grid),
        num_parameters=trainer.calibration.num_parameters,
        **dataclasses.asdict(progress),
    )
