"""`emoe eval --data`: opens the model and the rows, judges every strategy, and says where and how it was done."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from emoe.bench.machine import describe_machine
from emoe.bench.rows import Machine
from emoe.core.errors import InvalidRequestError
from emoe.eval.quality import QualityRow, QualitySettings, Rows, Say, evaluate_quality
from emoe.eval.rows import encode_rows, read_rows
from emoe.eval.scoring import ScoringModel
from emoe.worker.device import bound_kernel_cache, pick_device, usable_cpus

TRAIN_SPLIT, TEST_SPLIT = "train", "test"
STEP_TOKENS = 4096
MIN_KV_ROWS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """`num_rows` of each task are judged, `num_profile_rows` of each learnt from: the first of their splits."""

    num_rows: int = 100
    num_profile_rows: int = 100
    expert_memory: str = "100%"
    max_context: int = 1024
    threads: int | None = None
    device: str = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityReport:
    model: str
    family: str
    machine: Machine
    options: RunOptions
    settings: QualitySettings
    num_rows: dict[str, int]
    """Judged, of each task."""
    rows: tuple[QualityRow, ...]


def run_quality(folder: Path, data: Path, settings: QualitySettings, options: RunOptions, *, say: Say) -> QualityReport:
    """InvalidRequestError when the data has no rows that fit."""
    bound_kernel_cache()
    torch.set_num_threads(options.threads or usable_cpus())
    splits = {
        split: read_rows(data, split, max_rows=num)
        for split, num in ((TRAIN_SPLIT, options.num_profile_rows), (TEST_SPLIT, options.num_rows))
    }
    say(f"opening {folder}")
    with ScoringModel.open(
        folder,
        expert_memory=options.expert_memory,
        max_context=options.max_context,
        num_rows=max(MIN_KV_ROWS, settings.num_together),
        step_tokens=STEP_TOKENS,
        device=str(pick_device(options.device)),
    ) as model:
        profiled, judged = (encode_rows(model, rows) for rows in splits.values())
        for split, rows in ((TRAIN_SPLIT, profiled), (TEST_SPLIT, judged)):
            _check(rows, data / split, options)
        return QualityReport(
            model=str(folder),
            family=model.family,
            machine=describe_machine(threads=options.threads),
            options=options,
            settings=settings,
            num_rows={task: len(part) for task, part in judged.items()},
            rows=tuple(evaluate_quality(model, profiled, judged, settings, say=say)),
        )


def _check(rows: Rows, folder: Path, options: RunOptions) -> None:
    empty = [task for task, part in rows.items() if not part]
    if empty:
        raise InvalidRequestError(
            f"{folder}: no row of {', '.join(empty)} fits {options.max_context} tokens; raise --max-context"
        )
