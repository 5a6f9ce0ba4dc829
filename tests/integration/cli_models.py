"""A small random model with a tokenizer, as the command's tests serve it."""

from __future__ import annotations

import json
from pathlib import Path

from support import checkpoints
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# As many as the model has logits, so that whatever it draws is a letter that can be seen.
LETTERS = [*map(chr, range(33, 127)), "é", "ü"]


def save_small_model(folder: Path) -> Path:
    """Three layers of eight experts; a token is a letter, and none ends the answer."""
    checkpoints.save("qwen2_moe", folder)
    tokenizer = Tokenizer(models.WordLevel({letter: index for index, letter in enumerate(LETTERS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"eos_token_id": None}))
    return folder
