"""The task profile of a model: one readable file beside it, made by `emoe profile`.

How often each task routes to each expert, how long its prompts and answers are, and which layers its answers depend
on. Loader, predictor, scheduler and evaluations begin from it. What was trained lies in a file beside it, which it
names with its checksum. Parsing is strict: a profile that does not fit is an error that says why, never half used.
L layers, E experts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emoe.core.errors import CheckpointError, InvalidRequestError
from emoe.core.experts import FloatGrid
from emoe.core.tasks import parse_task_name
from emoe.store.strict_json import parse_object

PROFILE_FILE = "emoe-profile.json"
LEARNED_FILE = "emoe-profile.safetensors"
CALIBRATION_FILE = "emoe-calibration.safetensors"
FORMAT = "emoe profile 1"
DECIMALS = 6
"""Of a frequency as written: a millionth is far below what counting can tell."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens: of prompts, or of answers with their end."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What random routing does to a task's answers. Entry n: with the first n + 1 MoE layers, from the input side,
    routed at random, in the order of `moe_layers` (eMoE section 4.3)."""

    similarity: tuple[float, ...]
    """Mean cosine of the last hidden states' means, against the undisturbed model's."""
    perplexity_ratio: tuple[float, ...]

    def sensitive_layers(self, threshold: float) -> npt.NDArray[np.bool_]:
        """[number of MoE layers]: s of eMoE's equation. Insensitive is a layer whose randomisation leaves similarity at
        or above `threshold`, as in the paper, and perplexity at or below its inverse: means of hidden states alone
        stay similar where the tokens' likelihoods have long gone."""
        kept = zip(self.similarity, self.perplexity_ratio, strict=True)
        return np.array([value < threshold or ratio > 1 / threshold for value, ratio in kept], dtype=np.bool_)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TaskProfile:
    num_requests: int
    num_tokens: int
    prompt_tokens: Lengths
    answer_tokens: Lengths
    prompt_frequencies: FloatGrid
    """[L, E], rows of MoE layers sum to one, others are zero: of the prompts' tokens."""
    answer_frequencies: FloatGrid
    """[L, E]: of the answers' tokens."""
    sensitivity: Sensitivity | None = None

    @property
    def routed_frequencies(self) -> FloatGrid:
        """[L, E]: of all tokens of a mean request, prompt and answer alike: the f of eMoE's equation 1."""
        prompt, answer = self.prompt_tokens.mean, self.answer_tokens.mean
        if prompt + answer == 0:
            return self.answer_frequencies
        return (prompt * self.prompt_frequencies + answer * self.answer_frequencies) / (prompt + answer)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Profile:
    """`digest` and `fingerprint` name the weights it was made from; `learned_sha256` the file of what was trained."""

    family: str
    digest: str
    fingerprint: str
    shape: tuple[int, int]
    moe_layers: tuple[int, ...]
    tasks: Mapping[str, TaskProfile]
    sensitivity_threshold: float = 0.85
    learned_sha256: str | None = None
    made: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """For people: what it was made from, and by which version."""

    def sensitive(self, task: str) -> npt.NDArray[np.float64]:
        """[L]: s of eMoE's equation 1, per layer; ones where it was not measured or the task is not profiled."""
        weights = np.ones(self.shape[0])
        profile = self.tasks.get(task)
        if profile is not None and profile.sensitivity is not None:
            weights[list(self.moe_layers)] = profile.sensitivity.sensitive_layers(self.sensitivity_threshold)
        return weights


def render_profile(profile: Profile) -> bytes:
    """As the file has it; the same profile gives the same bytes."""
    tasks = {name: _render_task(task) for name, task in sorted(profile.tasks.items())}
    fields = {
        "format": FORMAT,
        "model": {"family": profile.family, "digest": profile.digest, "fingerprint": profile.fingerprint},
        "grid": {"shape": list(profile.shape), "moe_layers": list(profile.moe_layers)},
        "made": dict(profile.made),
        "sensitivity_threshold": profile.sensitivity_threshold,
        "learned": None if profile.learned_sha256 is None else {"file": LEARNED_FILE, "sha256": profile.learned_sha256},
        "tasks": tasks,
    }
    return (json.dumps(fields, indent=1, allow_nan=False).replace("\n     ", " ") + "\n").encode()


def parse_profile(raw: bytes) -> Profile:
    """ValueError says what is wrong with it."""
    fields = parse_object(raw)
    if fields.get("format") != FORMAT:
        raise ValueError(f"its format is {fields.get('format')!r}, this version reads {FORMAT!r}")
    try:
        return _parse(fields)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"it lacks a field or has one of the wrong kind ({error!r})") from error


def read_profile(folder: Path, *, digest: str, fingerprint: str) -> Profile | None:
    """The profile beside a model, or None where there is none. CheckpointError when it is damaged or another model's.

    `digest` and `fingerprint` are `ExpertStore`'s.
    """
    path = folder / PROFILE_FILE
    try:
        profile = parse_profile(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); make it readable, or remove it") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; make it anew with `emoe profile`, or remove it") from error
    if (profile.digest, profile.fingerprint) != (digest, fingerprint):
        raise CheckpointError(
            f"{path} was made from other weights (digest {profile.digest[:12]} and fingerprint "
            f"{profile.fingerprint[:12]}; these have {digest[:12]} and {fingerprint[:12]}): make it anew with "
            "`emoe profile`, or remove it"
        )
    return profile


def read_learned(folder: Path, profile: Profile) -> bytes | None:
    """The bytes of what was trained with the profile; None where nothing was. CheckpointError when they differ."""
    if profile.learned_sha256 is None:
        return None
    path = folder / LEARNED_FILE
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}), and {PROFILE_FILE} names it") from error
    if hashlib.sha256(stored).hexdigest() != profile.learned_sha256:
        raise CheckpointError(f"{path} is not the one that {PROFILE_FILE} names; make both anew with `emoe profile`")
    return stored


def write_profile(folder: Path, profile: Profile, learned: bytes | None) -> None:
    """Both files in one step each, the profile last: it names the other. InvalidRequestError where they cannot be."""
    try:
        if learned is not None:
            _replace(folder / LEARNED_FILE, learned)
        _replace(folder / PROFILE_FILE, render_profile(profile))
        if learned is None:
            (folder / LEARNED_FILE).unlink(missing_ok=True)
    except OSError as error:
        where = f"{folder}: cannot be written to ({error.strerror})"
        raise InvalidRequestError(f"{where}; make room, or name another folder") from error


def _replace(path: Path, raw: bytes) -> None:
    """On the disk before it takes the name."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _render_task(task: TaskProfile) -> dict[str, Any]:
    sensitivity = task.sensitivity
    return {
        "num_requests": task.num_requests,
        "num_tokens": task.num_tokens,
        "prompt_tokens": dataclasses.asdict(task.prompt_tokens),
        "answer_tokens": dataclasses.asdict(task.answer_tokens),
        "sensitivity": sensitivity and dataclasses.asdict(sensitivity),
        "prompt_frequencies": task.prompt_frequencies.round(DECIMALS).tolist(),
        "answer_frequencies": task.answer_frequencies.round(DECIMALS).tolist(),
    }


def _parse(fields: Mapping[str, Any]) -> Profile:
    num_layers, num_experts = (int(side) for side in fields["grid"]["shape"])
    moe_layers = tuple(int(layer) for layer in fields["grid"]["moe_layers"])
    if not moe_layers or list(moe_layers) != sorted(set(moe_layers) & set(range(num_layers))):
        raise ValueError(f"its MoE layers {moe_layers} are not in order, or not among {num_layers} layers")
    threshold = float(fields["sensitivity_threshold"])
    if not 0 < threshold <= 1 or not fields["tasks"]:
        raise ValueError(f"it has no task, or its threshold {threshold} is no share")
    shape = (num_layers, num_experts)
    learned = fields["learned"]
    return Profile(
        family=str(fields["model"]["family"]),
        digest=str(fields["model"]["digest"]),
        fingerprint=str(fields["model"]["fingerprint"]),
        shape=shape,
        moe_layers=moe_layers,
        tasks={parse_task_name(name): _parse_task(task, shape, moe_layers) for name, task in fields["tasks"].items()},
        sensitivity_threshold=threshold,
        learned_sha256=None if learned is None else str(learned["sha256"]),
        made=dict(fields["made"]),
    )


def _parse_task(task: Mapping[str, Any], shape: tuple[int, int], moe_layers: tuple[int, ...]) -> TaskProfile:
    stored = task["sensitivity"]
    sensitivity = stored and Sensitivity(
        similarity=tuple(map(float, stored["similarity"])),
        perplexity_ratio=tuple(map(float, stored["perplexity_ratio"])),
    )
    if sensitivity and {len(sensitivity.similarity), len(sensitivity.perplexity_ratio)} != {len(moe_layers)}:
        raise ValueError(f"it has {len(sensitivity.similarity)} sensitivities for {len(moe_layers)} MoE layers")
    if sensitivity and not np.isfinite([*sensitivity.similarity, *sensitivity.perplexity_ratio]).all():
        raise ValueError("a sensitivity is not finite")
    return TaskProfile(
        num_requests=int(task["num_requests"]),
        num_tokens=int(task["num_tokens"]),
        prompt_tokens=_parse_lengths(task["prompt_tokens"]),
        answer_tokens=_parse_lengths(task["answer_tokens"]),
        prompt_frequencies=_parse_frequencies(task["prompt_frequencies"], shape, moe_layers),
        answer_frequencies=_parse_frequencies(task["answer_frequencies"], shape, moe_layers),
        sensitivity=sensitivity or None,
    )


def _parse_lengths(stored: Mapping[str, Any]) -> Lengths:
    lengths = Lengths(**{name: float(value) for name, value in stored.items()})
    if not all(math.isfinite(value) and value >= 0 for value in dataclasses.astuple(lengths)):
        raise ValueError(f"lengths {dict(stored)} are not numbers of tokens")
    return lengths


def _parse_frequencies(rows: Any, shape: tuple[int, int], moe_layers: tuple[int, ...]) -> FloatGrid:
    """Rows are brought back to a sum of one exactly: what was written is rounded."""
    grid = np.array(rows, dtype=np.float64)
    if grid.shape != shape:
        raise ValueError(f"frequencies have shape {grid.shape}, its grid is {shape}")
    sums = grid[list(moe_layers)].sum(axis=1)
    if not (np.isfinite(grid).all() and (grid >= 0).all() and np.allclose(sums, 1, atol=1e-3)):
        raise ValueError("a row of frequencies is negative, not finite or does not sum to one")
    parsed = np.zeros(shape)
    parsed[list(moe_layers)] = grid[list(moe_layers)] / sums[:, None]
    return parsed
