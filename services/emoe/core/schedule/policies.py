"""Admission policies by name, each with the placement that it uses unless told otherwise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from emoe.core.schedule.emoe import EmoeAdmission
from emoe.core.schedule.fair import FairAdmission
from emoe.core.schedule.ontime import OnTimeAdmission
from emoe.core.schedule.ordered import make_edf, make_fifo, make_shortest
from emoe.core.schedule.placement import PLACEMENTS, Placement
from emoe.core.schedule.policy import AdmissionPolicy

_MAKERS: Mapping[str, tuple[Callable[[Placement], AdmissionPolicy], str]] = {
    "fifo": (make_fifo, "most-free"),
    "shortest": (make_shortest, "most-free"),
    "edf": (make_edf, "most-free"),
    "emoe": (EmoeAdmission, "residency"),
    "ontime": (OnTimeAdmission, "residency"),
}
"""Name -> how it is made, and the name of its own placement."""


def make_policy(name: str, *, placement: str | None = None, fair: bool = True) -> AdmissionPolicy:
    """An empty one. `fair`: tenants take turns, each with a queue of its own. Unknown names are a ValueError."""
    if name not in _MAKERS:
        raise ValueError(f"there is no admission policy {name!r}; there are {', '.join(sorted(_MAKERS))}")
    make, own_placement = _MAKERS[name]
    chosen = placement or own_placement
    if chosen not in PLACEMENTS:
        raise ValueError(f"there is no placement {chosen!r}; there are {', '.join(sorted(PLACEMENTS))}")
    one_queue = functools.partial(make, PLACEMENTS[chosen])
    return FairAdmission(one_queue) if fair else one_queue()


POLICIES: Mapping[str, Callable[[], AdmissionPolicy]] = {name: functools.partial(make_policy, name) for name in _MAKERS}
