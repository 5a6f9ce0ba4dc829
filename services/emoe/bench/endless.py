"""A view of a checkpoint whose answers never end by themselves: links to its files, and no end-of-answer token.

Answers of different lengths cannot be compared, and not every way to an engine that is measured has `ignore_eos`.
"""

from __future__ import annotations

import json
from pathlib import Path

GENERATION_CONFIG = "generation_config.json"


def link_endless(model: Path, folder: Path) -> Path:
    """Fills `folder`, which is empty, and returns it. config.json stays as it is: the model's digest too."""
    for path in model.resolve().iterdir():
        # What emoe keeps beside a checkpoint has a leading dot, and would be written through the link.
        if path.is_file() and not path.name.startswith(".") and path.name != GENERATION_CONFIG:
            (folder / path.name).symlink_to(path)
    published = model / GENERATION_CONFIG
    settings = json.loads(published.read_text()) if published.exists() else {}
    (folder / GENERATION_CONFIG).write_text(json.dumps(settings | {"eos_token_id": None}))
    return folder
