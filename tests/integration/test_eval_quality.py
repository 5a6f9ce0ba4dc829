"""`emoe eval --data`: likelihoods as transformers gives them, residents as a worker routes among them, honest rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from support.checkpoints import CONFIGS, save_with_tokenizer
from support.engines import open_parts, random_prompts
from typer.testing import CliRunner

from emoe.cli.commands import app
from emoe.core.errors import InvalidRequestError
from emoe.core.experts import BoolGrid
from emoe.core.generation import Sampling
from emoe.eval.quality import MEAN, QualityRow, QualitySettings, evaluate_quality
from emoe.eval.rows import EncodedRow, encode_rows, read_rows
from emoe.eval.scoring import Piece, ScoringModel
from emoe.eval.strategies import AllResident
from emoe.eval.streams import Running, Stream, run_streams
from emoe.worker.build import bootstrap_plan
from emoe.worker.sequence import Sequence

Open = Callable[[str], ScoringModel]
TASKS = {"code": "abcd", "math": "0123"}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    return lambda family: save_with_tokenizer(family, tmp_path / family)


@pytest.fixture
def scoring(folder: Callable[[str], Path]) -> Iterator[Open]:
    """Opens a random model of a family, one a test."""
    opened = []

    def open_model(family: str) -> ScoringModel:
        context = ScoringModel.open(folder(family), expert_memory="100%", max_context=128, num_rows=16, step_tokens=256)
        opened.append(context)
        return context.__enter__()

    yield open_model
    for context in opened:
        context.__exit__(None, None, None)


def write_data(folder: Path, *, num_rows: int = 10) -> Path:
    """Two tasks of different letters."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for task, letters in TASKS.items():
            lines = [
                {
                    "prompt": "".join(random.choice(list(letters), 12)),
                    "response": "".join(random.choice(list(letters), 20)),
                }
                for _ in range(num_rows)
            ]
            (folder / split / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def whole(ids: list[int], *, judged_from: int, resident: BoolGrid | None = None, row: int = 0) -> Piece:
    return Piece(row=row, token_ids=ids, begin=0, end=len(ids) - 1, judged_from=judged_from, resident=resident)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_tokens_are_as_likely_as_transformers_says(scoring: Open, tmp_path: Path, family: str) -> None:
    model = scoring(family)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / family, dtype=torch.float32, attn_implementation="eager"
    )
    prompts = random_prompts([7, 40, 23], seed=1)
    scores = model.score([whole(ids, judged_from=4, row=row) for row, ids in enumerate(prompts)])
    for ids, score in zip(prompts, scores, strict=True):
        with torch.inference_mode():
            logits = reference(torch.tensor([ids])).logits[0]
        expected = torch.nn.functional.cross_entropy(logits[3:-1], torch.tensor(ids[4:]), reduction="none")
        assert score.nll == pytest.approx(expected.double().numpy(), abs=2e-4)
        assert score.is_best.tolist() == (logits[3:-1].argmax(-1) == torch.tensor(ids[4:])).tolist()


def test_residents_are_routed_among_as_the_engine_does(scoring: Open, tmp_path: Path) -> None:
    model = scoring("qwen2_moe")
    ids = random_prompts([30], seed=2)[0]
    resident = bootstrap_plan(model.grid, model.grid.num_experts_total // 2)
    (score,) = model.score([whole(ids, judged_from=1, resident=resident)])
    with open_parts(tmp_path / "qwen2_moe", miss_policy="reroute", plan=resident) as parts:
        engine = parts.build_engine()
        for place in (1, 10, 29):
            engine.add(
                Sequence(
                    sequence_id=str(place),
                    task="code",
                    token_ids=ids[:place],
                    num_prompt_tokens=place,
                    sampling=Sampling(max_tokens=1),
                    seed=0,
                )
            )
            engine.step()
            assert engine.logits_NV is not None
            nll = -engine.logits_NV[0].float().log_softmax(-1)[ids[place]].item()
            assert score.nll[place - 1] == pytest.approx(nll, abs=2e-4)
    (everything,) = model.score([whole(ids, judged_from=1)])
    assert not np.allclose(everything.nll, score.nll, atol=1e-2)


def test_pieces_that_see_different_residents_share_a_step(scoring: Open) -> None:
    model = scoring("olmoe")
    ids = random_prompts([30], seed=2)[0]
    half = bootstrap_plan(model.grid, model.grid.num_experts_total // 2)
    alone = [model.score([whole(ids, judged_from=1, resident=resident)])[0] for resident in (None, half)]
    together = model.score([whole(ids, judged_from=1), whole(ids, judged_from=1, resident=half, row=1)])
    for one, other in zip(alone, together, strict=True):
        assert one.nll == pytest.approx(other.nll, abs=1e-4)
        assert np.array_equal(one.wanted[0], other.wanted[0])


def test_phases_add_up_to_the_whole_and_judge_the_answer_alone(scoring: Open) -> None:
    model = scoring("gpt_oss")
    ids = random_prompts([90], seed=4)[0]
    row = EncodedRow(task="code", token_ids=tuple(ids), num_prompt_tokens=20)
    (stream,) = run_streams(model, [Stream(requests=[Running(row=row, task="code")])], AllResident(), refresh_tokens=16)
    (request,) = stream.requests
    assert [int(phase[0].sum()) // model.grid.rule.top_k for phase in request.phases] == [19, 16, 16, 16, 16, 6]
    (score,) = model.score([whole(ids, judged_from=20)])
    assert request.num_judged == 70
    assert request.nll == pytest.approx(score.nll.sum(), abs=1e-2)
    assert np.array_equal(request.wanted, score.wanted)


@pytest.fixture
def rows(scoring: Open, tmp_path: Path) -> list[QualityRow]:
    model = scoring("qwen3_moe")
    data = write_data(tmp_path / "data")
    profiled, judged = (encode_rows(model, read_rows(data, split)) for split in ("train", "test"))
    settings = QualitySettings(resident_ratios=(0.5, 1.0), num_together=4, refresh_tokens=8)
    return list(evaluate_quality(model, profiled, judged, settings, say=lambda _: None))


def test_every_strategy_is_judged_on_the_same_tokens_against_all_resident(rows: list[QualityRow]) -> None:
    found = {(row.load, row.strategy, row.resident_ratio, row.task): row for row in rows}
    for load in ("single", "mixed"):
        for task in (*TASKS, MEAN):
            everybody = found[load, "all-resident", 1.0, task]
            assert everybody.perplexity_ratio == pytest.approx(1.0)
            assert everybody.coverage_ratio == 1.0
            for name in QualitySettings.strategies:
                full, half = found[load, name, 1.0, task], found[load, name, 0.5, task]
                assert full.perplexity == pytest.approx(everybody.perplexity, rel=1e-4), name
                assert full.coverage_ratio == 1.0
                assert half.coverage_ratio < 1.0
                assert half.num_requests == everybody.num_requests
    for load in ("single", "mixed"):
        covered = {name: found[load, name, 0.5, MEAN].coverage_ratio for name in QualitySettings.strategies}
        assert covered["oracle"] == max(covered.values())
        assert covered["random"] < covered["task-frequency"]
        assert found[load, "global-frequency", 0.5, MEAN].moved_bytes == 0
        assert found[load, "random", 0.5, MEAN].moved_bytes > 0
    mean = found["single", "random", 0.5, MEAN]
    parts = [found["single", "random", 0.5, task].perplexity for task in TASKS]
    assert mean.perplexity == pytest.approx(math.prod(parts) ** (1 / len(parts)))


def test_the_command_prints_means_and_writes_every_row(folder: Callable[[str], Path], tmp_path: Path) -> None:
    data, report = write_data(tmp_path / "data", num_rows=3), tmp_path / "report.json"
    options = [str(folder("qwen2_moe")), f"--data={data}", "--resident=50%", f"--json={report}", "--threads=1"]
    result = CliRunner().invoke(app, ["eval", *options, "--strategy=emoe", "--strategy=random"])
    assert result.exit_code == 0, result.output
    assert "6 answers of 2 tasks" in result.stdout
    written = json.loads(report.read_text())
    assert {row["task"] for row in written["rows"]} == {*TASKS, MEAN}
    assert {row["strategy"] for row in written["rows"]} == {"all-resident", "emoe", "random"}


def test_data_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"train has no TASK\.jsonl"):
        read_rows(tmp_path, "train")
    (tmp_path / "train").mkdir()
    path = tmp_path / "train" / "code.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(InvalidRequestError, match="line 2"):
        read_rows(tmp_path, "train")
    assert len(read_rows(tmp_path, "train", max_rows=1)["code"]) == 1
    path.rename(tmp_path / "train" / "No Name.jsonl")
    with pytest.raises(InvalidRequestError, match="No Name"):
        read_rows(tmp_path, "train")


def test_rows_that_fit_no_context_are_refused_with_what_to_do(folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", num_rows=2)
    result = CliRunner().invoke(app, ["eval", str(folder("mixtral")), f"--data={data}", "--max-context=16"])
    assert result.exit_code == 1
    assert "--max-context" in result.output


def test_a_model_and_a_recording_are_two_things() -> None:
    result = CliRunner().invoke(app, ["eval"])
    assert result.exit_code == 2
    assert "--data" in result.output
