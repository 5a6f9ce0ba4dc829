"""What this process may compute on: the device asked for."""

from __future__ import annotations

import os

import torch

MAX_KERNELS = 256


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is a device. ValueError if the one asked for is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is not here: torch sees no CUDA device; use cpu or auto")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not known; use cpu, cuda, cuda:N or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported; use cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def bound_kernel_cache() -> None:
    """Before the first product. oneDNN keeps a compiled kernel, half a megabyte, for every shape of a 16-bit product it
    met, 1024 of them unless told otherwise: memory that no budget would show. What the user set stands."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(MAX_KERNELS))
