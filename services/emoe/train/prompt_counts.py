"""Where the counts of single prompts come from: a model that runs them here, or recorded routing of one too large."""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emoe.core.experts import CountGrid, ExpertGrid, RoutingRule
from emoe.core.tasks import parse_task_name
from emoe.eval.recorded import RecordedPrompt, RecordedRouting
from emoe.eval.rows import encode_rows, read_rows
from emoe.eval.scoring import ScoringModel
from emoe.eval.strategies import AllResident
from emoe.eval.streams import Running, Stream, run_streams
from emoe.train.sequence_data import PromptCounts

Say = Callable[[str], None]
SPLITS = TRAIN, TEST = "train", "test"
KV_ROWS, STEP_TOKENS, PIECE_TOKENS = 64, 4096, 256
SAY_EVERY = 200


def count_data(
    folder: Path, data: Path, *, num_rows: dict[str, int], max_context: int, say: Say
) -> tuple[ExpertGrid, dict[str, list[PromptCounts]]]:
    """Prompts and reference answers of DATA/SPLIT, `num_rows` of each task a split, with all experts resident."""
    counted: dict[str, list[PromptCounts]] = {}
    say(f"opening {folder}")
    with ScoringModel.open(
        folder,
        expert_memory="100%",
        max_context=max_context,
        num_rows=KV_ROWS,
        step_tokens=STEP_TOKENS,
        device="cpu",
    ) as model:
        for split, num in num_rows.items():
            rows = encode_rows(model, read_rows(data, split, max_rows=num))
            streams = [Stream(requests=[Running(row=row, task=row.task)]) for part in rows.values() for row in part]
            counted[split] = []
            for request in run_streams(model, streams, AllResident(), refresh_tokens=PIECE_TOKENS):
                counted[split].append(PromptCounts(task=request.task, counts=request.wanted))
                if len(counted[split]) % SAY_EVERY == 0:
                    say(f"{split}: {len(counted[split])} of {len(streams)} prompts counted")
        return model.grid, counted


def count_recorded(
    routing: RecordedRouting, *, held_out_ratio: float, seed: int
) -> tuple[ExpertGrid, dict[str, list[PromptCounts]]]:
    """Answers alone: that is what was recorded. Split by prompt, each category alike."""
    random = np.random.default_rng(seed)
    counted: dict[str, list[PromptCounts]] = {TRAIN: [], TEST: []}
    for category in sorted({prompt.category for prompt in routing.prompts}):
        own = [prompt for prompt in routing.prompts if prompt.category == category]
        for rank, place in enumerate(random.permutation(len(own))):
            # A category's n prompts hold out n * ratio of them on average, also where n is one.
            held_out = (rank + random.random()) < held_out_ratio * len(own)
            counted[TEST if held_out else TRAIN].append(
                PromptCounts(task=_task_name(category), counts=_count(own[place], routing.num_experts))
            )
    grid = ExpertGrid(
        num_layers=routing.num_layers,
        moe_layers=tuple(range(routing.num_layers)),
        rule=RoutingRule(num_experts=routing.num_experts, top_k=routing.top_k),
        expert_bytes=1,
    )
    return grid, counted


def save_counts(path: Path, grid: ExpertGrid, counted: Mapping[str, Sequence[PromptCounts]]) -> None:
    """One file, so that a comparison can be made again without running the model."""
    arrays: dict[str, Any] = {"grid": np.array(json.dumps(dataclasses.asdict(grid)))}
    for split, prompts in counted.items():
        arrays[f"{split}_tasks"] = np.array([prompt.task for prompt in prompts])
        arrays[f"{split}_counts"] = np.stack([prompt.counts for prompt in prompts])
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_counts(path: Path) -> tuple[ExpertGrid, dict[str, list[PromptCounts]]]:
    """ValueError when it is none of `save_counts`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            fields = json.loads(str(arrays["grid"]))
            counted = {split: _pair(arrays[f"{split}_tasks"], arrays[f"{split}_counts"]) for split in SPLITS}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} has no counts as --counts keeps them: {error}; remove it to count anew") from error
    rule = RoutingRule(**fields.pop("rule"))
    return ExpertGrid(**fields | {"rule": rule, "moe_layers": tuple(fields["moe_layers"])}), counted


def _pair(tasks: npt.NDArray[np.str_], counts: npt.NDArray[np.int64]) -> list[PromptCounts]:
    return [PromptCounts(task=str(task), counts=grid) for task, grid in zip(tasks, counts, strict=True)]


def _task_name(category: str) -> str:
    """As tasks may be called."""
    return parse_task_name("c-" + re.sub("[^a-z0-9_-]+", "-", category.lower())[:60])


def _count(prompt: RecordedPrompt, num_experts: int) -> CountGrid:
    num_layers = prompt.expert_ids.shape[1]
    flat = prompt.expert_ids.astype(np.int64) + num_experts * np.arange(num_layers)[:, None]
    return np.bincount(flat.reshape(-1), minlength=num_layers * num_experts).reshape(num_layers, num_experts)
