"""Published checksums are computed as their publishers do."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.loader.fetch.checksums import Checksum, start_digest

DATA = bytes(range(256)) * 5


def digest(checksum: Checksum, *pieces: bytes) -> str:
    started = start_digest(checksum, num_bytes=sum(map(len, pieces)))
    for piece in pieces:
        started.update(piece)
    return started.hexdigest()


@pytest.mark.parametrize(
    ("checksum", "wanted"),
    [
        pytest.param(Checksum(kind="sha256", value=""), hashlib.sha256(DATA).hexdigest(), id="sha256"),
        pytest.param(Checksum(kind="md5", value=""), hashlib.md5(DATA).hexdigest(), id="md5"),
        # git hash-object of the file
        pytest.param(
            Checksum(kind="git-sha1", value=""), hashlib.sha1(b"blob 1280\0" + DATA).hexdigest(), id="git-sha1"
        ),
    ],
)
def test_a_digest_is_its_libraries_own(checksum: Checksum, wanted: str) -> None:
    assert digest(checksum, DATA[:7], DATA[7:]) == wanted


def test_gits_hash_of_a_known_blob() -> None:
    assert (
        digest(Checksum(kind="git-sha1", value=""), b"what is up, doc?") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    )


@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=6), part_bytes=st.integers(1, 1500))
def test_an_etag_of_parts_does_not_depend_on_how_the_bytes_arrive(cuts: list[int], part_bytes: int) -> None:
    edges = [0, *sorted(cuts), len(DATA)]
    pieces = [DATA[begin:end] for begin, end in itertools.pairwise(edges)]
    parts = [DATA[begin : begin + part_bytes] for begin in range(0, len(DATA), part_bytes)]
    joined = b"".join(hashlib.md5(part).digest() for part in parts)
    wanted = f"{hashlib.md5(joined).hexdigest()}-{len(parts)}"

    assert digest(Checksum(kind="md5-parts", value="", part_bytes=part_bytes), *pieces) == wanted
