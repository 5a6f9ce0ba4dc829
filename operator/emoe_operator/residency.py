"""`status.residency`: which part of the experts each worker holds, as the loader's worker list says it.

Rounded, so that a status moves only when something to be seen has moved.
"""

from __future__ import annotations

from collections.abc import Sequence

from emoe.api.status import Residency, WorkerResidency
from emoe_operator.observed import WorkerView
from emoe_operator.situation import Situation


def describe_residency(situation: Situation, *, max_listed: int) -> Residency | None:
    """While the loader is up and the operator does not hear it, what it said last stands."""
    workers, geometry = situation.observed.workers, situation.desired.geometry
    if not workers or geometry is None:
        unheard = situation.observed.model is None and situation.num_ready("loader") > 0
        return situation.old.residency if unheard else None
    fewest = min(worker.num_resident for worker in workers)
    listed = sorted(workers, key=lambda worker: worker.name)[:max_listed]
    return Residency(
        summary=f"{fewest}/{geometry.grid.num_experts_total}",
        hit_ratio=_ratio(workers),
        workers=tuple(_describe(worker) for worker in listed),
    )


def _describe(worker: WorkerView) -> WorkerResidency:
    return WorkerResidency(
        name=worker.name,
        ready=worker.ready,
        resident_experts=worker.num_resident,
        resident_bytes=worker.num_resident * worker.slot_bytes,
        hit_ratio=_ratio([worker]),
    )


def _ratio(workers: Sequence[WorkerView]) -> str | None:
    """None before the first choice. Cut, not rounded: 1.00 is said of no miss at all."""
    choices = sum(worker.num_choices for worker in workers)
    if not choices:
        return None
    hundredths = 100 * sum(worker.num_hits for worker in workers) // choices
    return f"{hundredths // 100}.{hundredths % 100:02d}"
