"""config.json of a checkpoint folder, and typed answers out of it.

Read first of all: a family that cannot be served is refused from here, before any weight file is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from emoe.core.errors import CheckpointError
from emoe.store.strict_json import parse_object

MAX_COUNT = 1 << 20
"""No layer, expert or width of a model that could exist is larger; it keeps a corrupt number from filling memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    path: Path
    values: Mapping[str, object]

    @classmethod
    def read(cls, folder: Path) -> Config:
        path = folder / "config.json"
        try:
            return cls(path=path, values=parse_object(path.read_bytes()))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{path}: missing; give the folder of a Hugging Face checkpoint, with all its files"
            ) from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}); make it readable") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: not valid ({error}); fetch the file again") from error

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str) or not value:
            raise self.error(key, "a name", value)
        return value

    def count(self, *keys: str, default: int | None = None, minimum: int = 1) -> int:
        """The first of `keys` that is set; `default` when none is."""
        key = next((key for key in keys if self.values.get(key) is not None), keys[0])
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not minimum <= value <= MAX_COUNT:
            raise self.error(" or ".join(keys) if value is None else key, f"a whole number from {minimum}", value)
        return value

    def counts(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers; empty when it is not set."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.error(key, "a list of whole numbers", value)
        return tuple(value)

    def error(self, key: str, expected: str, value: object) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {key} must be {expected}, not {value!r:.80}; fetch the file again as it was published"
        )
