"""Training a calibration on small models: it learns, goes on where it stopped, and refuses what does not fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import quantised
from support.checkpoints import CONFIGS, save_with_tokenizer

from emoe.core.errors import BudgetError, CheckpointError, InvalidRequestError, UnsupportedModelError
from emoe.eval.rows import EncodedRow, Row
from emoe.store.calibration import PARTS, read_calibration_info
from emoe.store.profile import Lengths, Profile, TaskProfile
from emoe.store.store import ExpertStore
from emoe.train import calibrate_loop
from emoe.train.calibrate import CalibrateOptions, CalibrationReport, run_calibration
from emoe.train.calibrate_batches import Dealer, flatten
from emoe.train.calibrate_loop import Schedule
from emoe.train.calibrate_loss import divergence
from emoe.train.calibrate_masks import MaskDrawer, MaskSettings
from emoe.train.calibrate_memory import check_memory

TASKS = ("code", "qa")
OPTIONS = CalibrateOptions(
    tokens=1500,
    masks=MaskSettings(resident_ratios=(0.5,), own_routing_ratio=0.5),
    schedule=Schedule(tokens_per_batch=150, learning_rate=1e-2, warmup_steps=2),
    max_context=100,
    device="cpu",
    threads=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = save_with_tokenizer(family, tmp_path_factory.mktemp(family), seed=5)
        return made[family]

    return of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = tmp_path_factory.mktemp("data") / "train"
    train.mkdir()
    for task in TASKS:
        rows = [{"prompt": f"{task} {n} of many", "response": f"{n * n} " * (2 + n % 7)} for n in range(30)]
        (train / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return train.parent


def profile_of(folder: Path) -> Profile:
    """Frequencies at random: what they are matters little here."""
    lengths = Lengths(mean=20, p50=20, p90=30, p99=30)
    with ExpertStore.open(folder) as store:
        tasks = {}
        for seed, task in enumerate(TASKS):
            counts = np.random.default_rng(seed).random(store.grid.shape) * store.grid.all_experts()
            frequencies = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
            tasks[task] = TaskProfile(
                num_requests=1,
                num_tokens=40,
                prompt_tokens=lengths,
                answer_tokens=lengths,
                prompt_frequencies=frequencies,
                answer_frequencies=frequencies,
            )
        return Profile(
            family=store.family,
            digest=store.digest,
            fingerprint=store.fingerprint(),
            shape=store.grid.shape,
            moe_layers=store.grid.moe_layers,
            tasks=tasks,
        )


def calibrate(
    folder: Path, data: Path, output: Path, *, say: Callable[[str], None] = lambda _: None, **fields: object
) -> CalibrationReport:
    options = dataclasses.replace(OPTIONS, output=output, **fields)  # type: ignore[arg-type]
    return run_calibration(folder, data, options, profile=profile_of(folder), say=say)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_training_brings_every_familys_answers_closer(
    folder: Callable[[str], Path], data: Path, tmp_path: Path, family: str
) -> None:
    output = tmp_path / "calibration.safetensors"
    fixed = MaskSettings(resident_ratios=(0.5,), single_task_ratio=1.0, noise_scales=(0.0,))
    report = calibrate(
        folder(family),
        data,
        output,
        parts=PARTS,
        standin_width=64,
        linear_rank=4,
        masks=fixed,
        tokens=3000,
        schedule=dataclasses.replace(OPTIONS.schedule, learning_rate=2e-2),
    )
    lines = [json.loads(line) for line in Path(f"{output}.loss.jsonl").read_text().splitlines()]
    first, last = (np.mean([line["loss"] for line in part]) for part in (lines[:4], lines[-4:]))
    assert last < 0.9 * first
    assert report.num_tokens >= 3000
    assert report.num_steps == len(lines)
    with ExpertStore.open(folder(family)) as store:
        info = read_calibration_info(output, digest=store.digest, fingerprint=store.fingerprint())
    assert info is not None
    assert (info.shape.parts, info.num_bytes, info.num_tokens) == (PARTS, report.num_bytes, report.num_tokens)


def test_a_training_that_was_interrupted_ends_as_one_that_was_not(
    folder: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parted = tmp_path / "whole.safetensors", tmp_path / "parted.safetensors"
    calibrate(folder("qwen2_moe"), data, whole)
    steps: list[int] = []
    loss = calibrate_loop.Trainer.loss

    def interrupted(self: calibrate_loop.Trainer, *args: object) -> torch.Tensor:
        steps.append(1)
        if len(steps) in (4, 7):
            raise KeyboardInterrupt
        return loss(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(calibrate_loop.Trainer, "loss", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            calibrate(folder("qwen2_moe"), data, parted)
        assert not parted.exists()
    said: list[str] = []
    calibrate(folder("qwen2_moe"), data, parted, say=said.append)
    assert any("going on" in line for line in said)
    one, other = load_file(whole), load_file(parted)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    logs = [
        [{**json.loads(line), "seconds": 0} for line in Path(f"{path}.loss.jsonl").read_text().splitlines()]
        for path in (whole, parted)
    ]
    assert logs[0] == logs[1]
    assert not Path(f"{parted}.state").exists()


def test_what_was_begun_with_other_options_is_not_gone_on_with(
    folder: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "calibration.safetensors"

    def interrupted(*_: object) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate_loop.Trainer, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(folder("qwen2_moe"), data, output)
    with pytest.raises(CheckpointError, match="other options"):
        calibrate(folder("qwen2_moe"), data, output, seed=1)


def test_the_loss_is_drawn(folder: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    plot = tmp_path / "loss.png"
    calibrate(folder("qwen2_moe"), data, tmp_path / "calibration.safetensors", tokens=300, plot=plot)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_a_model_in_half_the_memory_may_teach(
    folder: Callable[[str], Path], data: Path, tmp_path: Path, family: str
) -> None:
    output = tmp_path / "c.safetensors"
    report = calibrate(folder(family), data, output, tokens=300, dtype="bfloat16", parts=PARTS, linear_rank=1)
    assert 0 < report.loss < 10
    assert {tensor.dtype for tensor in load_file(output).values()} == {torch.float32}, "as the checkpoint's"


def test_a_budget_in_minutes_ends_too(folder: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    report = calibrate(folder("qwen2_moe"), data, tmp_path / "c.safetensors", tokens=None, minutes=1e-9)
    assert report.num_steps == 1


def test_tasks_that_are_not_profiled_are_refused_by_name(
    folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError, match=r"poetry.*code, qa"):
        calibrate(folder("qwen2_moe"), data, tmp_path / "c.safetensors", tasks=("poetry",))


def test_a_quantised_model_is_refused_before_anything_is_trained(data: Path, tmp_path: Path) -> None:
    model, _ = quantised.write("int4", "mixtral", tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="not quantised"):
        calibrate(model, data, tmp_path / "c.safetensors")


def test_more_memory_than_there_is_is_refused_with_both_figures() -> None:
    with pytest.raises(BudgetError, match=r"about 1048576\.0 GiB .* GiB are free"):
        check_memory(1 << 50, torch.device("cpu"), shown="some model")


def test_residents_are_routable_and_as_many_as_drawn(folder: Callable[[str], Path]) -> None:
    with ExpertStore.open(folder("deepseek_v3")) as store:
        grid = store.grid
    demand = np.random.default_rng(0).random(grid.shape)
    masks = MaskDrawer({"code": demand, "qa": demand[::-1]}, grid, MaskSettings(resident_ratios=(0.75,)))
    drawn = masks.draw(["code", "qa"] * 10, np.random.default_rng(1))
    assert drawn.sum(axis=(1, 2)).max() == 12, "fewer where a group's least does not fit"
    assert all(grid.rule.is_routable(mask[layer]) for mask in drawn for layer in grid.moe_layers)
    assert len(np.unique(drawn, axis=0)) > 5
    assert (masks.draw(["code", "qa"] * 10, np.random.default_rng(1)) == drawn).all()


class Bytes:
    """Rows become their characters' codes."""

    eos_token_ids: frozenset[int] = frozenset()
    max_context = 12

    @property
    def encoder(self) -> Bytes:
        return self

    @property
    def tokenizer(self) -> Bytes:
        return self

    def token_ids(self, prompt: object) -> list[int]:
        return self.encode(prompt.text)  # type: ignore[attr-defined]

    def encode(self, text: str, **_: object) -> list[int]:
        return [ord(letter) for letter in text]


def test_every_task_gets_its_share_of_tokens_and_rows_too_long_are_passed_over() -> None:
    rows = {
        "long": [Row(task="long", prompt="abcdef", response=letter * 4) for letter in "xyz"],
        "short": [Row(task="short", prompt="a", response="b"), Row(task="short", prompt="a", response="b" * 40)],
    }
    dealer = Dealer(rows, Bytes(), seed=0)  # type: ignore[arg-type]
    dealt = [row for _ in range(20) for row in dealer.deal(20)]
    tokens = {task: sum(len(row.token_ids) for row in dealt if row.task == task) for task in rows}
    assert abs(tokens["long"] - tokens["short"]) <= 12
    with pytest.raises(InvalidRequestError, match="no row of short"):
        Dealer({"short": rows["short"][1:]}, Bytes(), seed=0).deal(1)  # type: ignore[arg-type]


def test_a_dealer_goes_on_where_its_state_says() -> None:
    rows = {"code": [Row(task="code", prompt="a", response=letter) for letter in "uvwxyz"]}
    dealer, other = (Dealer(rows, Bytes(), seed=3) for _ in range(2))  # type: ignore[arg-type]
    dealer.deal(9)
    state = dealer.state()
    expected = [row.token_ids for row in dealer.deal(30)]
    other.restore(state)
    assert [row.token_ids for row in other.deal(30)] == expected


def test_the_loss_counts_answers_whole_prompts_in_part_and_no_examples_end() -> None:
    row = EncodedRow(task="qa", token_ids=(1, 2, 3, 4, 5), num_prompt_tokens=3)
    batch = flatten([row], prompt_weight=0.3, device=torch.device("cpu"))
    assert batch.weights.tolist() == pytest.approx([0.3, 0.3, 1.0, 1.0, 0.0])


def test_divergence_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(4, 50)
    student, teacher = (torch.randn(9, 4, generator=generator, requires_grad=True) for _ in range(2))
    weights = torch.tensor([1.0, 0.0, 0.3] * 3)
    whole = divergence(head, student, teacher, weights)
    expected = torch.nn.functional.kl_div(
        head(student).log_softmax(-1), head(teacher).log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(whole, (expected * weights).sum() / weights.sum())
    (gradient,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr("emoe.train.calibrate_loss.MAX_LOGITS", 100)
    parts = divergence(head, student, teacher, weights)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, student)[0], gradient)
