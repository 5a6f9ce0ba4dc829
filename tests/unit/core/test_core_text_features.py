"""What a prompt is to the task classifier: a bounded, stable, sparse vector."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.text_features import (
    EDGE_CHARACTERS,
    EDGES,
    FEATURES_VERSION,
    LETTERS,
    NUM_FEATURES,
    WORDS,
    extract_features,
)


@given(st.text(max_size=300))
def test_ids_rise_within_bounds_and_each_group_has_length_one(text: str) -> None:
    features = extract_features(text)
    assert features.ids[0] >= 0
    assert features.ids[-1] < NUM_FEATURES
    assert all(a < b for a, b in itertools.pairwise(features.ids.tolist()))
    for group in (WORDS, EDGES, LETTERS, slice(LETTERS.stop, NUM_FEATURES)):
        values = features.values[(features.ids >= group.start) & (features.ids < group.stop)]
        assert not len(values) or values @ values == pytest.approx(1.0, abs=1e-5)


def test_features_are_those_that_the_shipped_weights_were_learnt_for() -> None:
    features = extract_features("Hello, wörld!\nHow are 17 cats?")
    assert (FEATURES_VERSION, zlib.crc32(features.ids.astype("<i8").tobytes())) == (1, 328507212)


def test_the_middle_of_a_long_prompt_costs_and_counts_nothing() -> None:
    start, end = "a" * EDGE_CHARACTERS, "b" * EDGE_CHARACTERS
    short, long = (extract_features(start + "middle " * count + end) for count in (10_000, 10_001))
    assert np.array_equal(short.ids, long.ids)
    assert np.array_equal(short.values, long.values)


def test_numbers_are_alike_and_letters_case_does_not_matter_to_words() -> None:
    one, other = extract_features("Add 12 to 7"), extract_features("add 99 TO 1")
    assert np.array_equal(one.ids, other.ids)


def test_text_that_is_no_unicode_has_features_too() -> None:
    assert len(extract_features("\ud800 half a pair").ids)
