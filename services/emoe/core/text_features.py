"""A prompt as a short sparse vector: hashed words, its edges, its letters and its shape.

Read by the task classifier and by the matching of users' own tasks, on the scheduler's event loop, so the work is
bounded: of a long prompt the first and the last `EDGE_CHARACTERS` count. Nothing here is learned; whoever changes a
feature raises `FEATURES_VERSION`, and files made for another version are refused. Knows nothing of tasks.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import zlib

import numpy as np
import numpy.typing as npt

FEATURES_VERSION = 1
EDGE_CHARACTERS = 2000
NUM_EDGE_TOKENS = 12
"""Instructions stand at a prompt's start or end: these many tokens of each have features of their own, so that a long
text between them does not drown them."""

_GROUP_SIZES = {"words": 16384, "edges": 8192, "letters": 8128, "shape": 64}
NUM_FEATURES = sum(_GROUP_SIZES.values())
_STARTS = np.cumsum([0, *_GROUP_SIZES.values()])
_WORDS, _EDGES, _LETTERS, _SHAPE = (int(start) for start in _STARTS[:-1])
WORDS, EDGES, LETTERS = slice(_WORDS, _EDGES), slice(_EDGES, _LETTERS), slice(_LETTERS, _SHAPE)
"""Where the ids of these groups lie."""

_TOKEN = re.compile(r"\n+|\w+|[^\w\s]")
_DIGITS = re.compile(r"\d+")
_BLANKS = re.compile(r"\s+")
_SPEAKER = re.compile(r"^\W{0,2}\w[\w #.]{0,19}\W?:(?=\s|$)", re.MULTILINE)
_OPTION = re.compile(r"(?:^|\s)\(?[A-Ea-e1-5][).:]\s")
_FOREIGN = re.compile(r"[^\u0000-\u024f\u2000-\u206f]")
_CODE_CHARACTERS = re.compile(r"[{}\[\]()<>=;_/\\$|`#*]")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """`ids` [N] rise; `values` [N] have length 1 in each of the groups that the prompt has features of."""

    ids: Ints
    values: Floats


def extract_features(text: str) -> TextFeatures:
    """Of any text, the empty one too. Takes time in proportion to the text, up to 2 x EDGE_CHARACTERS."""
    kept = _bounded(text)
    plain = _DIGITS.sub("0", kept.lower())
    tokens = _TOKEN.findall(plain)
    ids = np.concatenate((_token_ids(tokens), _letter_ids(plain), _shape_ids(kept, len(text))))
    counts = np.bincount(ids, minlength=NUM_FEATURES)
    present = np.flatnonzero(counts)
    values = 1.0 + np.log(counts[present])
    bounds = np.searchsorted(present, _STARTS)
    for start, stop in itertools.pairwise(bounds):
        if stop > start:
            group = values[start:stop]
            group /= np.sqrt(group @ group)
    return TextFeatures(ids=present, values=values.astype(np.float32))


def _bounded(text: str) -> str:
    if len(text) <= 2 * EDGE_CHARACTERS:
        return text
    return f"{text[:EDGE_CHARACTERS]}\n{text[-EDGE_CHARACTERS:]}"


def _token_ids(tokens: list[str]) -> Ints:
    """Words and pairs of them; at both edges also triples, told apart from those of the other edge."""
    crc = zlib.crc32
    pairs = map("\x00".join, itertools.pairwise(tokens))
    words = [crc(token.encode("utf-8", "replace")) % _EDGES for token in tokens]
    words += [crc(pair.encode("utf-8", "replace")) % _EDGES for pair in pairs]
    edges = _edge_names("^", tokens[:NUM_EDGE_TOKENS]) + _edge_names("$", tokens[-NUM_EDGE_TOKENS:])
    size = _LETTERS - _EDGES
    words += [_EDGES + crc(name.encode("utf-8", "replace")) % size for name in edges]
    return np.array(words, dtype=np.int64)


def _edge_names(side: str, tokens: list[str]) -> list[str]:
    names = [side + token for token in tokens]
    names += [f"{side}{a}\x00{b}" for a, b in itertools.pairwise(tokens)]
    names += [f"{side}{a}\x00{b}\x00{c}" for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False)]
    return names


def _letter_ids(plain: str) -> Ints:
    """Every three bytes in a row, by a multiplicative hash over the whole text at once."""
    data = np.frombuffer(_BLANKS.sub(" ", f" {plain} ").encode("utf-8", "replace"), dtype=np.uint8).astype(np.uint32)
    if data.size < 3:
        return np.empty(0, dtype=np.int64)
    hashed = (data[:-2] << np.uint32(16) | data[1:-1] << np.uint32(8) | data[2:]) * np.uint32(2654435761)
    return _LETTERS + ((hashed >> np.uint32(8)) % np.uint32(_SHAPE - _LETTERS)).astype(np.int64)


def _shape_ids(text: str, num_characters: int) -> Ints:
    """What the prompt looks like, each property in a few steps; property and step are one feature."""
    length = max(1, len(text))
    stripped = text.rstrip()
    num_foreign = len(_FOREIGN.findall(text))
    properties = (
        (min(11, num_characters.bit_length()), 12),
        (_step(text.count("\n"), (0, 1, 2, 5, 10)), 6),
        (_step(len(_DIGITS.findall(text)), (0, 1, 2, 4, 8)), 6),
        (_step(len(_SPEAKER.findall(text)), (0, 1, 2, 4)), 5),
        (_step(len(_OPTION.findall(text)), (0, 1, 2, 4)), 5),
        (_step(text.count("?"), (0, 1, 2)), 4),
        (_step(1000 * len(_CODE_CHARACTERS.findall(text)) // length, (0, 5, 15, 40, 100)), 6),
        (_step(100 * num_foreign // length, (0, 2, 10, 40)), 5),
        (("?", ":", ".").index(stripped[-1]) if stripped.endswith(("?", ":", ".")) else 3, 4),
        (int(any(quote in text for quote in '"“«')), 2),
    )
    first, ids = _SHAPE, []
    for step, num_steps in properties:
        ids.append(first + step)
        first += num_steps
    return np.array(ids, dtype=np.int64)


def _step(value: int, limits: tuple[int, ...]) -> int:
    return next((step for step, limit in enumerate(limits) if value <= limit), len(limits))
