"""`emoe profile`: runs training rows, keeps what they route, measures sensitivity, trains, and writes the profile.

Every row that was measured is kept at once; interrupted, the same call goes on with the rows that are missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from emoe.core.errors import InvalidRequestError
from emoe.core.experts import ExpertGrid
from emoe.eval.profile import split_frequencies
from emoe.eval.recording import record_routing
from emoe.eval.rows import EncodedRow, Row, encode_rows, read_rows
from emoe.eval.scoring import ScoringModel
from emoe.runtime.cpus import usable_cpus
from emoe.store.learned import write_arrays
from emoe.store.profile import Profile, TaskProfile, read_profile, write_profile
from emoe.store.store import ExpertStore
from emoe.train.journal import Journal
from emoe.train.learning import learn
from emoe.train.lengths import measure_lengths
from emoe.train.progress import Progress
from emoe.train.sensitivity import measure_rows, summarise_rows
from emoe.train.work import ROUTING, SENSITIVITY, Results, RowKey, Work
from emoe.worker.device import bound_kernel_cache, pick_device

Say = Callable[[str], None]
Rows = Mapping[str, Sequence[EncodedRow]]

SPLIT = "train"
WORK_FILE = ".emoe-profile.partial"
STEP_TOKENS = 4096
KV_ROWS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """`num_rows` of each task are counted, the first of the training split; `num_sensitivity_rows` of these are
    misrouted, none where it is 0. `tasks`: all that the data has, where empty."""

    num_rows: int = 200
    tasks: tuple[str, ...] = ()
    num_sensitivity_rows: int = 16
    sensitivity_threshold: float = 0.85
    expert_memory: str = "100%"
    max_context: int = 1024
    threads: int | None = None
    device: str = "auto"
    seed: int = 0


def make_profile(folder: Path, data: Path, out: Path, options: ProfileOptions, *, say: Say) -> Profile:
    """Writes both files into `out`. InvalidRequestError when the data has no rows that fit."""
    bound_kernel_cache()
    torch.set_num_threads(options.threads or usable_cpus())
    texts = _pick(read_rows(data, SPLIT, max_rows=options.num_rows), data / SPLIT, options.tasks)
    with ExpertStore.open(folder) as store:
        digest, fingerprint, family = store.digest, store.fingerprint(), store.family
    say(f"opening {folder}")
    with ScoringModel.open(
        folder,
        expert_memory=options.expert_memory,
        max_context=options.max_context,
        num_rows=KV_ROWS,
        step_tokens=max(STEP_TOKENS, options.max_context),
        device=str(pick_device(options.device)),
    ) as model:
        grid, rows = model.grid, encode_rows(model, texts)
        _check(rows, data / SPLIT, options)
        made = _describe(rows, options)
        identity = {"weights": fingerprint, "rows": str(made["rows_sha256"]), "options": _name(options)}
        with Journal.open(out / WORK_FILE, identity, say=say) as journal:
            work = Work(journal)
            _measure(model, rows, work, options, say=say)
            results = work.results()
            learned = write_arrays(learn(results.routing, grid, seed=options.seed, say=say))
            profile = Profile(
                family=family,
                digest=digest,
                fingerprint=fingerprint,
                shape=grid.shape,
                moe_layers=grid.moe_layers,
                tasks={task: _describe_task(task, results, grid) for task in rows},
                sensitivity_threshold=options.sensitivity_threshold,
                learned_sha256=hashlib.sha256(learned).hexdigest(),
                made=made,
            )
            write_profile(out, profile, learned)
            journal.remove()
    return profile


def find_profile(folder: Path, out: Path) -> Profile | None:
    """The one in `out`, if there is one, of the model in `folder`. CheckpointError where it is another model's."""
    with ExpertStore.open(folder) as store:
        return read_profile(out, digest=store.digest, fingerprint=store.fingerprint())


def _measure(model: ScoringModel, rows: Rows, work: Work, options: ProfileOptions, *, say: Say) -> None:
    done = work.done()
    missing = _missing(rows, ROUTING, done)
    total = sum(map(len, rows.values()))
    progress = Progress("rows counted", total, num_kept=total - sum(map(len, missing.values())), say=say)
    for part in missing.values():
        numbers = iter(part)
        for step in record_routing(model, list(part.values())):
            for row in step:
                work.keep_routing(next(numbers), row)
            progress.advance(len(step))
    chosen = {task: part[: options.num_sensitivity_rows] for task, part in rows.items()}
    missing, total = _missing(chosen, SENSITIVITY, done), sum(map(len, chosen.values()))
    progress = Progress("rows misrouted", total, num_kept=total - sum(map(len, missing.values())), say=say)
    for task, part in missing.items():
        for number, found in measure_rows(model, part, seed=options.seed):
            work.keep_sensitivity(task, number, found)
            progress.advance(1)


def _missing(rows: Rows, kind: str, done: set[RowKey]) -> dict[str, dict[int, EncodedRow]]:
    return {
        task: {number: row for number, row in enumerate(part) if (kind, task, number) not in done}
        for task, part in rows.items()
    }


def _describe_task(task: str, results: Results, grid: ExpertGrid) -> TaskProfile:
    rows = [row for row in results.routing if row.task == task]
    prompts, answers = split_frequencies(rows, grid)
    return TaskProfile(
        num_requests=len(rows),
        num_tokens=sum(len(row.ids) for row in rows),
        prompt_tokens=measure_lengths([row.num_prompt_tokens for row in rows]),
        answer_tokens=measure_lengths([row.num_response_tokens for row in rows]),
        prompt_frequencies=prompts,
        answer_frequencies=answers,
        sensitivity=summarise_rows(results.sensitivity.get(task, ())),
    )


def _describe(rows: Rows, options: ProfileOptions) -> dict[str, str | int]:
    """For people, and to tell another run's work: nothing of this machine."""
    hashed = hashlib.sha256()
    for task, part in sorted(rows.items()):
        hashed.update(json.dumps([task, [(row.num_prompt_tokens, row.token_ids) for row in part]]).encode())
    return {
        "by": f"emoe {importlib.metadata.version('emoe')}",
        "rows_sha256": hashed.hexdigest(),
        "max_context": options.max_context,
        "seed": options.seed,
    }


def _name(options: ProfileOptions) -> str:
    """Of the options, those that what is measured hangs on and the rows do not show."""
    return f"seed {options.seed}, {options.num_sensitivity_rows} rows misrouted"


def _pick(texts: dict[str, list[Row]], folder: Path, tasks: Sequence[str]) -> dict[str, list[Row]]:
    unknown = sorted(set(tasks) - set(texts))
    if unknown:
        raise InvalidRequestError(f"{folder} has no {', '.join(unknown)}; it has {', '.join(texts)}")
    return {task: part for task, part in texts.items() if not tasks or task in tasks}


def _check(rows: Rows, folder: Path, options: ProfileOptions) -> None:
    empty = [task for task, part in rows.items() if not part]
    if empty:
        raise InvalidRequestError(
            f"{folder}: no row of {', '.join(empty)} fits {options.max_context} tokens; raise --max-context, or leave "
            "the task out with --task"
        )
