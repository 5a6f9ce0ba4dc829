"""Where things lie on this machine: the model that ships, and the folder that `emoe up` keeps its state in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from emoe.core.errors import CheckpointError
from emoe.store.shipped import MODEL_MARKER, shipped_model


def default_state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """$XDG_STATE_HOME/emoe, as the XDG base directory specification has it: a relative value does not count."""
    configured = Path(environment.get("XDG_STATE_HOME", ""))
    base = configured if configured.is_absolute() else Path.home() / ".local" / "state"
    return base / "emoe"


def resolve_model(model: Path | None) -> Path:
    """`model` as an absolute path, or the model that ships. CheckpointError if there is none."""
    if model is None:
        return shipped_model()
    if not (model / MODEL_MARKER).is_file():
        raise CheckpointError(f"{model} is not a checkpoint folder: it has no {MODEL_MARKER}; give --model a folder")
    return model.resolve()
