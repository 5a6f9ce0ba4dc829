"""What the evaluation of the shipped model counts, and what it makes of the counts."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import Qwen2MoeConfig

from architecture import build_model
from corpus import TASKS, Row, encode
from evaluate import evaluate
from metrics import ExactMatch, combine, coverage, exact_match, pool, top_share
from report import (
    BEGIN,
    END,
    Evaluation,
    QuarterResult,
    TaskResult,
    language_cells,
    plain_table,
    read_json,
    routing_cells,
    update_readme,
    write_json,
)
from scoring import Scorer
from train import Counters, Recipe, save_checkpoint

CPU = torch.device("cpu")
counts = st.lists(st.integers(1, 50), min_size=24, max_size=24).map(lambda flat: np.array(flat).reshape(3, 8))


# The figures


@given(choices_LE=counts)
def test_no_other_quarter_covers_more_than_the_top_one(choices_LE: np.ndarray) -> None:
    top = top_share(choices_LE, share=0.25)
    assert top.sum(axis=1).tolist() == [2, 2, 2]
    for first, second in pairwise(range(8)):
        other = np.zeros_like(top)
        other[:, [first, second]] = True
        assert coverage(choices_LE, top) >= coverage(choices_LE, other)


@given(choices_LE=counts)
def test_all_experts_cover_everything(choices_LE: np.ndarray) -> None:
    assert coverage(choices_LE, top_share(choices_LE, share=1.0)) == 1.0


def test_pooled_choices_weigh_each_task_the_same() -> None:
    frequent, rare = np.array([[3000, 1000]]), np.array([[0, 4]])
    np.testing.assert_allclose(pool([frequent, rare]), [[0.375, 0.625]])


def test_answers_match_whatever_their_case_and_margins() -> None:
    result = exact_match([" Positive\n", "sad", "negative"], ["positive", "joy", "Negative"])
    assert result == ExactMatch(rows=3, exact_match=2 / 3, chance=1 / 3)


def test_chance_is_the_best_constant_answer_of_each_part() -> None:
    parts = [exact_match(["x"] * 4, ["a", "a", "a", "b"]), exact_match(["c"], ["c"])]
    assert combine(parts) == ExactMatch(rows=5, exact_match=0.2, chance=pytest.approx(0.8))


# The scorer


@pytest.fixture
def checkpoint(config: Qwen2MoeConfig, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    recipe, counters = Recipe(tokens=1, minutes=1), Counters(step=3, tokens=900, seconds=2.0)
    save_checkpoint(build_model(config, seed=4), tmp_path, tmp_path / "tiny", recipe=recipe, counters=counters)
    return tmp_path / "tiny"


def test_scores_equal_the_loss_of_transformers(
    checkpoint: Path, tokenizer: Tokenizer, rows: dict[str, list[Row]]
) -> None:
    scorer = Scorer(checkpoint, CPU)
    examples = encode(tokenizer, rows["math"])
    nll, response_nll = 0.0, 0.0
    for example in examples:
        ids = torch.from_numpy(example.ids).long()[None]
        answer = ids.clone()
        answer[:, : example.num_prompt] = -100
        with torch.inference_mode():
            nll += scorer.model(input_ids=ids, labels=ids).loss.item() * (len(example.ids) - 1)
            num_answer = len(example.ids) - example.num_prompt
            response_nll += scorer.model(input_ids=ids, labels=answer).loss.item() * num_answer
    score = scorer.score(examples, tokens_per_batch=100)
    assert score.num_tokens == sum(len(example.ids) - 1 for example in examples)
    assert score.num_response_tokens == sum(len(example.ids) - example.num_prompt for example in examples)
    assert score.perplexity == pytest.approx(math.exp(nll / score.num_tokens), rel=1e-5)
    assert score.response_perplexity == pytest.approx(math.exp(response_nll / score.num_response_tokens), rel=1e-5)


def test_every_token_makes_top_k_choices_in_every_layer(
    checkpoint: Path, tokenizer: Tokenizer, rows: dict[str, list[Row]]
) -> None:
    examples = encode(tokenizer, rows["chat"])
    score = Scorer(checkpoint, CPU).score(examples)
    assert score.choices_LE.sum(axis=1).tolist() == [2 * sum(len(example.ids) for example in examples)] * 2


def test_absent_experts_are_as_if_they_had_never_existed(
    checkpoint: Path, tokenizer: Tokenizer, rows: dict[str, list[Row]]
) -> None:
    """Against a model whose absent experts were cut out of router and experts alike."""
    scorer, reference = Scorer(checkpoint, CPU), Scorer(checkpoint, CPU)
    kept = [0, 3, 6]
    resident_LE = np.zeros((2, 8), dtype=bool)
    resident_LE[:, kept] = True
    for layer in reference.model.model.layers:
        layer.mlp.gate.weight.data = layer.mlp.gate.weight.data[kept]
        layer.mlp.experts.gate_up_proj.data = layer.mlp.experts.gate_up_proj.data[kept]
        layer.mlp.experts.down_proj.data = layer.mlp.experts.down_proj.data[kept]
        layer.mlp.experts.num_experts = len(kept)
    examples = encode(tokenizer, rows["code"])
    with scorer.only_resident(resident_LE):
        rerouted = scorer.score(examples)
    expected = reference.score(examples)
    assert rerouted.nll == pytest.approx(expected.nll, rel=1e-5)
    assert rerouted.choices_LE[:, kept].tolist() == expected.choices_LE[:, :3].tolist()
    assert rerouted.choices_LE[~resident_LE].sum() == 0
    assert scorer.score(examples).choices_LE[~resident_LE].sum() > 0


def test_answers_do_not_depend_on_the_prompts_beside_them(checkpoint: Path, rows: dict[str, list[Row]]) -> None:
    scorer = Scorer(checkpoint, CPU)
    prompts = [rows["chat"][0].prompt, rows["qa"][1].prompt, rows["math"][2].prompt]
    together = scorer.answer(prompts, max_new_tokens=6)
    assert together == [scorer.answer([prompt], max_new_tokens=6)[0] for prompt in prompts]


def test_an_evaluation_covers_every_task(checkpoint: Path, rows: dict[str, list[Row]]) -> None:
    evaluation = evaluate(checkpoint, Scorer(checkpoint, CPU), rows, split="test")
    assert set(evaluation.tasks) == set(TASKS)
    assert set(evaluation.subtasks) == {"classification_0", "classification_1"}
    assert evaluation.training is not None
    assert evaluation.training["tokens"] == 900
    for result in evaluation.tasks.values():
        assert result.rows == 8
        assert 0.25 < result.own_quarter.coverage < 1


# The report


@pytest.fixture
def evaluation() -> Evaluation:
    def quarter(value: float) -> QuarterResult:
        return QuarterResult(coverage=value, response_factor=1 + value, factor=2 + value)

    def task(perplexity: float) -> TaskResult:
        return TaskResult(rows=10, tokens=1200, response_perplexity=perplexity, perplexity=perplexity + 1,
                          own_quarter=quarter(0.6), global_quarter=quarter(0.4))  # fmt: skip

    part = ExactMatch(rows=10, exact_match=0.7, chance=0.2)
    return Evaluation(
        model="tiny", split="test", parameters=1_500_000, routed_share=0.8, checkpoint_bytes=3_000_000,
        training={"tokens": 2_000_000, "step": 30, "seconds": 600.0, "recipe": {"absence": 0.5}},
        tasks={"chat": task(2.0), "code": task(8.0)},
        classification=part, subtasks={"intent": part},
    )  # fmt: skip


def test_an_evaluation_survives_its_file(evaluation: Evaluation, tmp_path: Path) -> None:
    write_json(evaluation, tmp_path / "evaluation.json")
    assert read_json(tmp_path / "evaluation.json") == evaluation


def test_the_last_row_sums_counts_and_averages_figures(evaluation: Evaluation) -> None:
    assert language_cells(evaluation)[-1] == ["all tasks", "20", "2,400", "4.00", "5.20"]
    assert routing_cells(evaluation)[-1] == ["all tasks", "0.600", "0.400", "1.60", "1.40", "2.60", "2.40"]


def test_columns_of_a_plain_table_align(evaluation: Evaluation) -> None:
    lines = plain_table(language_cells(evaluation)).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_the_readme_changes_between_the_markers_alone(evaluation: Evaluation, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"Before\n{BEGIN}\nold\n{END}\nAfter\n")
    update_readme(readme, evaluation)
    once = readme.read_text()
    update_readme(readme, evaluation)
    assert readme.read_text() == once
    assert once.startswith(f"Before\n{BEGIN}\n")
    assert once.endswith(f"{END}\nAfter\n")
    assert "| chat | 10 | 1,200 | 2.00 | 3.00 |" in once
    assert "old" not in once


def test_a_readme_without_markers_is_refused(evaluation: Evaluation, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing here\n")
    with pytest.raises(ValueError, match="evaluation:begin"):
        update_readme(readme, evaluation)
