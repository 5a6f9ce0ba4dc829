"""The slot table: which expert sits in which expert-sized slot of device memory, and in what state.

Pure bookkeeping, no bytes: `worker.residency` moves the bytes and reports here. A slot goes FREE -> LOADING ->
RESIDENT -> FREE; only RESIDENT is ever shown to a model, and a slot in use is never given away.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from emoe.core.experts import ExpertId

ABSENT = -1


class SlotState(enum.IntEnum):
    FREE = 0
    LOADING = 1
    RESIDENT = 2


class SlotTable:
    """Slots 0..num_slots-1 over a grid of [layers, experts]."""

    def __init__(self, *, num_slots: int, shape: tuple[int, int]) -> None:
        if num_slots < 1:
            raise ValueError(f"a slot table needs at least one slot, not {num_slots}")
        self._slot_of: npt.NDArray[np.int32] = np.full(shape, ABSENT, dtype=np.int32)
        self._expert_of: list[ExpertId | None] = [None] * num_slots
        self._states = [SlotState.FREE] * num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._loading: dict[ExpertId, int] = {}

    @property
    def num_slots(self) -> int:
        return len(self._states)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def slot_of(self) -> npt.NDArray[np.int32]:
        """[layers, experts]: the slot of each resident expert, ABSENT elsewhere. A view: read, never write."""
        return self._slot_of

    @property
    def resident(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self._slot_of != ABSENT)

    def state(self, slot: int) -> SlotState:
        return self._states[slot]

    def slot(self, expert: ExpertId) -> int:
        """The slot of a resident expert, ABSENT if it is not resident."""
        return int(self._slot_of[expert.layer, expert.index])

    def residents(self) -> Iterable[ExpertId]:
        return (
            expert
            for expert, state in zip(self._expert_of, self._states, strict=True)
            if expert is not None and state is SlotState.RESIDENT
        )

    def begin_load(self, expert: ExpertId) -> int:
        """FREE -> LOADING. The caller owns the slot's bytes until `commit` or `abort`."""
        assert expert not in self._loading, f"{expert} is loading already"
        assert self.slot(expert) == ABSENT, f"{expert} is resident already"
        slot = self._free.pop()
        self._loading[expert] = slot
        self._expert_of[slot] = expert
        self._states[slot] = SlotState.LOADING
        return slot

    def commit(self, expert: ExpertId) -> None:
        """LOADING -> RESIDENT: from the next step on the model may use it."""
        slot = self._loading.pop(expert)
        self._states[slot] = SlotState.RESIDENT
        self._slot_of[expert.layer, expert.index] = slot

    def abort(self, expert: ExpertId) -> None:
        """LOADING -> FREE: the bytes did not come, or are not wanted any more."""
        self._release(self._loading.pop(expert))

    def evict(self, expert: ExpertId) -> None:
        """RESIDENT -> FREE. The caller answers for no step using it."""
        slot = self.slot(expert)
        assert slot != ABSENT, f"{expert} is not resident"
        self._slot_of[expert.layer, expert.index] = ABSENT
        self._release(slot)

    def _release(self, slot: int) -> None:
        self._states[slot] = SlotState.FREE
        self._expert_of[slot] = None
        self._free.append(slot)
