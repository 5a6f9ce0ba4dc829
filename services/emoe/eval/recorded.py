"""Recorded routing of a model: which experts each generated token of each prompt chose.

A pair of files: FILE.npz with `expert_ids` [tokens of all prompts, layers, K], and an index with a JSON line a prompt:
`routed_offset`, `n_routed`, and `category` where it is known. Models too large to run here are judged from these.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emoe.core.errors import InvalidRequestError

NPZ_SUFFIX = "_topk.npz"
INDEX_SUFFIXES = ("_index.jsonl.gz", "_index.jsonl")
UNKNOWN_CATEGORY = "unknown"


@dataclasses.dataclass(frozen=True)
class RecordedPrompt:
    """`expert_ids` [T, L, K] of its generated tokens, in their order."""

    category: str
    expert_ids: npt.NDArray[np.integer]

    @property
    def num_tokens(self) -> int:
        return len(self.expert_ids)


@dataclasses.dataclass(frozen=True)
class RecordedRouting:
    num_experts: int
    prompts: tuple[RecordedPrompt, ...]

    @property
    def num_layers(self) -> int:
        return int(self.prompts[0].expert_ids.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.prompts[0].expert_ids.shape[2])


def read_recorded(path: Path, index: Path | None = None, *, num_experts: int | None = None) -> RecordedRouting:
    """Without `num_experts`, as many as were ever chosen. InvalidRequestError names the file and what is wrong."""
    ids = _read_ids(path)
    index = index or _index_beside(path)
    found = int(ids.max(initial=0)) + 1
    if num_experts is not None and num_experts < found:
        raise InvalidRequestError(f"{path} has an expert {found - 1}, but the model is said to have {num_experts}")
    prompts = tuple(
        RecordedPrompt(category, ids[offset : offset + count])
        for category, offset, count in _read_index(index, len(ids))
    )
    if not prompts:
        raise InvalidRequestError(f"{index} names no prompt with routed tokens")
    return RecordedRouting(num_experts or found, prompts)


def _read_ids(path: Path) -> npt.NDArray[np.integer]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids = arrays["expert_ids"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InvalidRequestError(f"{path} is no recorded routing: {error}; it needs an array `expert_ids`") from error
    if ids.ndim != 3 or not np.issubdtype(ids.dtype, np.integer) or not ids.size:
        raise InvalidRequestError(
            f"{path}: `expert_ids` must be integers [tokens, layers, experts a token], not {ids.dtype} {ids.shape}"
        )
    return np.asarray(ids)


def _index_beside(path: Path) -> Path:
    stem = path.name.removesuffix(NPZ_SUFFIX).removesuffix(".npz")
    beside = [path.with_name(stem + suffix) for suffix in INDEX_SUFFIXES]
    for candidate in beside:
        if candidate.exists():
            return candidate
    raise InvalidRequestError(f"{path} has no index: neither {' nor '.join(map(str, beside))} is there; name one")


def _read_index(path: Path, num_tokens: int) -> Iterator[tuple[str, int, int]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            try:
                entry: dict[str, Any] = json.loads(line)
                offset, count = int(entry["routed_offset"]), int(entry["n_routed"])
            except (KeyError, TypeError, ValueError) as error:
                raise InvalidRequestError(f"{where}: needs routed_offset and n_routed ({error!r})") from error
            if offset < 0 or count < 0 or offset + count > num_tokens:
                raise InvalidRequestError(f"{where}: tokens {offset} to {offset + count} of {num_tokens}")
            if count:
                yield str(entry.get("category", UNKNOWN_CATEGORY)), offset, count
