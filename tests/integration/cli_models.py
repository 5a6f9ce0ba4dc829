"""A small random model with a tokenizer, as the command's tests serve it."""

from __future__ import annotations

from pathlib import Path

from support import checkpoints
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>"]


def save_small_model(folder: Path) -> Path:
    """Three layers of eight experts; a token is a letter."""
    checkpoints.save("qwen2_moe", folder)
    letters = {letter: index for index, letter in enumerate([*SPECIAL_TOKENS, *map(chr, range(32, 120))])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)
    return folder
