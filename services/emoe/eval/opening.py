"""Opens what an evaluation runs on: the model with its calibration, what is learnt beforehand, the rows to judge."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from emoe.bench.machine import describe_machine
from emoe.bench.rows import Machine
from emoe.core.errors import InvalidRequestError
from emoe.eval.harness import Conditions, Harness, Rows, Say
from emoe.eval.learnt import learn, load_profile
from emoe.eval.rows import encode_rows, read_rows
from emoe.eval.scoring import ScoringModel
from emoe.eval.strategies import Variant
from emoe.runtime.cpus import usable_cpus
from emoe.store.profile import CALIBRATION_FILE
from emoe.worker.device import bound_kernel_cache, pick_device

TRAIN_SPLIT, TEST_SPLIT = "train", "test"
STEP_TOKENS = 4096
MIN_KV_ROWS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """`num_rows` of each task are judged, `num_profile_rows` of each learnt from: the first of their splits.

    `profile`: a file, "none", or None for the one beside the model; where there is none, training rows are learnt from.
    """

    num_rows: int = 100
    num_profile_rows: int = 100
    profile: str | None = None
    calibration: Path | None = None
    """None: the one beside the model."""
    expert_memory: str = "100%"
    max_context: int = 1024
    threads: int | None = None
    device: str = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Where figures come from."""

    model: str
    family: str
    profile: str
    calibration_slots: float
    machine: Machine
    options: RunOptions
    num_rows: dict[str, int]
    """Judged, of each task."""


@contextlib.contextmanager
def open_harness(
    folder: Path,
    data: Path,
    options: RunOptions,
    *,
    variants: Sequence[Variant],
    conditions: Conditions,
    say: Say,
) -> Iterator[tuple[Harness, Origin]]:
    """The model, with what `variants` need learnt and the rows run with all experts resident."""
    bound_kernel_cache()
    torch.set_num_threads(options.threads or usable_cpus())
    learnt = load_profile(folder, options.profile, say=say)
    wants_memory = any(variant.kind.needs_memory for variant in variants)
    splits = {TEST_SPLIT: options.num_rows}
    if wants_memory or learnt is None:
        splits[TRAIN_SPLIT] = options.num_profile_rows
    rows = {split: read_rows(data, split, max_rows=num) for split, num in splits.items()}
    with _open_model(folder, options, variants, conditions, say) as model:
        encoded = {split: encode_rows(model, part) for split, part in rows.items()}
        for split, part in encoded.items():
            _check(part, data / split, options)
        if TRAIN_SPLIT in encoded or learnt is None:
            train = encoded[TRAIN_SPLIT]
            learnt = learn(model, train, learnt, seed=conditions.seed, wants_memory=wants_memory, say=say)
        test = encoded[TEST_SPLIT]
        harness = Harness.open(
            model, test, profile=learnt.profile, memory=learnt.memory, conditions=conditions, say=say
        )
        origin = Origin(
            model=str(folder),
            family=model.family,
            profile=learnt.source,
            calibration_slots=model.calibration_slots,
            machine=describe_machine(threads=options.threads),
            options=options,
            num_rows={task: len(part) for task, part in test.items()},
        )
        yield harness, origin


def _open_model(
    folder: Path, options: RunOptions, variants: Sequence[Variant], conditions: Conditions, say: Say
) -> contextlib.AbstractContextManager[ScoringModel]:
    calibration = _pick_calibration(folder, options, variants)
    say(f"opening {folder}")
    return ScoringModel.open(
        folder,
        expert_memory=options.expert_memory,
        max_context=options.max_context,
        num_rows=max(MIN_KV_ROWS, conditions.num_together),
        step_tokens=STEP_TOKENS,
        device=str(pick_device(options.device)),
        calibration=calibration,
    )


def find_calibration(folder: Path, options: RunOptions) -> Path | None:
    """The one named, or the one beside the model where there is one."""
    beside = folder / CALIBRATION_FILE
    return options.calibration or (beside if beside.is_file() else None)


def _pick_calibration(folder: Path, options: RunOptions, variants: Sequence[Variant]) -> Path | None:
    names = [variant.name for variant in variants if variant.calibrated]
    path = find_calibration(folder, options)
    if names and path is None:
        raise InvalidRequestError(
            f"{names[0]} needs {folder / CALIBRATION_FILE}, which is not there; make it with `emoe profile --calibrate`"
        )
    return path if names else None


def _check(rows: Rows, folder: Path, options: RunOptions) -> None:
    empty = [task for task, part in rows.items() if not part]
    if empty:
        raise InvalidRequestError(
            f"{folder}: no row of {', '.join(empty)} fits {options.max_context} tokens; raise --max-context"
        )
