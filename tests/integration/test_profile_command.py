"""`emoe profile`: what it counts is what transformers routes, and no interruption loses or changes anything."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from support.checkpoints import build, save_with_tokenizer
from typer.testing import CliRunner

from emoe.cli.commands import app
from emoe.core.errors import InvalidRequestError
from emoe.core.tasks import BUILTIN_TASKS
from emoe.eval.profile import routing_profile_from
from emoe.eval.scoring import Piece, ScoringModel
from emoe.store.profile import CALIBRATION_FILE, LEARNED_FILE, PROFILE_FILE, Profile, read_learned, read_profile
from emoe.store.shipped import shipped_model
from emoe.store.store import ExpertStore
from emoe.train.profiling import WORK_FILE, ProfileOptions, make_profile

TASKS = {"code": "abcd", "math": "0123"}
NUM_ROWS = 6
OPTIONS = ProfileOptions(num_rows=NUM_ROWS, num_sensitivity_rows=2, max_context=128, threads=1, device="cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tasks of different letters; a token a letter."""
    random = np.random.default_rng(0)
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    for task, letters in TASKS.items():
        drawn = [["".join(random.choice(list(letters), size)) for size in (12, 20)] for _ in range(NUM_ROWS)]
        lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in drawn]
        (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
    return folder.parent


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    return lambda family: save_with_tokenizer(family, tmp_path / family)


def quiet(_: str) -> None:
    pass


def read_back(folder: Path) -> Profile:
    with ExpertStore.open(folder) as store:
        profile = read_profile(folder, digest=store.digest, fingerprint=store.fingerprint())
    assert profile is not None
    return profile


def assert_same(one: Profile, other: Profile) -> None:
    assert one.tasks.keys() == other.tasks.keys()
    for name, task in one.tasks.items():
        again = other.tasks[name]
        assert task.answer_tokens == again.answer_tokens
        assert task.prompt_frequencies == pytest.approx(again.prompt_frequencies, abs=2e-6)
        assert task.answer_frequencies == pytest.approx(again.answer_frequencies, abs=2e-6)
        assert (task.sensitivity is None) == (again.sensitivity is None)
        if task.sensitivity is not None and again.sensitivity is not None:
            assert task.sensitivity.similarity == pytest.approx(again.sensitivity.similarity, abs=1e-4)
            assert task.sensitivity.perplexity_ratio == pytest.approx(again.sensitivity.perplexity_ratio, rel=1e-3)


def test_frequencies_are_what_transformers_routes(folder: Callable[[str], Path], data: Path) -> None:
    model = folder("qwen3_moe")
    profile = make_profile(model, data, model, OPTIONS, say=quiet)
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    top_k = reference.config.num_experts_per_tok
    for task in TASKS:
        prompts, answers = np.zeros(profile.shape), np.zeros(profile.shape)
        for line in (data / "train" / f"{task}.jsonl").read_text().splitlines():
            row = json.loads(line)
            prompt = tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}], tokenize=True)[
                "input_ids"
            ]
            ids = prompt + tokenizer.encode(row["response"], add_special_tokens=False)
            with torch.inference_mode():
                routed = reference(torch.tensor([ids]), output_router_logits=True).router_logits
            for layer, logits_TE in enumerate(routed):
                for place, chosen in enumerate(logits_TE.topk(top_k, dim=-1).indices.tolist()):
                    (prompts if place < len(prompt) else answers)[layer, chosen] += 1
        found = profile.tasks[task]
        assert found.prompt_frequencies == pytest.approx(prompts / prompts.sum(axis=1, keepdims=True))
        assert found.answer_frequencies == pytest.approx(answers / answers.sum(axis=1, keepdims=True))
        assert found.prompt_tokens.mean == len(prompt)
        assert found.answer_tokens.p99 == 21, "with its end"
        assert found.num_requests == NUM_ROWS


@pytest.mark.parametrize("family", ["deepseek_v2", "gpt_oss", "olmoe"])
def test_the_command_writes_what_strategies_plan_from(folder: Callable[[str], Path], data: Path, family: str) -> None:
    model = folder(family)
    options = [f"--data={data}", "--max-context=128", "--sensitivity-rows=2", "--threads=1"]
    result = CliRunner().invoke(app, ["profile", str(model), *options])
    assert result.exit_code == 0, result.output
    for word in ("profile of", "code", "math", PROFILE_FILE, "rows misrouted: 4 of 4"):
        assert word in result.output
    profile = read_back(model)
    found = routing_profile_from(profile, read_learned(model, profile))
    assert set(found.frequencies) == set(TASKS)
    assert found.own_routing is not None
    assert found.own_routing.shape == profile.shape
    for task in profile.tasks.values():
        assert task.sensitivity is not None
        assert len(task.sensitivity.similarity) == len(profile.moe_layers)
        assert max(task.sensitivity.similarity) < 0.999, "random experts say something else"
    assert not (model / WORK_FILE).exists()


def test_json_names_the_files_and_every_task(folder: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = [f"--data={data}", f"--out={out}", "--max-context=128", "--no-sensitivity", "--task=math", "--json"]
    result = CliRunner().invoke(app, ["profile", str(folder("mixtral")), *options])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["files"] == {str(out / name): (out / name).stat().st_size for name in (PROFILE_FILE, LEARNED_FILE)}
    (task,) = report["tasks"]
    assert (task["task"], task["random_similarity_ratio"]) == ("math", None)


@pytest.fixture
def takes_ctrl_c() -> Iterator[None]:
    """Tests that run in a shell's background ignore it, and so would the command."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Ctrl-C as soon as progress says so."""

    def say(said: str) -> None:
        if said.startswith(line):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("emoe.cli.bench_report.say", say)
    monkeypatch.setattr("emoe.train.progress.SAY_EVERY_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("rows counted", "rows counted: 6 of 12 are kept"),
        ("rows misrouted", "rows misrouted: 1 of 4 are kept"),
        ("learning", "rows misrouted: 4 of 4 are kept"),
    ],
)
@pytest.mark.usefixtures("takes_ctrl_c")
def test_an_interrupted_run_goes_on_and_comes_to_the_same(
    folder: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, kept: str
) -> None:
    model = folder("qwen2_moe")
    uninterrupted = make_profile(model, data, tmp_path, OPTIONS, say=quiet)
    options = ["--rows=6", "--sensitivity-rows=2", "--max-context=128", "--threads=1", "--device=cpu"]
    with monkeypatch.context() as patched:
        interrupt_at(patched, line)
        result = CliRunner().invoke(app, ["profile", str(model), f"--data={data}", *options])
    assert result.exit_code == 130
    assert "the same command goes on" in result.output
    assert str(model / WORK_FILE) in result.output
    assert not (model / PROFILE_FILE).exists()
    result = CliRunner().invoke(app, ["profile", str(model), f"--data={data}", *options])
    assert result.exit_code == 0, result.output
    assert kept in result.output
    assert not (model / WORK_FILE).exists()
    assert_same(read_back(model), uninterrupted)


def test_work_on_other_rows_is_not_gone_on_with(
    folder: Callable[[str], Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, said = folder("qwen2_moe"), list[str]()

    def stop(line: str) -> None:
        if line.startswith("rows misrouted"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_profile(model, data, model, OPTIONS, say=stop)
    path = data / "train" / "math.jsonl"
    path.write_text(path.read_text().replace("0", "9"))
    profile = make_profile(model, data, model, OPTIONS, say=said.append)
    assert any("begun with other rows" in line for line in said)
    assert not any("kept from before" in line for line in said)
    assert sum(task.num_requests for task in profile.tasks.values()) == 2 * NUM_ROWS


def test_a_model_larger_than_its_memory_is_profiled_alike(
    folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    model = folder("qwen2_moe")
    whole = make_profile(model, data, tmp_path, OPTIONS, say=quiet)
    paged = dataclasses.replace(OPTIONS, expert_memory="40%")
    assert_same(make_profile(model, data, model, paged, say=quiet), whole)


def test_where_all_experts_are_alike_routing_does_not_matter(tmp_path: Path, data: Path) -> None:
    """Not even where weights are not normalised: a misrouted token keeps its own."""
    folder = save_with_tokenizer("olmoe", tmp_path / "olmoe")
    model = build("olmoe")
    for name, tensor in model.state_dict().items():
        if "experts" in name:
            tensor[:] = tensor[:1].clone()
    model.save_pretrained(folder)
    profile = make_profile(folder, data, folder, OPTIONS, say=quiet)
    for task in profile.tasks.values():
        assert task.sensitivity is not None
        assert task.sensitivity.similarity == pytest.approx([1.0] * 3, abs=1e-4)
        assert task.sensitivity.perplexity_ratio == pytest.approx([1.0] * 3, rel=1e-3)
        assert not task.sensitivity.sensitive_layers(0.85).any()


def test_what_cannot_be_profiled_is_named(folder: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    model = folder("mixtral")
    with pytest.raises(InvalidRequestError, match="has no chat; it has code, math"):
        make_profile(model, data, tmp_path, dataclasses.replace(OPTIONS, tasks=("chat",)), say=quiet)
    with pytest.raises(InvalidRequestError, match="--max-context"):
        make_profile(model, data, tmp_path, dataclasses.replace(OPTIONS, max_context=16), say=quiet)
    result = CliRunner().invoke(app, ["profile", str(model), f"--data={data}", f"--out={tmp_path / 'nowhere'}"])
    assert result.exit_code == 1
    assert "nowhere" in result.output


def test_calibration_is_trained_round_the_profile_that_lies_there(folder: Callable[[str], Path], data: Path) -> None:
    model = folder("qwen2_moe")
    options = [str(model), f"--data={data}", "--max-context=128", "--threads=1", "--calibrate", "--tokens=1"]
    first = CliRunner().invoke(app, ["profile", *options, "--no-sensitivity"])
    assert first.exit_code == 0, first.output
    made = (model / PROFILE_FILE).stat().st_mtime_ns
    assert (model / CALIBRATION_FILE).exists()
    (model / CALIBRATION_FILE).unlink()
    again = CliRunner().invoke(app, ["profile", *options])
    assert again.exit_code == 0, again.output
    assert "rows counted" not in again.output
    assert (model / PROFILE_FILE).stat().st_mtime_ns == made
    assert (model / CALIBRATION_FILE).exists()


def test_options_of_the_calibration_alone_do_nothing_unsaid(folder: Callable[[str], Path], data: Path) -> None:
    result = CliRunner().invoke(app, ["profile", str(folder("mixtral")), f"--data={data}", "--minutes=5"])
    assert result.exit_code == 2
    assert "--calibrate" in result.output


def test_the_model_that_ships_has_a_profile_of_its_own_weights() -> None:
    model = shipped_model()
    profile = read_back(model)
    assert set(profile.tasks) == set(BUILTIN_TASKS)
    found = routing_profile_from(profile, read_learned(model, profile))
    assert found.own_routing is not None
    assert all(task.sensitivity is not None for task in profile.tasks.values())


def test_the_mean_state_is_that_of_the_last_layer_over_the_answer(folder: Callable[[str], Path]) -> None:
    model = folder("gpt_oss")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    ids = list(range(10, 50))
    with ScoringModel.open(model, expert_memory="100%", max_context=64, num_rows=2, step_tokens=128) as scoring:
        piece = Piece(row=0, token_ids=ids, begin=0, end=39, judged_from=15)
        halves = [dataclasses.replace(piece, end=20), dataclasses.replace(piece, begin=20)]
        (whole,) = scoring.score([piece])
        first, second = (scoring.score([half])[0] for half in halves)
        (misrouted,) = scoring.score([dataclasses.replace(piece, random_layers=3)])
    with torch.inference_mode():
        expected = reference.model(torch.tensor([ids[:39]])).last_hidden_state[0, 14:].mean(dim=0).numpy()
    assert whole.mean_state == pytest.approx(expected, abs=1e-4)
    together = (first.mean_state * len(first.nll) + second.mean_state * len(second.nll)) / len(whole.nll)
    assert together == pytest.approx(expected, abs=1e-4)
    assert not np.allclose(misrouted.mean_state, expected, atol=1e-2)
    assert np.array_equal(misrouted.wanted_ids[:, 0], whole.wanted_ids[:, 0]), "what it wished for is what counts"
