"""Codes to floating point by look-up: what a CPU does several times faster than torch's own conversions of them.

One gather turns two bytes of codes into four half-precision numbers, or two float32 ones. Tables are made once for
each kind of code and dtype, half a megabyte at most. Knows neither scales nor where codes come from.
"""

from __future__ import annotations

import functools

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""OCP Microscaling Formats 1.0, table 5: sign, two bits of exponent with bias 1, one of mantissa."""
SIGNED = tuple(float(code - 8) for code in range(16))
UNSIGNED = tuple(float(code) for code in range(16))


class Scratch:
    """Buffers that are used again at every call, grown to the largest that was asked for. For one thread."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._held.values())

    def take(self, name: str, num_elements: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Flat, its content undefined; valid until `name` is taken again."""
        key = (name, dtype, device)
        held = self._held.get(key)
        if held is None or held.numel() < num_elements:
            held = self._held[key] = torch.empty(num_elements, dtype=dtype, device=device)
        return held[:num_elements]


def spread_nibbles(codes: torch.Tensor, values: tuple[float, ...], out: torch.Tensor, scratch: Scratch) -> None:
    """Bytes of two codes, the low one first -> twice as many numbers in `out`, contiguous and of any float dtype."""
    if out.itemsize == 2:
        _look_up(codes.view(torch.uint16), _quads(values, out.dtype, out.device), out, scratch)
    else:
        _look_up(codes, _pairs(values, out.dtype, out.device), out, scratch)


def spread_fp8(codes: torch.Tensor, out: torch.Tensor, scratch: Scratch) -> None:
    """E4M3 numbers -> float32 in `out`, contiguous and with as many elements."""
    if codes.device.type != "cpu" or codes.shape[-1] % 2 or codes.storage_offset() % 2:
        out.copy_(codes)
        return
    _look_up(codes.view(torch.uint16), _fp8_pairs(), out, scratch)


@functools.cache
def e8m0_table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[256]: two to the power of the byte less 127, by float32's own exponent; 255 stands for no number.

    OCP Microscaling Formats 1.0, section 5.4.1.
    """
    bits = torch.arange(256, dtype=torch.int32) << 23
    bits[0] = 1 << 22  # the one power that float32 holds below its normal numbers
    bits[255] |= 1 << 22
    return bits.view(torch.float32).to(dtype=dtype, device=device)


def _look_up(index: torch.Tensor, table: torch.Tensor, out: torch.Tensor, scratch: Scratch) -> None:
    places = scratch.take("places", index.numel(), torch.int32, index.device)
    places.copy_(index.reshape(-1))
    torch.index_select(table, 0, places, out=out.view(-1).view(torch.int64))


@functools.cache
def _pairs(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[256] of int64: two numbers of four bytes."""
    table = torch.tensor(values, dtype=dtype)
    byte = torch.arange(256)
    return torch.stack([table[byte & 15], table[byte >> 4]], dim=1).view(torch.int64).view(-1).to(device)


@functools.cache
def _quads(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[65536] of int64: four numbers of two bytes."""
    table = torch.tensor(values, dtype=dtype)
    word = torch.arange(65536)
    columns = [table[(word >> shift) & 15] for shift in (0, 4, 8, 12)]
    return torch.stack(columns, dim=1).view(torch.int64).view(-1).to(device)


@functools.cache
def _fp8_pairs() -> torch.Tensor:
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    word = torch.arange(65536)
    return torch.stack([table[word & 255], table[word >> 8]], dim=1).view(torch.int64).view(-1)
