"""A planted checkpoint routes its tasks' prompts as it was asked to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emoe.bench.engines import fill, new_sequence, open_parts
from emoe.bench.failures import BenchmarkError
from emoe.bench.planted import PlantedShape, draw_prompts, task_subsets
from emoe.bench.planted_files import planted_checkpoint, read_shape
from emoe.worker.build import EngineOptions

SIZES = {"hidden_size": 64, "intermediate_size": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}


def small(family: str, **changed: object) -> PlantedShape:
    options = {"num_layers": 3, "num_experts": 16, "top_k": 2, "vocab_size": 420, "num_tasks": 3} | SIZES | changed
    return PlantedShape(family=family, **options)  # type: ignore[arg-type]


def silent(_line: str) -> None:
    pass


def counts_of(folder: Path, prompts: list[list[int]]) -> np.ndarray:
    """[layer, expert]"""
    with open_parts(folder, EngineOptions(miss_policy="load", max_context=128, max_concurrency=len(prompts))) as parts:
        fill(parts)
        engine = parts.build_engine()
        for number, prompt in enumerate(prompts):
            engine.add(new_sequence(str(number), prompt, new_tokens=16))
        while engine.has_work:
            engine.step()
        return sum(engine.task_counts.values())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_task_keeps_to_its_own_experts_as_far_as_asked(family: str, tmp_path: Path) -> None:
    shape = small(family, concentration=0.8)
    folder = planted_checkpoint("small", shape, cache=tmp_path, say=silent)
    subsets = task_subsets(shape)
    shares = np.zeros((shape.num_tasks, shape.num_tasks))
    for task in range(shape.num_tasks):
        counts = counts_of(folder, draw_prompts(shape, task=task, num_prompts=4, num_tokens=64))
        for other in range(shape.num_tasks):
            shares[task, other] = np.take_along_axis(counts, subsets[other], axis=1).sum() / counts.sum()
    assert np.diag(shares) == pytest.approx(0.8, abs=0.1)
    others = shares[~np.eye(shape.num_tasks, dtype=bool)]
    assert others.max() < 0.65  # chance gives 0.25; subsets overlap


def test_without_concentration_routing_is_near_uniform(tmp_path: Path) -> None:
    shape = small("mixtral", concentration=0.25)
    folder = planted_checkpoint("flat", shape, cache=tmp_path, say=silent)
    counts = counts_of(folder, draw_prompts(shape, task=1, num_prompts=4, num_tokens=64))
    share = np.take_along_axis(counts, task_subsets(shape)[1], axis=1).sum() / counts.sum()
    assert share == pytest.approx(0.25, abs=0.1)


def test_the_same_seed_makes_the_same_files_and_makes_them_once(tmp_path: Path) -> None:
    shape, said = small("mixtral"), list[str]()
    first = planted_checkpoint("a", shape, cache=tmp_path / "one", say=said.append)
    again = planted_checkpoint("a", shape, cache=tmp_path / "two", say=silent)
    assert read_shape(first) == shape
    assert [path.name for path in sorted(first.iterdir())] == [path.name for path in sorted(again.iterdir())]
    assert all(path.read_bytes() == (again / path.name).read_bytes() for path in first.glob("*.safetensors"))
    assert "layer 3 of 3" in said
    said.clear()
    assert planted_checkpoint("a", shape, cache=tmp_path / "one", say=said.append) == first
    assert said == []


def test_a_concentration_below_chance_is_refused() -> None:
    with pytest.raises(BenchmarkError, match=r"from 0\.25"):
        small("mixtral", concentration=0.1)
