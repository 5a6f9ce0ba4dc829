"""`emoe eval --routing`: what is read, when experts are chosen, and what a strategy may know."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from emoe.cli.commands import app
from emoe.core.errors import InvalidRequestError
from emoe.eval.decisions import find_decisions
from emoe.eval.recorded import RecordedPrompt, RecordedRouting, read_recorded
from emoe.eval.routing_eval import RoutingReport, RoutingSettings, covered_shares, evaluate_routing
from emoe.eval.routing_strategies import STRATEGIES

NUM_LAYERS, NUM_EXPERTS, TOP_K = 2, 16, 2


def make_routing(num_prompts: int = 24, num_tokens: int = 160, seed: int = 0) -> RecordedRouting:
    """Each category prefers a quarter of the experts, each prompt some of these."""
    random = np.random.default_rng(seed)
    prompts = []
    for index in range(num_prompts):
        weights = np.full((NUM_LAYERS, NUM_EXPERTS), 0.2)
        weights[:, (index % 4) * 4 : (index % 4 + 1) * 4] += random.gamma(0.5, 4.0, size=(NUM_LAYERS, 4))
        noise = random.gumbel(size=(num_tokens, NUM_LAYERS, NUM_EXPERTS))
        ids = np.argsort(-(np.log(weights) + noise), axis=-1)[..., :TOP_K]
        prompts.append(RecordedPrompt(f"category {index % 4}", ids.astype(np.uint8)))
    return RecordedRouting(NUM_EXPERTS, tuple(prompts))


def write_routing(folder: Path, routing: RecordedRouting) -> Path:
    path = folder / "small_topk.npz"
    np.savez(path, expert_ids=np.concatenate([prompt.expert_ids for prompt in routing.prompts]))
    offset = 0
    with gzip.open(folder / "small_index.jsonl.gz", "wt") as lines:
        for prompt in routing.prompts:
            entry = {"routed_offset": offset, "n_routed": prompt.num_tokens, "category": prompt.category}
            lines.write(json.dumps(entry) + "\n")
            offset += prompt.num_tokens
    return path


@pytest.fixture(scope="module")
def report() -> RoutingReport:
    return evaluate_routing(make_routing(), RoutingSettings(), name="small", say=lambda _: None)


def coverage(report: RoutingReport, strategy: str, *, unseen: str = "prompt", refresh: int | None = None) -> float:
    (row,) = (
        row for row in report.rows if (row.strategy, row.unseen, row.refresh_tokens) == (strategy, unseen, refresh)
    )
    return row.coverage


def test_a_file_reads_as_it_was_recorded(tmp_path: Path) -> None:
    routing = make_routing(num_prompts=3)
    read = read_recorded(write_routing(tmp_path, routing))
    assert (read.num_experts, read.num_layers, read.top_k) == (NUM_EXPERTS, NUM_LAYERS, TOP_K)
    for one, other in zip(read.prompts, routing.prompts, strict=True):
        assert one.category == other.category
        assert np.array_equal(one.expert_ids, other.expert_ids)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('{"routed_offset": 0}', "n_routed"),
        ('{"routed_offset": 0, "n_routed": 9999}', "tokens 0 to 9999"),
        ("no json", "line 1"),
    ],
)
def test_a_wrong_index_is_named_with_its_line(tmp_path: Path, line: str, wrong: str) -> None:
    path = write_routing(tmp_path, make_routing(num_prompts=2))
    (tmp_path / "other.jsonl").write_text(line + "\n")
    with pytest.raises(InvalidRequestError, match=wrong):
        read_recorded(path, tmp_path / "other.jsonl")


def test_files_that_are_none_or_hold_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="missing"):
        read_recorded(tmp_path / "missing_topk.npz")
    np.savez(tmp_path / "flat_topk.npz", expert_ids=np.zeros(4, dtype=np.uint8))
    with pytest.raises(InvalidRequestError, match="tokens, layers"):
        read_recorded(tmp_path / "flat_topk.npz")
    np.savez(tmp_path / "alone_topk.npz", expert_ids=np.zeros((4, 1, 1), dtype=np.uint8))
    with pytest.raises(InvalidRequestError, match="no index"):
        read_recorded(tmp_path / "alone_topk.npz")
    path = write_routing(tmp_path, make_routing(num_prompts=2))
    with pytest.raises(InvalidRequestError, match="expert 15"):
        read_recorded(path, num_experts=8)


def test_a_decision_knows_the_past_and_is_judged_by_what_comes() -> None:
    routing = make_routing(num_prompts=1, num_tokens=200)
    decisions = find_decisions(routing, after_tokens=32, refresh_tokens=64, min_tokens=96)
    assert decisions.num_tokens.tolist() == [64, 64, 40]
    ids = routing.prompts[0].expert_ids
    for begin, length, spans, future in zip(
        (32, 96, 160), decisions.num_tokens, decisions.spans, decisions.futures, strict=True
    ):
        tails = (ids[:begin], ids[max(0, begin - 64) : begin], ids[begin - 16 : begin])
        for span, expected in zip(spans, tails, strict=True):
            assert span == pytest.approx(frequency(expected), abs=1e-6)
        assert future == pytest.approx(frequency(ids[begin : begin + length]), abs=1e-6)


def frequency(ids: np.ndarray) -> np.ndarray:
    counts = np.stack([np.bincount(ids[:, layer].ravel(), minlength=NUM_EXPERTS) for layer in range(NUM_LAYERS)])
    return counts / counts.sum(axis=1, keepdims=True)


def test_coverage_is_the_share_of_choices_among_the_best_scored_of_each_layer() -> None:
    futures = np.array([[[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0]]], dtype=np.float32)
    scores = np.array([[[4, 3, 2, 1], [4, 3, 2, 1]]], dtype=np.float32)
    assert covered_shares(scores, futures, 0.5).tolist() == [0.375]
    assert covered_shares(scores, futures, 1.0).tolist() == [1.0]


def test_better_informed_strategies_cover_more_and_none_more_than_hindsight(report: RoutingReport) -> None:
    assert coverage(report, "random") == pytest.approx(0.25, abs=0.05)
    assert coverage(report, "global-frequency") < coverage(report, "task-frequency")
    assert coverage(report, "task-frequency-shuffled") < coverage(report, "task-frequency")
    assert coverage(report, "task-frequency") < coverage(report, "emoe")
    for refresh in (None, 64):
        best = coverage(report, "oracle", refresh=refresh)
        assert all(coverage(report, name, refresh=refresh) <= best + 1e-6 for name in STRATEGIES)


def test_with_its_category_unseen_a_task_is_worth_no_more_than_all_prompts(report: RoutingReport) -> None:
    everybody = coverage(report, "global-frequency", unseen="category")
    assert coverage(report, "task-frequency", unseen="category") == pytest.approx(everybody, abs=0.02)
    assert coverage(report, "own", unseen="category") == coverage(report, "own")


def test_judged_prompts_teach_nothing() -> None:
    """Routing without any pattern: whoever had seen the answers would cover more than a quarter."""
    random = np.random.default_rng(1)
    ids = np.argsort(random.random((40, 128, NUM_LAYERS, NUM_EXPERTS)), axis=-1)[..., :TOP_K].astype(np.uint8)
    routing = RecordedRouting(NUM_EXPERTS, tuple(RecordedPrompt("any", one) for one in ids))
    report = evaluate_routing(routing, RoutingSettings(), name="noise", say=lambda _: None)
    for name in ("global-frequency", "retrieval-trajectory", "emoe"):
        assert coverage(report, name) == pytest.approx(0.25, abs=0.03), name


@pytest.mark.parametrize("strategy", ["random", "task-frequency-shuffled"])
def test_what_a_strategy_draws_follows_the_seed(strategy: str) -> None:
    """Each prompt is a fold of its own, so that how folds are dealt changes nothing."""
    routing = make_routing(num_prompts=8)

    def covered_with(seed: int) -> float:
        settings = RoutingSettings(seed=seed, folds=8, strategies=(strategy,))
        return coverage(evaluate_routing(routing, settings, name="seed", say=lambda _: None), strategy)

    assert covered_with(1) == covered_with(1)
    assert len({covered_with(seed) for seed in range(4)}) > 1


def test_too_few_long_answers_are_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidRequestError, match="--min-tokens"):
        evaluate_routing(make_routing(1), RoutingSettings(), name="one", say=lambda _: None)


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    path = write_routing(tmp_path, make_routing())
    result = CliRunner().invoke(app, ["eval", f"--routing={path}", "--resident=25%,0.5", "--json=-"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {row["resident_ratio"] for row in report["rows"]} == {0.25, 0.5}
    result = CliRunner().invoke(app, ["eval", f"--routing={path}", "--strategy=own", "--strategy=oracle"])
    assert "24 answers" in result.stdout
    assert "oracle" in result.stdout


@pytest.mark.parametrize(
    ("option", "wrong"),
    [("--resident=0%", "share above 0"), ("--resident=x", "'x'"), ("--strategy=psychic", "psychic")],
)
def test_wrong_options_are_named(tmp_path: Path, option: str, wrong: str) -> None:
    path = write_routing(tmp_path, make_routing(num_prompts=2))
    result = CliRunner().invoke(app, ["eval", f"--routing={path}", option])
    assert result.exit_code == 2
    assert wrong in result.output
