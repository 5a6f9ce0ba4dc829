"""What a contest makes of its turns, and what its options refuse."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from emoe.bench.contest_plot import draw_contest
from emoe.bench.contest_records import ContestSettings, Record, Results
from emoe.bench.contest_report import build_rows
from emoe.bench.contestants import Contestant, Model, build_ours, build_peers
from emoe.bench.failures import BenchmarkError
from emoe.bench.peers.places import Places
from emoe.bench.rows import ContestSample
from emoe.cli.bench import bench_app
from emoe.cli.bench_engine import parse_budgets, parse_names

SETTINGS = ContestSettings(
    budgets=(0.5,),
    policies=("load",),
    peers=(),
    batches=(1,),
    prompt_tokens=100,
    new_tokens=11,
    repeats=3,
    threads=1,
)
MODEL = Model(folder=Path("model"), work=Path("work"), base_bytes=100, expert_bytes=1000)


def record(engine: str, seconds: tuple[float, ...], **changed: object) -> Record:
    options: dict[str, object] = {"needed": None, "copied": None, "max_new_tokens": None} | changed
    needed, copied, max_new_tokens = options["needed"], options["copied"], options["max_new_tokens"]
    contestant = Contestant(
        engine=engine,
        mode="load" if engine == "emoe" else "eager",
        budget_ratio=None,
        module="",
        options={},
        files=(),
        likely_bytes=0,
        max_new_tokens=max_new_tokens,  # type: ignore[arg-type]
    )
    samples = [
        ContestSample(
            prefill_seconds=each,
            decode_seconds=2 * each,
            num_decoded_tokens=10,
            bytes_needed=needed,  # type: ignore[arg-type]
            bytes_copied=copied,  # type: ignore[arg-type]
        )
        for each in seconds
    ]
    return Record(contestant=contestant, samples={1: samples}, peak_anon_bytes=7, logits=[1.0, 2.0])


def test_rows_are_medians_and_peers_need_what_exact_mode_needs() -> None:
    records = [
        record("emoe", (1.0, 2.0, 9.0), needed=40, copied=30),
        record("transformers", (4.0,)),
        record("airllm", (4.0,), max_new_tokens=3),
    ]
    ours, theirs, short = build_rows(Results(name="m", records=records, reference_logits=[1.0, 2.5]), SETTINGS)
    assert (ours.prefill_tokens_per_second, ours.decode_tokens_per_second, ours.ttft_seconds) == (50.0, 2.5, 2.0)
    assert (ours.bytes_needed, ours.bytes_copied, ours.max_logit_difference) == (40, 30, 0.5)
    assert (theirs.bytes_needed, theirs.bytes_copied) == (40, None)
    assert short.bytes_needed is None


def test_a_contestant_without_a_turn_has_no_row_and_no_number_is_no_difference() -> None:
    absent, broken = record("emoe", ()), record("transformers", (1.0,))
    broken.logits = [float("nan"), 2.0]
    rows = build_rows(Results(name="m", records=[absent, broken], reference_logits=[1.0, 2.0]), SETTINGS)
    assert [(row.engine, row.bytes_needed, row.max_logit_difference) for row in rows] == [("transformers", None, None)]


def test_under_a_cap_bytes_read_are_those_of_measured_turns() -> None:
    capped = record("emoe", (1.0, 2.0, 3.0))
    capped.bytes_read = 1000
    capped.samples[1] = [
        dataclasses.replace(sample, bytes_read=read) for sample, read in zip(capped.samples[1], (7, 5, 9), strict=True)
    ]
    (free,) = build_rows(Results(name="m", records=[capped]), SETTINGS)
    (row,) = build_rows(Results(name="m", records=[capped], memory_cap_bytes=50), SETTINGS)
    assert (free.bytes_read, free.memory_cap_bytes) == (1000, None)
    assert (row.bytes_read, row.memory_cap_bytes) == (7, 50)


def test_each_budget_meets_each_policy() -> None:
    built = build_ours(MODEL, (0.125, 1.0), ("load", "reroute"))
    assert [each.name for each in built] == [
        "emoe load at 12.5%",
        "emoe load at 100.0%",
        "emoe reroute at 12.5%",
        "emoe reroute at 100.0%",
    ]
    assert built[0].options["expert_memory"] == "12.5%"


def test_peers_that_map_the_checkpoint_start_last(tmp_path: Path) -> None:
    for name in ("llama", "airllm", "accelerate"):
        (tmp_path / f"{name}.done").touch()
    built, notes = build_peers(MODEL, ("eager", "grouped_mm", "disk", "llama.cpp", "airllm"), Places(folder=tmp_path))
    assert [each.mode for each in built] == ["disk", "mmap", "layers", "eager", "grouped_mm"]
    assert notes == []


def test_a_missing_peer_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"^llama\.cpp: not measured: run make bench-peers$"):
        Places(folder=tmp_path).python("llama", "llama.cpp")


def test_a_plot_has_every_row_of_the_first_batch(tmp_path: Path) -> None:
    records = [record("emoe", (1.0,)), record("transformers", (2.0,))]
    draw_contest(build_rows(Results(name="m", records=records), SETTINGS), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_budgets_are_shares() -> None:
    assert parse_budgets("12.5%, 25%,100%") == (0.125, 0.25, 1.0)


@pytest.mark.parametrize("text", ["", "25", "0%", "101%", "25%,", "1e1%", "-5%", "²%", "12.5%;25%"])
def test_anything_else_is_no_budget(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="must be shares above 0%"):
        parse_budgets(text)


def test_unknown_names_are_refused_with_those_there_are() -> None:
    assert parse_names("--peers", "disk, eager", ("eager", "disk")) == ("disk", "eager")
    with pytest.raises(typer.BadParameter, match="'vllm' is unknown; there are eager, disk"):
        parse_names("--peers", "vllm", ("eager", "disk"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--budgets", "25"], "must be shares"),
        (["--policies", "guess"], "'guess' is unknown"),
        (["--peers", "vllm"], "'vllm' is unknown"),
        (["--new-tokens", "1"], "at least 2"),
        (["--shape", "huge"], "there is no 'huge'"),
        (["--one-process", "--plot", "x.png"], "does not measure"),
        (["--memory-cap", "much"], "is not understood"),
        (["--one-process", "--memory-cap", "1GiB"], "caps processes of their own"),
    ],
    ids=["budgets", "policies", "peers", "new tokens", "shape", "plot", "cap", "cap of one process"],
)
def test_a_bad_option_is_refused_before_anything_starts(words: list[str], reason: str) -> None:
    result = CliRunner().invoke(bench_app, ["engine", *words], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert reason in result.output
