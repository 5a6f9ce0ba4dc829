"""`emoe ablate`: opens the model and the rows, makes the studies, says where and how."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from emoe.core.errors import InvalidRequestError
from emoe.eval.ablation_lab import AblationRow, AblationSettings, Lab
from emoe.eval.ablations import STUDIES
from emoe.eval.harness import Say
from emoe.eval.opening import Origin, RunOptions, open_harness
from emoe.eval.quality import least_slots, slots_of
from emoe.eval.strategies import Variant

NOTES = (
    "interval: strategies that end in -kept change residents at every p-th prompt only. A steady mix has all tasks "
    "alike; a changing one has few, and others after some 40 prompts.",
    "label-noise: so large a share of the requests was named a task that is not theirs.",
    "drift: from prompt 0 on only tasks come that did not come before. Figures are of the window that begins there; "
    "static- and decayed-frequency begin with a profile of the first tasks alone.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationReport:
    origin: Origin
    settings: AblationSettings
    rows: tuple[AblationRow, ...]
    notes: tuple[str, ...] = NOTES


def run_ablations(
    folder: Path, data: Path, settings: AblationSettings, options: RunOptions, *, say: Say
) -> AblationReport:
    """InvalidRequestError when a share is too small to route, or the data has no rows that fit."""
    variant = Variant("emoe", calibrated=settings.calibrated)
    opened = open_harness(folder, data, options, variants=(variant,), conditions=settings.conditions, say=say)
    with opened as (harness, origin):
        for ratio in (*settings.resident_ratios, *settings.sweep_ratios):
            if slots_of(harness.model, ratio, variant) < (needed := least_slots(harness.model)):
                raise InvalidRequestError(f"{ratio:.0%} resident is less than the {needed} slots that routing needs")
        lab = Lab(harness=harness, settings=settings)
        rows = tuple(row for study in settings.studies for row in STUDIES[study](lab))
    return AblationReport(origin=origin, settings=settings, rows=rows)
