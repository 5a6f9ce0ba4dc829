"""Which weight files a checkpoint folder has, by their published names.

As transformers does: `model.safetensors` when it is there, else the files that `model.safetensors.index.json` names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from emoe.core.errors import CheckpointError
from emoe.store.strict_json import parse_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shards:
    """`weight_map` says which file holds each key; None when there is one file only. `source` lists the keys."""

    source: Path
    files: tuple[str, ...]
    weight_map: Mapping[str, str] | None

    def who_names(self, file: str) -> str:
        """Why `file` belongs to the checkpoint: for a message about its absence."""
        keys = [key for key, holder in (self.weight_map or {}).items() if holder == file]
        return (
            f"{self.source.name} places {len(keys)} keys in it, {keys[0]} among them" if keys else "it holds all keys"
        )


def find_shards(folder: Path) -> Shards:
    single = folder / SINGLE_FILE
    if single.exists() or single.is_symlink():
        return Shards(source=single, files=(SINGLE_FILE,), weight_map=None)
    path = folder / INDEX_FILE
    try:
        weight_map = parse_weight_map(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}; emoe reads safetensors only: fetch those files, "
            "or save the model again with transformers' save_pretrained"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); make it readable") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid ({error}); fetch the file again") from error
    return Shards(source=path, files=tuple(sorted(set(weight_map.values()))), weight_map=weight_map)


def parse_weight_map(raw: bytes) -> dict[str, str]:
    weight_map = parse_object(raw).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("weight_map is missing or empty")
    seen: set[str] = set()
    for key, file in weight_map.items():
        if not isinstance(file, str) or (file not in seen and not _is_plain_name(file)):
            raise ValueError(f"weight_map places {key} in {file!r}, which is no file of this folder")
        seen.add(file)
    return weight_map


def _is_plain_name(file: str) -> bool:
    """A name and nothing else: an index must not lead out of its folder."""
    return file not in {"", ".", ".."} and PurePosixPath(file).name == file and "\0" not in file
