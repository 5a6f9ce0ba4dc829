"""Calibrated reroute as it is served: the same numbers as it was trained by, and nothing where nothing is lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.calibrations import new_calibration, write_calibration
from support.checkpoints import CONFIGS
from support.engines import assert_logits_close, generate, open_parts, random_prompts, use_grouped

from emoe.core.experts import BoolGrid, ExpertGrid
from emoe.core.memory import parse_memory
from emoe.core.planning import GlobalGreedyPlanner
from emoe.eval.rows import EncodedRow
from emoe.store.calibration import PARTS, CalibrationShape, read_calibration_info
from emoe.store.store import ExpertStore
from emoe.train.calibrate_batches import flatten
from emoe.train.calibrate_model import StudentModel, open_model
from emoe.worker.build import EngineOptions, plan_slots
from emoe.worker.calibration import CalibratedLayer, Calibration, LayerCalibration
from emoe.worker.calibration_file import load_calibration
from emoe.worker.families import FAMILIES, family_of
from emoe.worker.loading import router_modules

Checkpoint = Callable[[str], Path]
FAMILY_NAMES = sorted(CONFIGS)
PROMPTS = random_prompts([5, 33, 17], seed=5)


@pytest.fixture(scope="module")
def calibrated(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """family -> a checkpoint and a random calibration of it, elsewhere."""
    written: dict[str, Path] = {}

    def both(family: str) -> tuple[Path, Path]:
        if family not in written:
            target = tmp_path_factory.mktemp("calibration") / "some.safetensors"
            written[family] = write_calibration(checkpoint(family), target)
        return checkpoint(family), written[family]

    return both


def some_residents(grid: ExpertGrid, seed: int, *, num_slots: int | None = None) -> BoolGrid:
    """Half of the experts, or so many."""
    demand = np.random.default_rng(seed).random(grid.shape)
    return GlobalGreedyPlanner().plan(demand, num_slots=num_slots or grid.num_experts_total // 2, grid=grid)


def trained_logits(folder: Path, residents: BoolGrid | None) -> torch.Tensor:
    """Of each prompt's last token, as the training computes them."""
    rows = [EncodedRow(task="chat", token_ids=tuple(ids), num_prompt_tokens=1) for ids in PROMPTS]
    batch = flatten(rows, prompt_weight=0.0, device=torch.device("cpu"))
    with ExpertStore.open(folder) as store:
        family, calibration = family_of(store.family), new_calibration(store)
    student = StudentModel(open_model(folder, device=torch.device("cpu"), dtype=torch.float32), family, calibration)
    masks = None if residents is None else torch.from_numpy(residents)[None].expand(len(rows), -1, -1)
    ends = torch.cumsum(torch.bincount(batch.owner), 0) - 1
    with torch.no_grad():
        logits = student.head(student.states(batch, masks)[ends])
    by_length = sorted(range(len(PROMPTS)), key=lambda place: len(PROMPTS[place]))
    return logits[torch.tensor([by_length.index(place) for place in range(len(PROMPTS))])]


@pytest.mark.parametrize("grouped", [False, True], ids=["loop", "grouped"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_serving_computes_what_was_trained(
    calibrated: Callable[[str], tuple[Path, Path]], family: str, grouped: bool
) -> None:
    folder, path = calibrated(family)
    with ExpertStore.open(folder) as store:
        num_slots = store.grid.num_experts_total * 3 // 4
        residents = some_residents(store.grid, 2, num_slots=num_slots - 3)
    with open_parts(folder, miss_policy="reroute", num_slots=num_slots, plan=residents, calibration=path) as parts:
        use_grouped(parts, grouped=grouped)
        served = generate(parts.build_engine(), PROMPTS, max_tokens=1)[1][0]
    with open_parts(folder, miss_policy="reroute", num_slots=num_slots, plan=residents) as parts:
        uncalibrated = generate(parts.build_engine(), PROMPTS, max_tokens=1)[1][0]
    assert_logits_close(served, trained_logits(folder, residents))
    assert (served - uncalibrated).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_teacher_is_the_published_model(checkpoint: Checkpoint, family: str) -> None:
    with open_parts(checkpoint(family), miss_policy="load") as parts:
        exact = generate(parts.build_engine(), PROMPTS, max_tokens=1)[1][0]
    assert_logits_close(trained_logits(checkpoint(family), None), exact)


class Doubling(torch.nn.Module):
    """In place of experts: what they were given can be looked at."""

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self.given = hidden, ids, weights
        return 2 * hidden


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_token_whose_experts_are_all_resident_keeps_the_published_computation(
    checkpoint: Checkpoint, family: str
) -> None:
    """Beside tokens that lost some: each has residents of its own."""
    model = open_model(checkpoint(family), device=torch.device("cpu"), dtype=torch.float32)
    with ExpertStore.open(checkpoint(family)) as store:
        grid, calibration = store.grid, new_calibration(store)
    layer, hidden = grid.moe_layers[-1], torch.randn(40, 32, generator=torch.Generator().manual_seed(4))
    router, experts = router_modules(model, family_of(family))[layer], Doubling()
    published = router(hidden)
    calibrated = CalibratedLayer(calibration.layer(layer), family_of(family))
    calibrated.attach(experts)
    masks = np.stack([some_residents(grid, seed)[layer] for seed in range(40)])
    masks[::3] = True
    resident = torch.from_numpy(masks)
    logits, weights, ids = calibrated.choose(router, hidden, published, resident)
    corrected = experts(hidden, ids, weights)
    whole = resident.gather(1, published[2]).all(-1)
    assert 13 < whole.sum() < 40
    assert torch.equal(logits, published[0])
    assert torch.equal(corrected[whole], 2 * hidden[whole])
    for given, plain in zip(experts.given, (hidden, published[2], published[1]), strict=True):
        assert torch.equal(given[whole], plain[whole])
    assert ((corrected - 2 * experts.given[0]).abs().amax(-1) > 0)[~whole].all()
    assert ((experts.given[0] - hidden).abs().amax(-1) > 0)[~whole].all()
    assert resident.gather(1, ids).all()
    assert torch.equal(experts(hidden, published[2], published[1]), 2 * hidden), "one choice is corrected once"


def test_lost_mass_is_the_share_of_the_routers_weights_that_fell_on_absent_experts() -> None:
    shape = CalibrationShape(parts=("standin",), standin_width=4)
    weights = LayerCalibration(shape, hidden_size=8, num_experts=4)
    torch.nn.init.normal_(weights.standin_down)
    hidden = torch.randn(2, 8)
    layer, experts = CalibratedLayer(weights, FAMILIES["mixtral"]), torch.nn.Identity()
    layer.attach(experts)
    output = torch.zeros(2, 4), torch.tensor([[3.0, 1.0], [2.0, 2.0]]), torch.tensor([[0, 1], [2, 1]])
    layer.choose(SimpleNamespace(top_k=2), hidden, output, torch.tensor([True, False, True, True]))
    lost = (experts(hidden) - hidden) / weights.stand_in(hidden)
    torch.testing.assert_close(lost, torch.tensor([[0.25], [0.5]]).expand(-1, 8), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_new_calibration_reroutes_as_none_would(checkpoint: Checkpoint, family: str) -> None:
    """Training begins from eMoE's own rerouting; whole tokens apart, which keep what was published."""
    folder = checkpoint(family)
    with ExpertStore.open(folder) as store:
        shape = CalibrationShape(parts=PARTS, standin_width=4, linear_rank=1)
        fresh = Calibration(
            shape,
            moe_layers=store.grid.moe_layers,
            hidden_size=32,
            num_experts=store.grid.rule.num_experts,
            sizes={},
        )
        layer, family_adapter = store.grid.moe_layers[-1], family_of(store.family)
        resident = torch.from_numpy(some_residents(store.grid, 1)[layer])
    model = open_model(folder, device=torch.device("cpu"), dtype=torch.float32)
    router, hidden = router_modules(model, family_adapter)[layer], torch.randn(20, 32)
    output = router(hidden)
    calibrated = CalibratedLayer(fresh.layer(layer), family_adapter)
    _, weights, ids = calibrated.choose(router, hidden, output, resident)
    plain_weights, plain_ids = family_adapter.reroute(router, output[0], resident)
    lost = ~resident[output[2]].all(-1)
    assert lost.any()
    assert torch.equal(weights[lost], plain_weights[lost])
    assert torch.equal(ids[lost], plain_ids[lost])


def test_residents_that_change_between_steps_change_what_is_corrected(
    calibrated: Callable[[str], tuple[Path, Path]],
) -> None:
    folder, path = calibrated("qwen3_moe")
    with ExpertStore.open(folder) as store:
        plans = [some_residents(store.grid, seed, num_slots=14) for seed in (1, 2)]
    outcomes = []
    with open_parts(folder, miss_policy="reroute", num_slots=16, plan=plans[0], calibration=path) as parts:
        for epoch, plan in enumerate(plans, 2):
            parts.residency.set_plan(plan, epoch=epoch)
            parts.residency.wait_until_settled(timeout_seconds=30)
            outcomes.append(generate(parts.build_engine(), PROMPTS, max_tokens=1)[1][0])
            assert_logits_close(outcomes[-1], trained_logits(folder, parts.residency.table.resident.copy()))
    assert (outcomes[0] - outcomes[1]).abs().max() > 0.05


def test_with_all_experts_resident_nothing_is_loaded_and_nothing_changes(
    calibrated: Callable[[str], tuple[Path, Path]],
) -> None:
    folder, path = calibrated("mixtral")
    outcomes = []
    for calibration in (None, path):
        with open_parts(folder, miss_policy="reroute", calibration=calibration) as parts:
            outcomes.append(generate(parts.build_engine(), PROMPTS, max_tokens=3)[1])
    assert all(torch.equal(one, other) for one, other in zip(*outcomes, strict=True))


def test_its_bytes_are_slots_less(calibrated: Callable[[str], tuple[Path, Path]]) -> None:
    folder, path = calibrated("mixtral")
    with ExpertStore.open(folder) as store:
        info = read_calibration_info(path, digest=store.digest, fingerprint=store.fingerprint())
        assert info is not None
        options = EngineOptions(expert_memory="90%")
        without, beside = (
            plan_slots(store.grid, dataclasses.replace(options, calibration=given)) for given in (None, info)
        )
        calibration = load_calibration(info, store.grid, hidden_size=32, device=torch.device("cpu"))
    held = sum(parameter.nbytes for parameter in calibration.parameters())
    assert held == info.num_bytes == beside.reserved_bytes
    budget_bytes = parse_memory("90%", total_bytes=store.grid.num_experts_total * without.slot_bytes)
    assert without.num_slots == budget_bytes // without.slot_bytes
    assert beside.num_slots == (budget_bytes - held) // without.slot_bytes < without.num_slots
