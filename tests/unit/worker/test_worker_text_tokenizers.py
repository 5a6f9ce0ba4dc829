"""Pieces against the whole, with tokenizers as models have them: byte-level BPE, byte fallback, WordPiece."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from emoe.worker.text import TextStream

CORPUS = ["the cat sat on the mat, and the dog did not; naïve café 東京 😀 isn't  it?"] * 8
SPECIAL = ["<eos>", "<turn>"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """As Llama and Mixtral have it: words begin with a mark, unknown characters fall back to bytes."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["▁", "▁the", "▁cat", "▁sat", "s", "a", "t", "e", "▁▁", ",", "é"]
    vocab = {token: number for number, token in enumerate(SPECIAL + byte_tokens + words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token=None))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def word_piece() -> Tokenizer:
    words = ["[UNK]", "the", "cat", "##s", "##at", "dog", "did"]
    tokenizer = Tokenizer(models.WordPiece(vocab={w: i for i, w in enumerate(SPECIAL + words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


TOKENIZERS: dict[str, Any] = {
    build.__name__: PreTrainedTokenizerFast(tokenizer_object=build()) for build in (byte_level, metaspace, word_piece)
}


def chunks(name: str) -> st.SearchStrategy[list[int]]:
    """Any token of a tokenizer; with byte fallback, a torn run of bytes changes what came before it, so whole ones."""
    tokenizer = TOKENIZERS[name]
    one = st.integers(0, len(tokenizer) - 1).map(lambda token_id: [token_id])
    if name != "metaspace":
        return one
    first = tokenizer.convert_tokens_to_ids("<0x00>")
    words = st.sampled_from([i for i in range(len(tokenizer)) if not first <= i < first + 256]).map(lambda i: [i])
    return words | st.characters(codec="utf-8").map(lambda char: [first + byte for byte in char.encode()])


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_pieces_make_what_the_whole_decodes_to(name: str, data: st.DataObject) -> None:
    """Any tokens, as a model may draw them: special tokens in between, runs of spaces, characters in several tokens."""
    tokenizer = TOKENIZERS[name]
    token_ids = list(itertools.chain.from_iterable(data.draw(st.lists(chunks(name), max_size=14))))
    whole = tokenizer.decode(token_ids, skip_special_tokens=True)
    one_by_one, together = TextStream(tokenizer, ()), TextStream(tokenizer, ())
    assert "".join(one_by_one.push(token_id) for token_id in token_ids) + one_by_one.finish() == whole
    size = data.draw(st.integers(1, 15))
    runs = [token_ids[start : start + size] for start in range(0, len(token_ids), size)]
    assert "".join(together.push_all(run)[1] for run in runs) + together.finish() == whole


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
def test_a_special_token_between_words_keeps_the_space(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    cat, turn = (tokenizer.convert_tokens_to_ids(t) for t in ("▁cat" if name == "metaspace" else "Ġcat", "<turn>"))
    stream = TextStream(tokenizer, ())
    assert stream.push(cat).strip() + stream.push(turn) + stream.push(turn) + stream.push(cat) == "cat cat"
