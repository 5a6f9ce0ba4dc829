"""Where the model that ships lies: the same folder for the command, the loader and the worker."""

from __future__ import annotations

from pathlib import Path

import emoe
from emoe.core.errors import CheckpointError

SHIPPED_MODEL = "emoe-tiny"
MODEL_MARKER = "config.json"


def shipped_model() -> Path:
    """Beside the sources in a checkout, inside the package in an installed wheel."""
    package = Path(emoe.__file__).resolve().parent
    places = (package.parents[1] / "models" / SHIPPED_MODEL, package / "_models" / SHIPPED_MODEL)
    for place in places:
        if (place / MODEL_MARKER).is_file():
            return place
    raise CheckpointError(
        f"the model that ships ({SHIPPED_MODEL}) is in neither {' nor '.join(map(str, places))}; give a model of yours"
    )
