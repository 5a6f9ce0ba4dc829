"""Slots in oneDNN's order: the engine answers as from plain ones, and whatever comes to a slot is packed there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from support import checkpoints
from support.calibrations import write_calibration
from support.engines import generate, open_parts, random_prompts

from emoe.core.errors import CheckpointError
from emoe.core.experts import ExpertId
from emoe.store.layout import ExpertLayout
from emoe.store.store import ExpertStore
from emoe.worker import onednn
from emoe.worker.arena import SlotArena, merged_parts
from emoe.worker.expert_weights import ExpertWeights, PlainWeights
from emoe.worker.packed_weights import PackedWeights, PackingTransfer, orders_of
from emoe.worker.sources import ExpertSource
from emoe.worker.transfer import HostTransfer, Transfer, bytes_view

packs = pytest.mark.skipif(not onednn.can_pack(), reason="no bfloat16 products of this processor, or torch lacks them")
CPU = torch.device("cpu")
Shapes = dict[str, tuple[int, ...]]
GATED: Shapes = {"gate": (64, 128), "up": (64, 128), "down": (128, 64)}
BIASED: Shapes = {"gate_up": (128, 64), "gate_up_bias": (128,), "down": (64, 64), "down_bias": (64,)}
UNGATED: Shapes = {"up": (128, 64), "down": (64, 128)}
PARTLY: Shapes = {"gate": (64, 96), "up": (64, 96), "down": (96, 64)}
"""down's 96 rows are no multiple of 64."""
PADDED: Shapes = {"gate": (48, 64), "up": (48, 64), "down": (64, 48)}
PROMPTS = random_prompts([9, 1, 30])


class RandomSource:
    """Experts of random weights, by their index; some cannot be read, and leave half their bytes."""

    def __init__(self, broken: frozenset[ExpertId] = frozenset()) -> None:
        self.broken = broken

    def read_into(self, expert: ExpertId, buffer: memoryview) -> None:
        generator = torch.Generator().manual_seed(expert.index)
        numbers = torch.randn(len(buffer) // 2, generator=generator).bfloat16()
        if expert in self.broken:
            buffer[: len(buffer) // 2] = bytes_view(numbers)[: len(buffer) // 2]
            raise CheckpointError(f"{expert} ends early")
        buffer[:] = bytes_view(numbers)

    def close(self) -> None:
        """Nothing is held."""


class Slots:
    """An arena with a transfer into it, packed or plain."""

    def __init__(self, shapes: Shapes, source: ExpertSource, *, packed: bool) -> None:
        layout = ExpertLayout.build(shapes, "BF16")
        orders = orders_of(layout) if packed else {}
        self.arena = SlotArena(
            layout, num_slots=3, slot_bytes=-(-layout.num_bytes // 64) * 64, device=CPU, packed=orders
        )
        plain = HostTransfer(source)
        self._transfer: Transfer = PackingTransfer(plain, layout, orders) if packed else plain
        has_bias = "down_bias" in shapes
        self.weights: ExpertWeights = (
            PackedWeights(self.arena, has_bias=has_bias)
            if packed
            else PlainWeights(self.arena, transposed=False, has_bias=has_bias)
        )

    def load(self, expert: ExpertId, slot: int) -> None:
        self._transfer.load(expert, self.arena.bytes_of(slot), self._transfer.fence())()

    def linear(self, slot: int, name: str, num_rows: int) -> torch.Tensor:
        columns = self.arena.shape(name)[1]
        x_PC = torch.randn(num_rows, columns, generator=torch.Generator().manual_seed(num_rows)).bfloat16()
        out_PR = torch.full((num_rows, self.weights.width(name)), float("nan"), dtype=torch.bfloat16)
        self.weights.linear(slot, name, x_PC, out_PR)
        return out_PR


def assert_same_products(packed: Slots, plain: Slots, slot: int) -> None:
    for name in {"gate_up", "up", "down"}.intersection(part.name for part in merged_parts(plain.arena.layout)):
        for num_rows in (1, 2, 8, 40):
            ours, reference = packed.linear(slot, name, num_rows), plain.linear(slot, name, num_rows)
            torch.testing.assert_close(ours, reference, rtol=2**-7, atol=2**-10 * float(reference.abs().max()))


@packs
@pytest.mark.parametrize(
    ("shapes", "names"),
    [
        (GATED, {"gate_up", "down"}),
        (BIASED, {"gate_up", "down"}),
        (UNGATED, {"up", "down"}),
        (PARTLY, {"gate_up"}),
        (PADDED, set()),
    ],
    ids=["gated", "biased", "ungated", "partly", "padded"],
)
def test_packed_slots_give_the_plain_slots_products(shapes: Shapes, names: set[str]) -> None:
    packed, plain = (Slots(shapes, RandomSource(), packed=packed) for packed in (True, False))
    assert set(packed.arena.packed) == names
    for slots in (packed, plain):
        slots.load(ExpertId(0, 4), slot=1)
    assert_same_products(packed, plain, slot=1)


@packs
def test_a_slot_that_is_given_to_another_expert_holds_that_one() -> None:
    packed, plain = (Slots(GATED, RandomSource(), packed=packed) for packed in (True, False))
    for slots in (packed, plain):
        slots.load(ExpertId(0, 4), slot=1)
        slots.load(ExpertId(0, 5), slot=2)
        slots.load(ExpertId(0, 6), slot=1)
    for slot in (1, 2):
        assert_same_products(packed, plain, slot)


@packs
def test_a_slot_whose_load_failed_half_way_takes_the_next_expert() -> None:
    source = RandomSource(broken=frozenset({ExpertId(0, 4)}))
    packed, plain = (Slots(GATED, source, packed=packed) for packed in (True, False))
    packed.load(ExpertId(0, 3), slot=1)
    with pytest.raises(CheckpointError, match="ends early"):
        packed.load(ExpertId(0, 4), slot=1)
    for slots in (packed, plain):
        slots.load(ExpertId(0, 5), slot=1)
    assert_same_products(packed, plain, slot=1)


@packs
def test_packed_parts_are_not_given_away_as_plain_ones() -> None:
    slots = Slots(GATED, RandomSource(), packed=True)
    slots.load(ExpertId(0, 0), slot=0)
    with pytest.raises(AssertionError, match="no strided one"):
        slots.arena.stacked("down")
    with pytest.raises(RuntimeError):
        torch.mm(torch.zeros(2, 64, dtype=torch.bfloat16), slots.arena.part(0, "down").t())


# engines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sides that whole blocks make up: 64 hidden, 64 intermediate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(checkpoints.CONFIGS, "wide", wide_mixtral)
        return checkpoints.save("wide", tmp_path_factory.mktemp("wide"), dtype=torch.bfloat16)


def wide_mixtral() -> transformers.MixtralConfig:
    return transformers.MixtralConfig(
        **checkpoints.COMMON | {"hidden_size": 64}, intermediate_size=64, num_local_experts=6
    )


def answers(folder: Path) -> tuple[list[list[int]], list[torch.Tensor]]:
    with open_parts(folder, miss_policy="reroute") as parts:
        return generate(parts.build_engine(), PROMPTS, max_tokens=5)


@packs
def test_an_engine_with_packed_slots_answers_as_one_with_plain_slots(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, logits = answers(folder)
    monkeypatch.setattr(onednn, "can_pack", lambda: False)
    reference, reference_logits = answers(folder)
    assert ours == reference
    for step, reference_step in zip(logits, reference_logits, strict=True):
        torch.testing.assert_close(step, reference_step, rtol=0.0, atol=0.02 * float(reference_step.abs().max()))


@packs
def test_a_calibration_corrects_packed_linears_as_plain_ones(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_calibration(folder, tmp_path / "calibration.safetensors")

    def calibrated() -> list[torch.Tensor]:
        with open_parts(folder, miss_policy="reroute", num_slots=12, calibration=path) as parts:
            return generate(parts.build_engine(), PROMPTS, max_tokens=1)[1]

    (ours,) = calibrated()
    monkeypatch.setattr(onednn, "can_pack", lambda: False)
    (reference,) = calibrated()
    torch.testing.assert_close(ours, reference, rtol=0.0, atol=0.05 * float(reference.abs().max()))


@packs
def test_after_every_plan_each_slot_holds_its_expert_packed(folder: Path) -> None:
    """Plans come between answers, so slots are packed anew while others are read."""
    plans = [np.zeros((3, 6), dtype=np.bool_) for _ in range(3)]
    for plan, kept in zip(plans, (slice(0, 4), slice(2, 6), slice(1, 5)), strict=True):
        plan[:, kept] = True
    with (
        open_parts(folder, miss_policy="reroute", num_slots=14, plan=plans[0]) as parts,
        ExpertStore.open(folder) as store,
    ):
        engine = parts.build_engine()
        expected = Slots({part.name: part.shape for part in store.layout.parts}, store, packed=True)
        for epoch, plan in enumerate(plans, start=1):
            parts.residency.set_plan(plan, epoch=epoch)
            generate(engine, PROMPTS, max_tokens=3)
            parts.residency.wait_until_settled(timeout_seconds=30)
            assert (parts.residency.table.resident & plan).sum() == plan.sum()
            for expert in parts.residency.table.residents():
                expected.load(expert, slot=0)
                held = parts.residency.arena.bytes_of(parts.residency.table.slot(expert))
                assert torch.equal(held, expected.arena.bytes_of(0)), f"{expert} after plan {epoch}"


@packs
def test_slots_are_packed_in_reroute_mode_alone(folder: Path) -> None:
    with open_parts(folder, miss_policy="reroute") as parts:
        assert set(parts.residency.arena.packed) == {"gate_up", "down"}
    with open_parts(folder, miss_policy="load") as parts:
        assert not parts.residency.arena.packed


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("mixtral", torch.float32), ("mixtral", torch.bfloat16), ("gpt_oss", torch.bfloat16)],
    ids=["float32", "padded", "transposed"],
)
def test_what_cannot_be_packed_where_it_lies_stays_plain(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    checkpoints.save(family, tmp_path, dtype=dtype)
    with open_parts(tmp_path, miss_policy="reroute") as parts:
        assert not parts.residency.arena.packed


def test_an_engine_of_a_process_that_cannot_pack_answers_from_plain_slots(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "can_pack", lambda: False)
    with open_parts(folder, miss_policy="reroute") as parts:
        assert not parts.residency.arena.packed
        tokens, _ = generate(parts.build_engine(), PROMPTS, max_tokens=3)
    assert [len(answer) for answer in tokens] == [3, 3, 3]
