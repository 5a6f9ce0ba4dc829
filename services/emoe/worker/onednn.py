"""Weights in oneDNN's own order, through torch: bfloat16 products of a few rows cost a half of what plain weights cost.

torch keeps such an order in opaque tensors that own their memory. Here one can also be a view of memory that is ours,
so that a slot may hold it: libtorch's stable C interface makes tensors of a pointer and a description of the order.
Whatever of it this torch or this processor lacks, or gets wrong at the first try, means plain weights, said once.
Knows neither slots nor layers. R outputs, C inputs, P rows.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

TRIAL_SHAPE = (128, 64)
TRIAL_TOLERANCE = 0.02
"""Of the largest output: what bfloat16 rounds, with room."""

ROWS_GRAIN = 64
RUN_BYTES = 4 << 20
"""Of a weight, packed at a time where it lies: a call takes a tenth of a millisecond and its run's bytes once more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedOrder:
    """How oneDNN lays a weight [R, C] out. `description` is its own, serialised."""

    shape: tuple[int, int]
    description: torch.Tensor
    num_bytes: int
    rows_at_once: int
    """Runs of so many rows, packed each by itself, are the packed weight."""

    @property
    def fits_in_place(self) -> bool:
        """Whether it takes the plain weight's bytes; sides that are no multiples of its blocks are padded."""
        return self.num_bytes == self.shape[0] * self.shape[1] * torch.bfloat16.itemsize


def packable(weight: torch.Tensor) -> bool:
    """Whether `pack` takes it, and products get faster by it here."""
    is_plain = weight.layout is torch.strided and weight.dim() == 2 and weight.is_contiguous()
    return weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and is_plain and can_pack()


def pack(weight: torch.Tensor) -> torch.Tensor:
    """[R, C], `packable` -> an opaque tensor of its own memory, for `linear` alone."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return packed


def num_bytes(packed: torch.Tensor) -> int:
    """What it takes in memory: more than the plain weight where a side was padded."""
    return int(torch.ops.mkldnn._nbytes(packed))


def linear(x_PC: torch.Tensor, packed: torch.Tensor, bias_R: torch.Tensor | None = None) -> torch.Tensor:
    """x times the transposed weight, and the bias: [P, R], or [..., R] as x has it.

    From two rows on the bits of torch.mm, wherever both were tried (AVX-512); one row may differ in the last place.
    """
    out: torch.Tensor = _linear_operator()(x_PC, packed, bias_R, "none", [], "")
    return out


def packed_order(rows: int, columns: int) -> PackedOrder:
    """Asked of oneDNN itself, with a weight of that shape: it goes by shape and processor."""
    weight = _numbered(rows, columns)
    packed = pack(weight)
    order = PackedOrder(
        shape=(rows, columns),
        description=torch.ops.mkldnn._get_mkldnn_serialized_md(packed).contiguous(),
        num_bytes=num_bytes(packed),
        rows_at_once=max(1, RUN_BYTES // (columns * weight.itemsize * ROWS_GRAIN)) * ROWS_GRAIN,
    )
    if not order.fits_in_place:
        return order
    pack_in_place(weight, order)
    by_runs, as_whole = (_bytes_at(address, order) for address in (weight.data_ptr(), _address(packed)))
    return order if torch.equal(by_runs, as_whole) else dataclasses.replace(order, rows_at_once=rows)


def _numbered(rows: int, columns: int) -> torch.Tensor:
    """Finite numbers that differ between rows and columns near each other."""
    of_rows, of_columns = (torch.arange(count).to(torch.int16) for count in (rows, columns))
    return (of_rows[:, None] * 7919 + of_columns * 31).bitwise_and_(0x3FFF).view(torch.bfloat16)


def _address(packed: torch.Tensor) -> int:
    return int(torch.ops.mkldnn.data_ptr(packed))


def _bytes_at(address: int, order: PackedOrder) -> torch.Tensor:
    return torch.frombuffer((ctypes.c_uint8 * order.num_bytes).from_address(address), dtype=torch.uint8)


def pack_in_place(weight: torch.Tensor, order: PackedOrder) -> None:
    """The memory of a contiguous [R, C] holds the same weight in the packed order afterwards.

    On the calling thread alone: a loading thread brings no team of threads into being beside the engine's.
    """
    with _one_thread():
        for rows in weight.split(order.rows_at_once):
            packed = pack(rows)
            ctypes.memmove(rows.data_ptr(), _address(packed), rows.nbytes)


def view_as_packed(memory: torch.Tensor, order: PackedOrder) -> torch.Tensor:
    """An opaque tensor over the first bytes of `memory`, which it keeps alive; nothing is copied."""
    assert memory.is_contiguous(), "a packed weight lies in one piece"
    assert memory.nbytes >= order.num_bytes, f"{memory.nbytes} bytes are too few for {order}"
    view = _TensorFactory.of_process().view(memory.data_ptr(), order)
    view._emoe_memory = memory  # type: ignore[attr-defined]
    return view


@functools.cache
def can_pack() -> bool:
    """Whether packed weights work here and pay; says once why not, where a processor would gain by them."""
    try:
        if not _has_bfloat16_products():
            return False
        difference = _try_out()
    except (AttributeError, OSError, RuntimeError, TypeError) as error:
        log.warning("weights stay in plain order, short products are slower: this torch does not pack them (%s)", error)
        return False
    if not difference <= TRIAL_TOLERANCE:
        log.warning("weights stay in plain order, short products are slower: a packed one was off by %.3g", difference)
        return False
    return True


def _has_bfloat16_products() -> bool:
    """Of the processor's own, AVX-512 or AMX; where they are made of float32 ones, nothing was measured."""
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    kinds = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, kind, lambda: False)() for kind in kinds)


def _try_out() -> float:
    """The largest difference from torch.mm, in memory that is ours, as a share of the largest output."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(TRIAL_SHAPE, generator=generator).bfloat16()
    order = packed_order(*TRIAL_SHAPE)
    if not order.fits_in_place:
        raise RuntimeError(f"{TRIAL_SHAPE} becomes {order.num_bytes} bytes")
    memory = weight.clone()
    pack_in_place(memory, order)
    view = view_as_packed(memory, order)
    worst = 0.0
    for num_rows in (1, 2, 7):
        x = torch.randn(num_rows, TRIAL_SHAPE[1], generator=generator).bfloat16()
        expected = torch.mm(x, weight.t()).float()
        difference = (linear(x, view).float() - expected).abs().max() / expected.abs().max()
        worst = max(worst, float(difference.nan_to_num(torch.inf)))
    return worst


@functools.cache
def _linear_operator() -> Any:
    return torch.ops.mkldnn._linear_pointwise.default


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """For this thread's next OpenMP regions; torch.set_num_threads would be for those of all later threads too."""
    torch.get_num_threads()  # torch sets the count once a thread, when it first asks: not after us
    library = _libtorch()
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(1)
    try:
        yield
    finally:
        library.omp_set_num_threads(before)


@functools.cache
def _libtorch() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))


class _TensorFactory:
    """torch's stable C interface, as far as it makes opaque tensors; AttributeError where it is another."""

    def __init__(self) -> None:
        library = _libtorch()
        self._dtype = ctypes.c_int32(library.aoti_torch_dtype_bfloat16())
        self._device = ctypes.c_int32(library.aoti_torch_device_type_cpu())
        self._layout = ctypes.c_int32(library.aoti_torch_layout__mkldnn())
        self._create = library.aoti_torch_create_tensor_from_blob_v2
        self._create.restype = ctypes.c_int32
        self._capsule = ctypes.pythonapi.PyCapsule_New
        self._capsule.restype = ctypes.py_object
        self._capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self._take = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs

    @staticmethod
    @functools.cache
    def of_process() -> _TensorFactory:
        return _TensorFactory()

    def view(self, address: int, order: PackedOrder) -> torch.Tensor:
        rows, columns = order.shape
        handle = ctypes.c_void_p()
        error = self._create(
            ctypes.c_void_p(address),
            ctypes.c_int64(2),
            (ctypes.c_int64 * 2)(rows, columns),
            (ctypes.c_int64 * 2)(columns, 1),
            ctypes.c_int64(0),
            self._dtype,
            self._device,
            ctypes.c_int32(-1),
            ctypes.byref(handle),
            self._layout,
            ctypes.c_void_p(order.description.data_ptr()),
            ctypes.c_int64(order.description.numel()),
        )
        if error or not handle.value:
            raise RuntimeError(f"torch made no tensor of packed memory, error {error}")
        # The one that takes a list; its namesake for a single handle steals nothing, so that nothing is ever freed.
        tensors: list[torch.Tensor] = self._take([self._capsule(handle.value, None, None)])
        return tensors[0]
