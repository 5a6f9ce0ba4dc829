"""Who was wanted and who is there: a step's routing as it is recorded, and the slot table as the device sees it.

Hooks on a model's routers meet residency here. The routers' wishes are recorded whole, resident or not: they teach the
predictor. L layers, T tokens, K choices a token, E experts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from emoe.core.experts import BoolGrid
from emoe.core.slots import ABSENT
from emoe.worker.calibration import CalibratedLayer, RouterOutput
from emoe.worker.families import Family
from emoe.worker.residency import Residency


class StepRouting:
    """What the routers wanted in one step, resident or not. L layers, T tokens, K choices a token."""

    def __init__(self) -> None:
        self._ids_TK: dict[int, torch.Tensor] = {}
        self._hits_T: dict[int, npt.NDArray[np.int64]] = {}
        self.failed_tokens: set[int] = set()

    def begin(self) -> None:
        self._ids_TK.clear()
        self._hits_T.clear()
        self.failed_tokens.clear()

    def record(self, layer: int, wanted_ids_TK: torch.Tensor, hits_T: npt.NDArray[np.int64] | None = None) -> None:
        self._ids_TK[layer] = wanted_ids_TK
        if hits_T is not None:
            self._hits_T[layer] = hits_T

    def collect(self, resident: BoolGrid) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """After the step, in one copy from the device: layers [L], ids [L, T, K], hits a token [T].

        Where a layer did not count its own hits, residency stood still: `resident` tells them.
        """
        recorded, stacked_LTK = self.stacked()
        layers, ids_LTK = np.array(recorded, dtype=np.int64), stacked_LTK.cpu().numpy()
        if self._hits_T:
            return layers, ids_LTK, np.sum([self._hits_T[layer] for layer in layers], axis=0)
        return layers, ids_LTK, resident[layers[:, None, None], ids_LTK].sum(axis=(0, 2))

    def stacked(self) -> tuple[list[int], torch.Tensor]:
        """The layers, and what was recorded of them [L, T, K], where it was recorded."""
        layers = sorted(self._ids_TK)
        return layers, torch.stack([self._ids_TK[layer] for layer in layers])


class DeviceTable:
    """The slot table on the device, refreshed when residency has changed: no reroute step waits for the host."""

    def __init__(self, residency: Residency, device: torch.device) -> None:
        self._residency = residency
        self._version = -1
        self._is_moe_L = residency.grid.all_experts().any(axis=1)
        self.lacks_experts = True
        self._slot_of_LE = torch.full(residency.grid.shape, ABSENT, dtype=torch.int32, device=device)
        self._resident_LE = torch.zeros(residency.grid.shape, dtype=torch.bool, device=device)

    def refresh(self) -> None:
        """Between two steps. The tensors stay where they are: recorded steps read them there."""
        if self._version != self._residency.version:
            slot_of_LE = self._residency.table.slot_of
            self._slot_of_LE.copy_(torch.from_numpy(slot_of_LE))
            self.lacks_experts = bool((slot_of_LE[self._is_moe_L] == ABSENT).any())
            torch.ne(self._slot_of_LE, ABSENT, out=self._resident_LE)
            self._version = self._residency.version

    def resident(self, layer: int) -> torch.Tensor:
        """[E]"""
        return self._resident_LE[layer]

    def slots(self, layer: int) -> torch.Tensor:
        """[E], ABSENT for those that are not resident."""
        return self._slot_of_LE[layer]


def reroute_hook(  # type: ignore[no-untyped-def]
    family: Family, layer: int, table: DeviceTable, routing: StepRouting, calibrated: CalibratedLayer | None = None
):
    """A forward hook for a router: records what it wanted, and gives its choice among the residents instead."""

    def choose(router: torch.nn.Module, args: tuple[torch.Tensor], output: RouterOutput) -> RouterOutput:
        logits_TE, _, wanted_ids_TK = output
        routing.record(layer, wanted_ids_TK)
        if calibrated is not None:
            return calibrated.choose(router, args[0], output, table.resident(layer))
        if not table.lacks_experts:
            return output
        return logits_TE, *family.reroute(router, logits_TE, table.resident(layer))

    return choose
