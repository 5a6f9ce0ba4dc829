"""Decoding against other people's code and against values that are known, run by run and as a whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support import quantised
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from emoe.core.budget import slot_bytes
from emoe.core.experts import ExpertId
from emoe.store.quantisation import Quantisation
from emoe.store.quantisation_config import parse_quantisation
from emoe.store.store import ExpertStore
from emoe.worker.arena import SlotArena
from emoe.worker.quantised.numbers import NUMBERS, Parts
from emoe.worker.quantised.weights import CPU_RUN_BYTES, QuantisedWeights
from emoe.worker.transfer import bytes_view

CPU = torch.device("cpu")
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def parsed(config: dict[str, Any], *, family: str = "qwen3_moe") -> Quantisation:
    found = parse_quantisation(config, family=family)
    assert found is not None
    return found


def decode(
    quantisation: Quantisation, parts: Parts, shape: tuple[int, int], dtype: torch.dtype, *, run: int | None = None
) -> torch.Tensor:
    numbers, out = NUMBERS[quantisation.scheme](quantisation), torch.empty(shape, dtype=dtype)
    for begin in range(0, shape[0], run or shape[0]):
        numbers.decode(parts, begin, out[begin : begin + (run or shape[0])])
    return out


def published(name: str, weight: torch.Tensor) -> tuple[Quantisation, Parts, torch.Tensor]:
    quantisation = parsed(quantised.quantisation_config(name))
    tensors, worth = quantised.QUANTISERS[name]("w", weight)
    leaves = {key.removeprefix("w."): tensor for key, tensor in tensors.items()}
    parts = {found: leaves[leaf] for leaf, found in quantisation.leaves.items() if found is not None}
    return quantisation, parts, worth.to(weight.dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_mxfp4_code_under_every_scale_is_what_transformers_makes_of_it(dtype: torch.dtype) -> None:
    """But for the last, which is no number by the format's definition."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(256, -1, -1).contiguous()
    scales = torch.arange(256, dtype=torch.uint8)[:, None].expand(-1, 16).contiguous()
    wanted = convert_moe_packed_tensors(blocks[None], scales[None], dtype=dtype)[0].t()
    mxfp4 = parsed({"quant_method": "mxfp4"}, family="gpt_oss")
    found = decode(mxfp4, {"codes": blocks, "scales": scales}, (256, 512), dtype)
    assert torch.equal(found[:255], wanted[:255])
    assert found[255].isnan().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("columns", [32, 33], ids=["pairs", "an odd width"])
def test_every_fp8_code_is_what_transformers_makes_of_it(dtype: torch.dtype, columns: int) -> None:
    codes = torch.arange(8 * columns, dtype=torch.int64).to(torch.uint8).view(8, columns).view(torch.float8_e4m3fn)
    scales = torch.rand(1, 1) + 0.5
    config = {"quant_method": "fp8", "weight_block_size": None}
    found = decode(parsed(config), {"codes": codes, "scales": scales}, (8, columns), dtype)
    wanted = Fp8Dequantize(None)._dequantize_one(codes, scales, dtype)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_an_fp8_block_that_the_weight_does_not_fill_keeps_its_own_scale() -> None:
    config = {"quant_method": "fp8", "weight_block_size": [4, 8]}
    parts: Parts = {"codes": torch.ones(6, 20).to(torch.float8_e4m3fn), "scales": torch.arange(6.0).view(2, 3)}
    found = decode(parsed(config), parts, (6, 20), torch.float32)
    assert found[:, [0, 7, 8, 15, 16, 19]].tolist() == [[0, 0, 1, 1, 2, 2]] * 4 + [[3, 3, 4, 4, 5, 5]] * 2


def test_bytes_written_by_compressed_tensors_have_the_values_that_it_gives_them() -> None:
    """Of its version 0.20, pack-quantized, four bits in groups of four: weights, and what it made of them."""
    scales = torch.tensor([[0.125, 0.125], [0.0625, 0.25]], dtype=torch.bfloat16)
    symmetric, zeros = (parsed(quantised.quantisation_config(name)) for name in ("int4", "int4 with zeros"))
    codes = torch.tensor([[-618005952], [-1363114801]], dtype=torch.int32)
    found = decode(
        dataclasses.replace(symmetric, block=(1, 4)), {"codes": codes, "scales": scales}, (2, 8), torch.bfloat16
    )
    assert found.tolist() == [
        [-1.0, -0.5, 0.25, 0.875, 0.125, -0.75, 0.375, 0.625],
        [0.4375, 0.25, -0.25, 0.0, -2.0, 1.0, 1.5, 0.5],
    ]
    parts: Parts = {
        "codes": torch.tensor([[-1190659247], [-1363101697]], dtype=torch.int32),
        "scales": scales,
        "zeros": torch.tensor([[185, 134]], dtype=torch.int32),
    }
    assert decode(dataclasses.replace(zeros, block=(1, 4)), parts, (2, 8), torch.bfloat16).tolist() == [
        [-1.0, -0.5, 0.25, 0.75, 0.125, -0.75, 0.375, 0.625],
        [0.25, 0.25, -0.25, 0.0, -2.0, 1.0, 1.5, 0.5],
    ]


def test_gptq_words_are_read_along_the_inputs_with_zeros_stored_one_less() -> None:
    """Sixteen inputs, eight outputs, one group; by the definition: (code - zero - 1) * scale."""
    config = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    words = torch.tensor([[0x76543210] * 8, [-0x01234568] * 8], dtype=torch.int32)  # 0xFEDCBA98
    parts: Parts = {
        "codes": words,
        "scales": torch.full((1, 8), 0.5, dtype=torch.float16),
        "zeros": torch.tensor([[0x76543210]], dtype=torch.int32),
    }
    found = decode(parsed(config), parts, (8, 16), torch.float32)
    assert found[0].tolist() == [(code - 1) * 0.5 for code in range(16)]
    assert found[7].tolist() == [(code - 8) * 0.5 for code in range(16)]
    second = decode(parsed(config | {"checkpoint_format": "gptq_v2"}), parts, (8, 16), torch.float32)
    assert torch.equal(second, found + 0.5)


@pytest.mark.parametrize("name", quantised.FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_decoded_in_runs_are_those_decoded_at_once(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    quantisation, parts, worth = published(name, torch.randn(32, 64, dtype=dtype))
    whole = decode(quantisation, parts, (32, 64), dtype)
    assert torch.equal(whole, worth)
    assert torch.equal(decode(quantisation, parts, (32, 64), dtype, run=8), whole)


def open_weights(folder: Path, *, dtype: torch.dtype) -> tuple[QuantisedWeights, ExpertStore]:
    """The first expert of the first layer in slot 0."""
    store = ExpertStore.open(folder)
    assert store.quantisation is not None
    arena = SlotArena(store.layout, num_slots=2, slot_bytes=slot_bytes(store.grid), device=CPU)
    store.read_into(ExpertId(0, 0), bytes_view(arena.bytes_of(0)))
    return QuantisedWeights(arena, store.quantisation, dtype=dtype, device=CPU, has_bias=False), store


@pytest.mark.parametrize("num_rows", [1, 3, 40], ids=["decode", "few", "many"])
def test_a_product_with_int8_codes_agrees_with_the_decoded_weight(num_rows: int, tmp_path: Path) -> None:
    """Widths of 32 and 48 let torch's own kernel be used; it accumulates in float32."""
    folder, _ = quantised.write("int8 rows", "mixtral", tmp_path, dtype=torch.bfloat16)
    weights, store = open_weights(folder, dtype=torch.bfloat16)
    with store:
        assert weights._takes_codes
        x = torch.randn(num_rows, 48, dtype=torch.bfloat16)
        out = torch.empty(num_rows, 32, dtype=torch.bfloat16)
        weights.linear(0, "down", x, out)
        wanted = x.float() @ weights.weight(0, "down").float().t()
        torch.testing.assert_close(out.float(), wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


def test_an_expert_whose_codes_are_not_aligned_is_decoded_instead(tmp_path: Path) -> None:
    """torch's kernel would end the process: rows of 24 bytes."""
    folder, _ = quantised.write("int8 rows", "qwen3_moe", tmp_path, dtype=torch.bfloat16)
    weights, store = open_weights(folder, dtype=torch.bfloat16)
    with store:
        assert not weights._takes_codes


def test_memory_beside_the_slots_is_bounded_by_the_run_not_by_the_expert() -> None:
    quantisation = parsed(quantised.quantisation_config("int4"))
    shapes = {component: form.shapes[0] for component, form in quantisation.forms(4096, 1024).items()}
    numbers = NUMBERS["packed"](quantisation)
    parts: Parts = {
        "codes": torch.zeros(shapes["codes"], dtype=torch.int32),
        "scales": torch.ones(shapes["scales"], dtype=torch.bfloat16),
    }
    run = CPU_RUN_BYTES // (1024 * 2)
    out = torch.empty(run, 1024, dtype=torch.bfloat16)
    for begin in range(0, 4096, run):
        numbers.decode(parts, begin, out)
    assert numbers._scratch.num_bytes <= CPU_RUN_BYTES  # type: ignore[attr-defined]
