"""Expert memory auto on a device: what it leaves is enough for the largest prompt and batch, and it leaves no more than
it says."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.checkpoints import save_with_tokenizer
from support.engines import generate, random_prompts

from emoe.core.errors import BudgetError
from emoe.store.store import ExpertStore
from emoe.worker.build import EngineParts
from emoe.worker.gauges import read_device_room
from emoe.worker.preparing import prepare
from emoe.worker.settings import WorkerSettings
from emoe.worker.sources import LocalSource

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none"),
]

MIB = 2**20
DEVICE = torch.device("cuda:0")
CONTEXT, ROWS = 256, 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_with_tokenizer("qwen3_moe", tmp_path, dtype=torch.bfloat16)
    return tmp_path


@pytest.fixture
def filled() -> Iterator[torch.Tensor]:
    """The device but for 2 GiB, taken by this process: what another one's would be."""
    torch.cuda.empty_cache()
    block = torch.empty(read_device_room(DEVICE).free_bytes - 2048 * MIB, dtype=torch.uint8, device=DEVICE)
    yield block
    del block
    gc.collect()
    torch.cuda.empty_cache()


def prepared(folder: Path, **fields: object) -> EngineParts:
    given = {"model": folder, "expert_memory": "auto", "max_context": CONTEXT, "max_concurrency": ROWS}
    settings = WorkerSettings(**{**given, "device": "cuda", **fields})  # type: ignore[arg-type]
    with ExpertStore.open(folder) as store:
        return prepare(settings, store, LocalSource(store), threading.Event())[0]


@pytest.mark.parametrize("policy", ["reroute", "load"])
def test_the_account_is_the_devices_and_names_no_recordings_where_none_are_made(
    folder: Path, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """NVML counts in pages of megabytes: a small model's recordings may show as nothing."""
    with caplog.at_level("INFO"):
        parts = prepared(folder, miss_policy=policy)
    parts.residency.close()
    [said] = re.findall(r"expert_memory auto: (\d+ [KM]iB for experts.*)", caplog.text)
    assert "'s memory, " in said
    assert "libraries' code" not in said
    assert parts.static_rows or "recorded steps" not in said


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("policy", ["reroute", "load"])
def test_the_largest_prompts_and_batch_are_served_beside_a_neighbour(folder: Path, policy: str) -> None:
    parts = prepared(folder, miss_policy=policy)
    tokens, _ = generate(parts.build_engine(), random_prompts([CONTEXT - 8] * ROWS), max_tokens=6)
    assert [len(answer) for answer in tokens] == [6] * ROWS
    parts.residency.close()


def test_a_device_that_a_neighbour_fills_is_refused_with_what_is_missing(folder: Path) -> None:
    torch.cuda.empty_cache()
    block = torch.empty(read_device_room(DEVICE).free_bytes - 256 * MIB, dtype=torch.uint8, device=DEVICE)
    try:
        with pytest.raises(BudgetError, match=r"give the worker \d+ MiB more memory"):
            prepared(folder)
    finally:
        del block
        torch.cuda.empty_cache()


def test_nothing_of_the_trial_stays_on_the_device(folder: Path) -> None:
    """Room as it is with slots for all experts given outright, within what the allocator rounds to."""
    used = []
    for memory in ("100%", "auto"):
        parts = prepared(folder, expert_memory=memory)
        used.append(torch.cuda.memory_allocated(DEVICE))
        parts.residency.close()
        del parts
        gc.collect()
        torch.cuda.empty_cache()
    assert used[1] - used[0] < 16 * MIB
