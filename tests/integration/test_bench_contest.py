"""`emoe bench engine` over kilobytes: that every contestant is measured on its own, or named with what to do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from emoe.bench.contest import run_contest
from emoe.bench.contest_prompts import prompts_of
from emoe.bench.contest_records import ContestSettings, Results
from emoe.bench.contest_report import build_rows
from emoe.bench.failures import BenchmarkError
from emoe.bench.peers.gguf_file import make_gguf
from emoe.bench.peers.places import Places, default_place
from emoe.bench.planted import PlantedShape
from emoe.bench.planted_files import planted_checkpoint

SHAPES = {
    "mixtral": {"num_experts": 8, "top_k": 2, "subset": 3},
    "qwen3_moe": {"num_experts": 16, "top_k": 4, "subset": 5},
}
PLACES = Places(folder=default_place())


def small(family: str, folder: Path) -> Path:
    shape = PlantedShape(
        family=family,
        hidden_size=64,
        intermediate_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=420,
        num_tasks=3,
        **SHAPES[family],
    )
    return planted_checkpoint(family, shape, cache=folder, say=lambda _line: None)


def need(peer: str) -> str:
    try:
        return PLACES.python(peer, peer)
    except BenchmarkError as error:
        pytest.skip(str(error))


async def contest(folder: Path, work: Path, places: Places, **changed: object) -> tuple[Results, ContestSettings]:
    options: dict[str, object] = {
        "budgets": (0.5,),
        "policies": ("load",),
        "peers": (),
        "batches": (1,),
        "prompt_tokens": 8,
        "new_tokens": 4,
        "repeats": 2,
        "threads": 1,
    }
    settings = ContestSettings(**options | changed)  # type: ignore[arg-type]
    results = Results(name="small")
    prompts = prompts_of(folder, num_tokens=settings.prompt_tokens)
    await run_contest(folder, results, settings, prompts, work=work, places=places, say=lambda _line: None)
    return results, settings


async def test_each_contestant_is_measured_in_turn_and_missing_peers_are_named(tmp_path: Path) -> None:
    folder = small("mixtral", tmp_path)
    nowhere = Places(folder=tmp_path / "none")
    peers = ("eager", "disk", "llama.cpp", "airllm")
    results, settings = await contest(folder, tmp_path, nowhere, peers=peers, batches=(1, 2))
    rows = build_rows(results, settings)
    assert [(row.engine, row.mode, row.budget_ratio, row.batch) for row in rows] == [
        ("emoe", "load", 0.5, 1),
        ("transformers", "eager", None, 1),
        ("emoe", "load", 0.5, 2),
        ("transformers", "eager", None, 2),
    ]
    assert results.notes == [
        "transformers disk: not measured: run make bench-peers",
        "llama.cpp: not measured: run make bench-peers",
        "airllm: not measured: run make bench-peers",
    ]
    ours, theirs = rows[:2]
    for row in rows:
        assert len(row.samples) == 2
        assert min(row.prefill_tokens_per_second, row.decode_tokens_per_second, row.ttft_seconds) > 0
        assert row.peak_anon_bytes > 50_000_000
        assert row.max_logit_difference is not None
        assert 0 < row.max_logit_difference < 0.3  # bfloat16 against float32
    assert ours.bytes_copied is not None
    assert theirs.bytes_copied is None
    assert ours.bytes_needed == theirs.bytes_needed
    assert ours.bytes_needed is not None
    assert ours.bytes_needed % (3 * 64 * 32 * 2) == 0


async def test_what_cannot_run_is_named_and_left_out(tmp_path: Path) -> None:
    broken = tmp_path / "peers"
    (broken / "airllm" / "bin").mkdir(parents=True)
    (broken / "airllm.done").touch()
    python = broken / "airllm" / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    results, settings = await contest(
        small("mixtral", tmp_path),
        tmp_path,
        Places(folder=broken),
        budgets=(0.1,),
        policies=("reroute",),
        peers=("airllm",),
    )
    assert build_rows(results, settings) == []
    too_few, broke = results.notes
    assert too_few.startswith("small: emoe reroute at 10.0%: not measured: ")
    assert broke.startswith("small: airllm layers: not measured: ")


READ_BACK = """
import json, sys, numpy as np
from gguf import GGUFReader
out = {}
for tensor in GGUFReader(sys.argv[1]).tensors:
    data = np.asarray(tensor.data)
    if data.dtype == np.uint8:
        data = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    out[tensor.name] = data
np.savez(sys.argv[2], **out)
"""


def read_back(python: str, gguf: Path, out: Path) -> None:
    subprocess.run([python, "-c", READ_BACK, gguf, out], check=True, timeout=60)


@pytest.mark.parametrize("family", list(SHAPES))
async def test_a_gguf_file_has_the_checkpoints_own_values(family: str, tmp_path: Path) -> None:
    python, folder, out = need("llama"), small(family, tmp_path), tmp_path / "model.gguf"
    await make_gguf(folder, out, PLACES)
    read_back(python, out, tmp_path / "back.npz")
    back = np.load(tmp_path / "back.npz")
    theirs = published(folder)
    stem, names = (
        ("block_sparse_moe", ("w1", "w3", "w2"))
        if family == "mixtral"
        else ("mlp", ("gate_proj", "up_proj", "down_proj"))
    )
    np.testing.assert_array_equal(back["token_embd.weight"], theirs["model.embed_tokens.weight"])
    np.testing.assert_array_equal(back["blk.1.ffn_gate_inp.weight"], theirs[f"model.layers.1.{stem}.gate.weight"])
    for part, name in zip(("gate", "up", "down"), names, strict=True):
        packed = back[f"blk.1.ffn_{part}_exps.weight"]
        assert packed.shape[0] == SHAPES[family]["num_experts"]
        np.testing.assert_array_equal(packed[2], theirs[f"model.layers.1.{stem}.experts.2.{name}.weight"])
    per_layer = 10 if family == "mixtral" else 12  # two more norms, of queries and keys
    assert len(back.files) == 3 + 2 * per_layer


def published(folder: Path) -> dict[str, np.ndarray]:
    from safetensors import torch as files

    return {
        key: tensor.float().numpy()
        for path in folder.glob("*.safetensors")
        for key, tensor in files.load_file(path).items()
    }


@pytest.mark.parametrize("family", list(SHAPES))
async def test_llama_computes_the_same_model(family: str, tmp_path: Path) -> None:
    need("llama")
    results, settings = await contest(
        small(family, tmp_path), tmp_path, PLACES, budgets=(), peers=("llama.cpp",), batches=(2,), repeats=1
    )
    (row,) = build_rows(results, settings)
    assert row.max_logit_difference is not None
    assert row.max_logit_difference < 0.3
