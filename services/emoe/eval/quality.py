"""What residency costs in quality: every strategy at every resident share, on the same rows in the same run.

Two kinds of load: `single`, each request alone with its residents, and `mixed`, eight requests of any tasks that share
them; when one ends, the next comes in. Perplexity is of the reference answers' tokens; a ratio is to all experts
resident.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Sequence

from emoe.core.errors import InvalidRequestError
from emoe.eval.harness import Conditions, Harness, Say
from emoe.eval.measures import Outcome, QualityRow, measure
from emoe.eval.scoring import ScoringModel
from emoe.eval.strategies import ALL_RESIDENT, Variant
from emoe.eval.streams import Stream

SINGLE, MIXED = "single", "mixed"
WAVES = 6
"""Streams that run side by side are at least so many times as long as what shares residents: few end half empty."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """`strategies`: names as `Variant.parse` takes them; none: all. The baselines run in any case."""

    resident_ratios: tuple[float, ...] = (0.25, 0.4)
    strategies: tuple[str, ...] = ()
    loads: tuple[str, ...] = (SINGLE, MIXED)
    conditions: Conditions = dataclasses.field(default_factory=Conditions)


def evaluate_quality(harness: Harness, settings: QualitySettings, variants: Sequence[Variant]) -> Iterator[QualityRow]:
    """Yields rows as they are done. InvalidRequestError when no share leaves a token enough experts to choose from."""
    chosen = {ratio: _routable(harness.model, ratio, variants, harness.say) for ratio in settings.resident_ratios}
    if not any(chosen.values()):
        raise InvalidRequestError("no resident share is enough to route a token; give a larger one")
    everything = Outcome.of([Stream(requests=[request]) for request in harness.full.values()], harness.full)
    for load in settings.loads:
        yield from _measure(harness, everything, load, ALL_RESIDENT, 1.0)
        for ratio, routable in chosen.items():
            for variant in routable:
                streams = make_streams(harness, load, shuffled=variant.shuffled)
                strategy = variant.kind.build(harness.known(num_slots=slots_of(harness.model, ratio, variant)))
                what = f"{variant.name}, {load}, {ratio:.0%} resident"
                harness.run([(stream, strategy) for stream in streams], variant, what=what)
                yield from _measure(harness, Outcome.of(streams, harness.full), load, variant.name, ratio)


def slots_of(model: ScoringModel, ratio: float, variant: Variant) -> int:
    """Experts that fit `ratio` of all experts' bytes, beside the calibration where it is used: not if all fit."""
    total = model.grid.num_experts_total
    reserved = model.calibration_slots if variant.calibrated and ratio < 1 else 0.0
    return math.floor(ratio * total - reserved + 1e-6)


def least_slots(model: ScoringModel) -> int:
    return model.grid.rule.min_residents * len(model.grid.moe_layers)


def _routable(model: ScoringModel, ratio: float, variants: Sequence[Variant], say: Say) -> list[Variant]:
    """Those whose slots are enough to choose from, whatever a token's routing."""
    needed = least_slots(model)
    enough = [variant for variant in variants if slots_of(model, ratio, variant) >= needed]
    too_few = [variant.name for variant in variants if variant not in enough]
    if too_few:
        say(f"{ratio:.0%} resident is less than the {needed} slots that routing needs: without {', '.join(too_few)}")
    return enough


def make_streams(harness: Harness, load: str, *, shuffled: bool = False) -> list[Stream]:
    """The same rows in the same order for every strategy; shuffled, their labels are each other's."""
    conditions = harness.conditions
    dealt = random.Random(conditions.seed)
    ordered = list(harness.full)
    if load == MIXED:
        dealt.shuffle(ordered)
    labels = [row.task for row in ordered]
    if shuffled:
        dealt.shuffle(labels)
    requests = [harness.begin(row, task=label) for row, label in zip(ordered, labels, strict=True)]
    if load == SINGLE:
        return [conditions.stream([request]) for request in requests]
    together = conditions.num_together
    num = min(harness.model.num_rows // together, max(1, len(requests) // (WAVES * together)))
    cuts = [len(requests) * one // num for one in range(num + 1)]
    return [conditions.stream(requests[first:last], num_together=together) for first, last in itertools.pairwise(cuts)]


def _measure(harness: Harness, outcome: Outcome, load: str, strategy: str, ratio: float) -> list[QualityRow]:
    return measure(
        outcome,
        load=load,
        strategy=strategy,
        resident_ratio=ratio,
        expert_bytes=harness.model.grid.expert_bytes,
    )
