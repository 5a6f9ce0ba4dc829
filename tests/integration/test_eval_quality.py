"""`emoe eval --data`: likelihoods as transformers gives them, residents as a worker routes among them, honest rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from support.calibrations import write_calibration
from support.checkpoints import CONFIGS, save_with_tokenizer
from support.engines import open_parts, random_prompts
from support.profiles import write_beside
from typer.testing import CliRunner

from emoe.cli.commands import app
from emoe.core.errors import InvalidRequestError
from emoe.core.experts import BoolGrid
from emoe.core.generation import Sampling
from emoe.eval.harness import Conditions, Harness
from emoe.eval.learnt import learn
from emoe.eval.measures import MEAN, QualityRow
from emoe.eval.quality import QualitySettings, evaluate_quality
from emoe.eval.rows import EncodedRow, encode_rows, read_rows
from emoe.eval.scoring import Piece, ScoringModel
from emoe.eval.strategies import AllResident, choose_variants
from emoe.eval.streams import Running, Stream, run_streams
from emoe.worker.build import bootstrap_plan
from emoe.worker.sequence import Sequence as EngineSequence

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

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield open_model
    torch.set_num_threads(num_threads)
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
                EngineSequence(
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


@pytest.mark.parametrize(
    ("waits", "phases"), [(False, [20, 16, 16, 16, 16, 5]), (True, [19, 16, 16, 16, 16, 6])], ids=["prefill", "waits"]
)
def test_phases_add_up_to_the_whole_and_judge_the_answer_alone(scoring: Open, waits: bool, phases: list[int]) -> None:
    model = scoring("gpt_oss")
    ids = random_prompts([90], seed=4)[0]
    row = EncodedRow(task="code", token_ids=tuple(ids), num_prompt_tokens=20)
    stream = Stream(requests=[Running(row=row, task="code")], first_token_waits=waits)
    (request,) = run_streams(model, [stream], AllResident(), refresh_tokens=16)
    assert [int(phase[0].sum()) // model.grid.rule.top_k for phase in request.phases] == phases
    (score,) = model.score([whole(ids, judged_from=20)])
    assert request.num_judged == 70
    assert request.nll == pytest.approx(score.nll.sum(), abs=1e-2)
    assert np.array_equal(request.wanted, score.wanted)
    assert request.state_sum / 70 == pytest.approx(score.mean_state, abs=1e-3)


def test_requests_that_share_rows_of_the_cache_one_after_another_are_answered_as_alone(scoring: Open) -> None:
    model = scoring("qwen3_moe")
    prompts = random_prompts([40, 9, 25, 60, 31, 12, 18], seed=6)
    rows = [EncodedRow(task="code", token_ids=tuple(ids), num_prompt_tokens=5) for ids in prompts]

    def answer(*streams: Stream) -> list[Running]:
        requests = [request for stream in streams for request in stream.requests]
        assert set(run_streams(model, streams, AllResident(), refresh_tokens=8)) == set(requests)
        return requests

    together = answer(Stream(requests=[Running(row=row, task="code") for row in rows], num_together=2))
    for one, row in zip(together, rows, strict=True):
        (alone,) = answer(Stream(requests=[Running(row=row, task="code")]))
        assert one.nll == pytest.approx(alone.nll, abs=1e-3)


def test_a_stream_has_no_more_requests_under_way_than_it_may(scoring: Open) -> None:
    model, seen = scoring("mixtral"), []

    class Watching(AllResident):
        def plan(self, running: Sequence[Running]) -> BoolGrid | None:
            seen.append(len(running))
            return super().plan(running)

    rows = [
        EncodedRow(task="code", token_ids=tuple(ids), num_prompt_tokens=3) for ids in random_prompts([10] * 7, seed=7)
    ]
    stream = Stream(requests=[Running(row=row, task="code") for row in rows], num_together=3)
    assert len(list(run_streams(model, [stream], Watching(), refresh_tokens=4))) == 7
    assert max(seen) == 3
    with pytest.raises(ValueError, match="17 requests"):
        next(run_streams(model, [Stream(requests=stream.requests[:1] * 17)], AllResident(), refresh_tokens=4))


@pytest.fixture
def rows(scoring: Open, tmp_path: Path) -> list[QualityRow]:
    model = scoring("qwen3_moe")
    data = write_data(tmp_path / "data", num_rows=5)
    profiled, judged = (encode_rows(model, read_rows(data, split)) for split in ("train", "test"))
    learnt = learn(model, profiled, None, seed=0, wants_memory=True, say=lambda _: None)
    conditions = Conditions(num_together=4, refresh_tokens=8)
    harness = Harness.open(
        model, judged, profile=learnt.profile, memory=learnt.memory, conditions=conditions, say=lambda _: None
    )
    settings = QualitySettings(resident_ratios=(0.5, 1.0), conditions=conditions)
    return list(evaluate_quality(harness, settings, choose_variants((), has_calibration=False)))


def test_every_strategy_is_judged_on_the_same_tokens_against_all_resident(rows: list[QualityRow]) -> None:
    found = {(row.load, row.strategy, row.resident_ratio, row.task): row for row in rows}
    names = {variant.name for variant in choose_variants((), has_calibration=False)}
    for load in ("single", "mixed"):
        for task in (*TASKS, MEAN):
            everybody = found[load, "all-resident", 1.0, task]
            assert everybody.perplexity_ratio == pytest.approx(1.0)
            assert (everybody.coverage, everybody.hit_ratio) == (1.0, 1.0)
            assert everybody.similarity == pytest.approx(1.0)
            for name in names:
                full, half = found[load, name, 1.0, task], found[load, name, 0.5, task]
                assert full.perplexity == pytest.approx(everybody.perplexity, rel=1e-4), name
                assert (full.coverage, full.hit_ratio) == (1.0, 1.0)
                assert full.similarity == pytest.approx(1.0, abs=1e-4)
                assert max(half.coverage, half.hit_ratio) < 1.0
                assert half.similarity < 0.999
                assert half.num_requests == everybody.num_requests
        covered = {name: found[load, name, 0.5, MEAN].coverage for name in names}
        assert covered["oracle"] == max(covered.values())
        assert covered["random"] < covered["task-frequency"]
        assert found[load, "global-frequency", 0.5, MEAN].bytes_moved == 0
        assert found[load, "random", 0.5, MEAN].bytes_moved > 0
    mean = found["single", "random", 0.5, MEAN]
    parts = [found["single", "random", 0.5, task].perplexity for task in TASKS]
    assert mean.perplexity == pytest.approx(math.prod(parts) ** (1 / len(parts)))


def test_the_command_prints_means_writes_every_row_and_draws_them(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    data, report, plot = write_data(tmp_path / "data", num_rows=3), tmp_path / "report.json", tmp_path / "plot.png"
    options = [str(folder("qwen2_moe")), f"--data={data}", "--resident=10%,50%", "--threads=1", "--load=single"]
    options += [f"--json={report}", f"--plot={plot}", "--planner=per-layer", "--strategy=emoe"]
    result = CliRunner().invoke(app, ["eval", *options])
    assert result.exit_code == 0, result.output
    assert "6 answers of 2 tasks" in result.stdout
    assert "shuffled labels change nothing" in result.stdout.replace("\n", " ")
    assert "10% resident is less than the 6 slots" in result.stderr
    written = json.loads(report.read_text())
    assert {row["task"] for row in written["rows"]} == {*TASKS, MEAN}
    names = {variant.name for variant in choose_variants(["emoe"], has_calibration=False)} | {"all-resident"}
    assert {row["strategy"] for row in written["rows"]} == names
    assert {row["load"] for row in written["rows"]} == {"single"}
    assert {row["strategy"] for row in written["summary"]} == names - {"all-resident"}
    assert {row["strategy"] for row in written["labels"]} == {"emoe", "task-frequency"}
    assert written["origin"]["profile"] == "made from 6 training rows"
    assert plot.stat().st_size > 10_000


def test_a_profile_and_a_calibration_beside_the_model_are_used(folder: Callable[[str], Path], tmp_path: Path) -> None:
    model, data, report = folder("qwen2_moe"), write_data(tmp_path / "data", num_rows=2), tmp_path / "report.json"
    write_beside(model, code=1, math=2)
    write_calibration(model)
    options = [str(model), f"--data={data}", "--resident=90%", "--load=mixed", f"--json={report}", "--threads=1"]
    result = CliRunner().invoke(app, ["eval", *options, "--strategy=emoe-calibrated"])
    assert result.exit_code == 0, result.output
    written = json.loads(report.read_text())
    assert written["origin"]["profile"].endswith("emoe-profile.json")
    assert written["origin"]["calibration_slots"] > 0
    found = {row["strategy"]: row for row in written["rows"] if row["task"] == MEAN}
    assert {"emoe-calibrated", "emoe-calibrated-shuffled"} < set(found)


def test_a_calibration_that_is_not_there_is_named(folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", num_rows=2)
    options = [str(folder("mixtral")), f"--data={data}", "--strategy=emoe-calibrated"]
    result = CliRunner().invoke(app, ["eval", *options])
    assert result.exit_code == 1
    assert "emoe-calibration.safetensors" in result.output


def test_a_foreign_profile_is_passed_over_unless_it_was_named(folder: Callable[[str], Path], tmp_path: Path) -> None:
    model, data, report = folder("mixtral"), write_data(tmp_path / "data", num_rows=2), tmp_path / "report.json"
    foreign = write_beside(folder("olmoe"), code=1)
    path = model / foreign.name
    path.write_bytes(foreign.read_bytes())
    options = [str(model), f"--data={data}", "--resident=50%", "--load=mixed", f"--json={report}", "--threads=1"]
    result = CliRunner().invoke(app, ["eval", *options, "--strategy=task-frequency"])
    assert result.exit_code == 0, result.output
    assert "other weights" in result.stderr
    assert json.loads(report.read_text())["origin"]["profile"] == "made from 4 training rows"
    result = CliRunner().invoke(app, ["eval", *options, f"--profile={path}"])
    assert result.exit_code == 1
    assert "other weights" in result.stderr


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
