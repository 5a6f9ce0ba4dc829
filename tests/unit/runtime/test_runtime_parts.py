"""Files in parts: what is cut is put together as it was, and never beyond its bound."""

from __future__ import annotations

import pytest

from emoe.core.errors import InvalidRequestError
from emoe.runtime.parts import PART_BYTES, Gathered, parts


@pytest.mark.parametrize("num_bytes", [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
def test_parts_make_the_whole(num_bytes: int) -> None:
    data = bytes(range(256)) * (num_bytes // 256 + 1)
    data = data[:num_bytes]
    gathered = Gathered("it", max_bytes=num_bytes)
    cut = list(parts(data))
    for part in cut:
        gathered.add(part)
    assert gathered.whole() == data
    assert all(0 < len(part) <= PART_BYTES for part in cut)


def test_a_file_beyond_its_bound_is_refused_by_name() -> None:
    gathered = Gathered("the profile", max_bytes=10)
    gathered.add(bytes(10))
    with pytest.raises(InvalidRequestError, match="the profile has more than 10 bytes"):
        gathered.add(bytes(1))
