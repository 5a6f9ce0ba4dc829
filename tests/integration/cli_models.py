"""A small random model with a tokenizer, as the command's tests serve it."""

from __future__ import annotations

import json
from pathlib import Path

from support import checkpoints


def save_small_model(folder: Path) -> Path:
    """Three layers of eight experts; a token is a byte, and none ends the answer."""
    checkpoints.save_with_tokenizer("qwen2_moe", folder)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"eos_token_id": None}))
    return folder
