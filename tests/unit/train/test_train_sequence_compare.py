"""The comparison of predictors: what each is told, and that its ends are where they must be."""

import collections
import json

import numpy as np
import pytest
import torch

from emoe.core.experts import ExpertGrid, RoutingRule
from emoe.core.tasks import UNKNOWN
from emoe.train.prompt_counts import load_counts, save_counts
from emoe.train.sequence_compare import CompareSettings, build_streams, compare, time_methods
from emoe.train.sequence_data import PromptCounts
from emoe.train.sequence_main import main
from emoe.train.sequence_methods import FREQUENCY, GLOBAL, HINDSIGHT, LAST, counting_methods
from emoe.train.sequence_table import render_tables

GRID = ExpertGrid(num_layers=2, moe_layers=(0, 1), rule=RoutingRule(num_experts=8, top_k=1), expert_bytes=1)
SETTINGS = CompareSettings(
    refresh_prompts=(1, 5), resident_ratios=(0.25,), wrong_label_ratios=(0.5,), num_orders=1, seed=0
)


def draw_prompts(num_each, seed):
    """Tasks of 8 experts each want other two."""
    random = np.random.default_rng(seed)
    frequencies = {"chat": [0.4, 0.4, *[0.2 / 6] * 6], "code": [*[0.2 / 6] * 6, 0.4, 0.4]}
    return [
        PromptCounts(task=task, counts=random.multinomial(50, shares, size=2))
        for task, shares in frequencies.items()
        for _ in range(num_each)
    ]


@pytest.fixture
def compared():
    methods = counting_methods(draw_prompts(50, seed=1), moe_layers=(0, 1), top_k=1)
    streams = build_streams(draw_prompts(20, seed=2), SETTINGS, None)
    coverage, accuracy = compare(methods, streams, GRID, SETTINGS, say=lambda _line: None)
    return methods, streams, coverage, accuracy


def covered(coverage, method, stream, refresh=1):
    (row,) = (r for r in coverage if (r.method, r.stream, r.refresh_prompts) == (method, stream, refresh))
    return row


def test_hindsight_is_ahead_of_every_method_in_every_stream(compared):
    _, _, coverage, _ = compared
    best = {(r.stream, r.refresh_prompts): r.coverage_ratio for r in coverage if r.method == HINDSIGHT}
    assert all(row.coverage_ratio <= best[row.stream, row.refresh_prompts] for row in coverage)
    assert covered(coverage, HINDSIGHT, "runs").gap_closed_ratio == 1
    assert covered(coverage, GLOBAL, "runs").gap_closed_ratio == 0


def test_labels_are_what_task_frequency_lives_on(compared):
    _, _, coverage, _ = compared
    told = covered(coverage, FREQUENCY, "mixed").coverage_ratio
    assert told > covered(coverage, FREQUENCY, "mixed, no labels").coverage_ratio + 0.1
    assert told > covered(coverage, FREQUENCY, "mixed, 50% wrong").coverage_ratio + 0.05


def test_the_last_prompt_counts_for_more_in_runs_than_in_a_mix_without_labels(compared):
    _, _, coverage, _ = compared
    runs, mixed = (covered(coverage, LAST, f"{kind}, no labels").coverage_ratio for kind in ("runs", "mixed"))
    assert runs > mixed + 0.05


def test_streams_hold_every_prompt_once(compared):
    _, streams, _, _ = compared
    for orders in streams.values():
        for stream in orders:
            assert len({id(told.prompt) for told in stream}) == len(stream) == 40


def test_labels_are_told_hidden_or_wrong_as_the_streams_name_says(compared):
    _, streams, _, _ = compared
    assert all(told.label == told.prompt.task for told in streams["drift"][0])
    assert all(told.label == UNKNOWN for told in streams["drift, no labels"][0])
    wrong = sum(told.label != told.prompt.task for told in streams["mixed, 50% wrong"][0])
    assert 10 < wrong < 30


def test_arrivals_order_the_mixed_stream():
    arrivals = ["code", "chat", "chat", "poems"] * 5
    stream = build_streams(draw_prompts(20, seed=2), SETTINGS, arrivals)["mixed"][0]
    assert [told.label for told in stream] == ["code", "chat", "chat"] * 5


def test_runs_have_one_task_after_the_other(compared):
    _, streams, _, _ = compared
    labels = [told.label for told in streams["runs"][0]]
    assert labels == sorted(labels)
    assert collections.Counter(labels) == {"chat": 20, "code": 20}


def test_tables_name_every_method_and_stream(compared):
    methods, streams, coverage, accuracy = compared
    text = render_tables(coverage, accuracy, time_methods(methods, streams["mixed"][0]))
    for name in (*streams, *(method.name for method in methods)):
        assert name in text


@pytest.fixture
def threads_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_counts_kept_are_those_taken_again(tmp_path):
    counted = {"train": draw_prompts(3, seed=1), "test": draw_prompts(2, seed=2)}
    save_counts(tmp_path / "counts.npz", GRID, counted)
    grid, loaded = load_counts(tmp_path / "counts.npz")
    assert grid == GRID
    for split, prompts in counted.items():
        for kept, prompt in zip(loaded[split], prompts, strict=True):
            assert kept.task == prompt.task
            np.testing.assert_array_equal(kept.counts, prompt.counts)


def test_a_file_without_counts_is_refused_by_name(tmp_path):
    (tmp_path / "counts.npz").write_bytes(b"nothing of ours")
    with pytest.raises(ValueError, match=r"counts\.npz has no counts"):
        load_counts(tmp_path / "counts.npz")


@pytest.mark.usefixtures("threads_restored")
def test_recorded_routing_is_compared_from_the_command(tmp_path, capsys):
    random = np.random.default_rng(0)
    ids = random.integers(0, 8, size=(24 * 10, 2, 2)).astype(np.uint8)
    np.savez(tmp_path / "some_topk.npz", expert_ids=ids)
    lines = [{"routed_offset": 10 * number, "n_routed": 10, "category": f"Some {number % 2}"} for number in range(24)]
    (tmp_path / "some_index.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "report.json"
    status = main(
        ["--routing", str(tmp_path / "some_topk.npz"), "--networks", "gru-a", "--orders", "1", "--json", str(out)]
    )
    assert status == 0
    assert "gru-a" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["num_prompts"]["train"] + report["num_prompts"]["test"] == 24
    assert {row["method"] for row in report["coverage"]} >= {"gru-a", GLOBAL, HINDSIGHT}


@pytest.mark.usefixtures("threads_restored")
def test_neither_model_nor_routing_is_an_error_that_says_so(capsys):
    assert main([]) == 1
    assert "--routing" in capsys.readouterr().err
