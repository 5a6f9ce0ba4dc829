"""Expert memory auto in a real worker under a real limit: it serves its largest prompts and batch, or says why not."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from support.checkpoints import save_with_tokenizer

from emoe.bench.failures import BenchmarkError
from emoe.bench.memory_cgroup import memory_cgroup
from emoe.bench.sizing import SizedWorker, SizingSettings, measure_sizing

MIB = 2**20

pytestmark = [pytest.mark.timeout(240), pytest.mark.cgroup]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(memory_cgroup(64 * MIB))
    except BenchmarkError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("auto")
    save_with_tokenizer("qwen2_moe", folder)
    return folder


def measured(model: Path, limit_bytes: int) -> SizedWorker:
    settings = SizingSettings(model=model, max_context=256, max_concurrency=4, odd_rounds=1)
    return asyncio.run(measure_sizing(settings, limit_bytes))


def test_a_limited_worker_serves_what_it_sized_itself_for(model: Path) -> None:
    row = measured(model, 1400 * MIB)
    assert (row.num_failed, row.num_kills) == (0, 0)
    assert row.num_answers == 4 * (2 + 1)
    assert row.slots > 0
    assert "of the cgroup's mem" in row.said
    assert row.headroom_bytes > 0


def test_a_limit_that_leaves_too_little_is_refused_in_words(model: Path) -> None:
    row = measured(model, 640 * MIB)
    assert (row.num_answers, row.num_kills) == (0, 0)
    assert "more memory" in row.said
