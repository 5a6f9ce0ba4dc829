"""A class for each way of quantising: rows of a weight from its published tensors, bit by bit as its package has them.

Each decodes a run of rows, so that a caller needs memory for that run alone. The same code runs on CPU and GPU. Knows
neither slots nor experts. R rows (outputs), C columns (inputs), G groups of columns, N rows of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from emoe.store.quantisation import MX_BLOCK, Component, Quantisation
from emoe.worker.quantised.tables import E2M1, SIGNED, UNSIGNED, Scratch, e8m0_table, spread_fp8, spread_nibbles

Parts = Mapping[Component, torch.Tensor]


class Numbers(Protocol):
    row_step: int
    """A run of rows begins at a multiple of this."""

    def decode(self, parts: Parts, begin: int, out_NC: torch.Tensor) -> None:
        """Rows from `begin` on, as many as `out_NC` has: contiguous, of the dtype that the model computes in."""
        ...


class Mxfp4Numbers:
    """E2M1 in blocks of 32 columns, each with a power of two (OCP Microscaling Formats 1.0, section 6.3)."""

    row_step = 1

    def __init__(self, quantisation: Quantisation) -> None:  # noqa: ARG002 - one signature for all
        self._scratch = Scratch()

    def decode(self, parts: Parts, begin: int, out_NC: torch.Tensor) -> None:
        end = begin + out_NC.shape[0]
        spread_nibbles(parts["codes"][begin:end], E2M1, out_NC, self._scratch)
        # bfloat16 has float32's exponents, so it holds every scale; float16 does not.
        dtype = torch.bfloat16 if out_NC.dtype is torch.bfloat16 else torch.float32
        scales_NG = e8m0_table(dtype, out_NC.device)[parts["scales"][begin:end].int()]
        blocks = out_NC.unflatten(1, (-1, MX_BLOCK))
        torch.mul(blocks, scales_NG[..., None], out=blocks)


class Fp8Numbers:
    """E4M3 times a scale a block, a row or a tensor; multiplied in float32 (DeepSeek-V3, arXiv 2412.19437, 3.3.2)."""

    def __init__(self, quantisation: Quantisation) -> None:
        self._block = quantisation.block
        self.row_step = max(1, quantisation.block[0])
        self._scratch = Scratch()

    def decode(self, parts: Parts, begin: int, out_NC: torch.Tensor) -> None:
        codes = parts["codes"][begin : begin + out_NC.shape[0]]
        wide = self._scratch.take("wide", out_NC.numel(), torch.float32, out_NC.device).view(out_NC.shape)
        spread_fp8(codes, wide, self._scratch)
        scale_rows(wide, _as_grid(parts["scales"]).float(), self._block, begin)
        out_NC.copy_(wide)


class Int8Numbers:
    """Whole numbers times a scale, in the scales' dtype (compressed-tensors, int-quantized)."""

    def __init__(self, quantisation: Quantisation) -> None:
        self._block = quantisation.block
        self.row_step = max(1, quantisation.block[0])
        self._scratch = Scratch()

    def decode(self, parts: Parts, begin: int, out_NC: torch.Tensor) -> None:
        scales = _as_grid(parts["scales"])
        work_NC = in_dtype(out_NC, scales.dtype, self._scratch)
        work_NC.copy_(parts["codes"][begin : begin + out_NC.shape[0]])
        scale_rows(work_NC, scales, self._block, begin)
        hand_over(work_NC, out_NC, self._scratch)


class PackedNumbers:
    """Four or eight bits in 32-bit words along the columns, stored unsigned (compressed-tensors, pack-quantized).

    Zeros, where there are any, are packed alike along the rows.
    """

    def __init__(self, quantisation: Quantisation) -> None:
        self._block = quantisation.block
        self._bits = quantisation.bits
        self.row_step = max(1, quantisation.block[0])
        self._scratch = Scratch()

    def decode(self, parts: Parts, begin: int, out_NC: torch.Tensor) -> None:
        end = begin + out_NC.shape[0]
        scales = _as_grid(parts["scales"])
        work_NC = in_dtype(out_NC, scales.dtype, self._scratch)
        middle = 1 << self._bits - 1
        if self._bits == 4:
            spread_nibbles(parts["codes"][begin:end].view(torch.uint8), SIGNED, work_NC, self._scratch)
        else:
            work_NC.copy_(parts["codes"][begin:end].view(torch.uint8)).sub_(middle)
        if "zeros" in parts:
            zeros_RG = unpack(parts["zeros"], self._bits, axis=0)[begin:end].sub_(middle).to(scales.dtype)
            by_groups(work_NC, self._block[1]).sub_(zeros_RG[..., None])
        scale_rows(work_NC, scales, self._block, begin)
        hand_over(work_NC, out_NC, self._scratch)


class GptqNumbers:
    """Words along the inputs, all else transposed too; a zero a group (GPTQ, arXiv 2210.17323, as published)."""

    row_step = 1

    def __init__(self, quantisation: Quantisation) -> None:
        self._bits = quantisation.bits
        self._group = quantisation.block[1]
        self._zero_offset = quantisation.zero_offset
        self._scratch = Scratch()

    def decode(self, parts: Parts, begin: int, out_NC: torch.Tensor) -> None:
        end = begin + out_NC.shape[0]
        scales_NG = parts["scales"][:, begin:end].t()
        work_NC = in_dtype(out_NC, scales_NG.dtype, self._scratch)
        codes = parts["codes"][:, begin:end].t().contiguous().view(torch.uint8)
        if self._bits == 4:
            spread_nibbles(codes, UNSIGNED, work_NC, self._scratch)
        else:
            work_NC.copy_(codes)
        zeros_NG = unpack(parts["zeros"], self._bits, axis=1)[:, begin:end].t() + self._zero_offset
        groups = by_groups(work_NC, self._group)
        groups.sub_(zeros_NG.to(work_NC.dtype)[..., None]).mul_(scales_NG[..., None])
        hand_over(work_NC, out_NC, self._scratch)


NUMBERS: Mapping[str, Callable[[Quantisation], Numbers]] = {
    "mxfp4": Mxfp4Numbers,
    "fp8": Fp8Numbers,
    "int8": Int8Numbers,
    "packed": PackedNumbers,
    "gptq": GptqNumbers,
}


def scale_rows(work_NC: torch.Tensor, scales: torch.Tensor, block: tuple[int, int], begin: int) -> None:
    """In place. `scales` has a row for every block of rows and a column for every block of columns."""
    num_rows, num_columns = work_NC.shape
    rows, columns = block
    if rows:
        first = begin // rows
        scales = scales[first : first + -(-num_rows // rows)]
        scales = scales.repeat_interleave(rows, dim=0)[:num_rows] if rows > 1 else scales
    if not columns:
        work_NC.mul_(scales)
        return
    whole = num_columns // columns
    if whole:
        work_NC[:, : whole * columns].unflatten(1, (whole, columns)).mul_(scales[:, :whole, None])
    if whole * columns < num_columns:
        work_NC[:, whole * columns :].mul_(scales[:, whole:])


def by_groups(work_NC: torch.Tensor, group: int) -> torch.Tensor:
    groups: torch.Tensor = work_NC.unflatten(1, (-1, group or work_NC.shape[1]))
    return groups


def unpack(words: torch.Tensor, bits: int, *, axis: int) -> torch.Tensor:
    """Unsigned codes of 32-bit words, the lowest bits first along `axis`."""
    shifts = torch.arange(0, 32, bits, device=words.device, dtype=torch.int32)
    shifted = words.unsqueeze(axis + 1) >> shifts.view(-1, *[1] * (1 - axis))
    codes: torch.Tensor = (shifted & ((1 << bits) - 1)).flatten(axis, axis + 1)
    return codes


def in_dtype(out_NC: torch.Tensor, dtype: torch.dtype, scratch: Scratch) -> torch.Tensor:
    """`out_NC` itself where it has the dtype, else a buffer of its shape."""
    if out_NC.dtype is dtype:
        return out_NC
    return scratch.take("work", out_NC.numel(), dtype, out_NC.device).view(out_NC.shape)


def hand_over(work_NC: torch.Tensor, out_NC: torch.Tensor, scratch: Scratch) -> None:
    """What was worked out in another dtype goes to `out_NC`."""
    if work_NC is out_NC:
        return
    if work_NC.itemsize == out_NC.itemsize:
        # torch converts one half precision to the other number by number; by way of float32 is six times faster.
        wide = scratch.take("wide", out_NC.numel(), torch.float32, out_NC.device).view(out_NC.shape)
        work_NC = wide.copy_(work_NC)
    out_NC.copy_(work_NC)


def _as_grid(scales: torch.Tensor) -> torch.Tensor:
    """One scale for all, and one a row, are published with fewer axes too."""
    return scales if scales.dim() == 2 else scales.reshape(-1, 1)
