"""Where things lie on this machine: the model that ships, and the folder that `emoe up` keeps its state in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import emoe
from emoe.core.errors import CheckpointError

SHIPPED_MODEL = "emoe-tiny"
MODEL_MARKER = "config.json"


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


def shipped_model() -> Path:
    """Beside the sources in a checkout, inside the package in an installed wheel."""
    package = Path(emoe.__file__).resolve().parent
    places = (package.parents[1] / "models" / SHIPPED_MODEL, package / "_models" / SHIPPED_MODEL)
    for place in places:
        if (place / MODEL_MARKER).is_file():
            return place
    raise CheckpointError(
        f"the model that ships ({SHIPPED_MODEL}) is in neither {' nor '.join(map(str, places))}; give --model a folder"
    )
