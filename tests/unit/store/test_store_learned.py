"""Files of learned arrays: safetensors reads ours, we read its, and nothing torn or foreign passes."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from emoe.core.errors import CheckpointError
from emoe.store.learned import NUMPY_DTYPES, read_arrays, read_metadata, write_arrays


def samples() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    arrays = {f"of/{code}": random.integers(0, 9, (3, 5)).astype(dtype) for code, dtype in NUMPY_DTYPES.items()}
    return {**arrays, "scalar": np.array(7, dtype=np.int64), "empty": np.zeros((0, 4), dtype=np.float16)}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key]) for key in one
    )


def test_what_is_written_is_read_again() -> None:
    assert same(read_arrays(write_arrays(samples())), samples())


def test_the_bytes_are_safetensors_both_ways() -> None:
    assert same(safetensors_numpy.load(write_arrays(samples(), {"weights": "abc"})), samples())
    assert same(read_arrays(safetensors_numpy.save(samples(), {"weights": "abc"})), samples())


def test_metadata_comes_back() -> None:
    assert read_metadata(write_arrays(samples(), {"weights": "abc"})) == {"weights": "abc"}
    assert read_metadata(write_arrays(samples())) == {}


def test_the_order_of_arrays_does_not_show() -> None:
    assert write_arrays(samples()) == write_arrays(dict(reversed(samples().items())))


def test_arrays_that_are_read_may_be_written_to() -> None:
    read_arrays(write_arrays(samples()))["of/F32"][0, 0] = 1.0


@pytest.mark.parametrize("cut", [0, 4, 20, -1], ids=["empty", "in the length", "in the header", "in the data"])
def test_a_torn_file_is_refused(cut: int) -> None:
    with pytest.raises(CheckpointError, match=r"learned\.safetensors"):
        read_arrays(write_arrays(samples())[:cut], name="learned.safetensors")


def test_bytes_behind_the_last_array_are_refused() -> None:
    with pytest.raises(CheckpointError, match="follow the last tensor"):
        read_arrays(write_arrays(samples()) + b"\0")


def test_a_dtype_that_is_none_of_ours_is_refused_both_ways() -> None:
    foreign = {"flags": np.zeros(3, dtype=np.bool_)}
    with pytest.raises(CheckpointError, match="flags is of dtype BOOL"):
        read_arrays(safetensors_numpy.save(foreign))
    with pytest.raises(ValueError, match="flags"):
        write_arrays(foreign)
