"""Where ablations are run: the same streams for every strategy, and a row of figures of what came of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from emoe.eval.ablation_streams import Mixes, draw_stream
from emoe.eval.harness import Conditions, Harness
from emoe.eval.measures import coverage, hit_ratio, perplexity
from emoe.eval.quality import slots_of
from emoe.eval.strategies import STRATEGIES, Known, Variant
from emoe.eval.streams import ResidencyStrategy, Running, Stream

Build = Callable[[Known, int], ResidencyStrategy]
"""A strategy from what is known, for the stream of that number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """Studies other than `static` are made at each of `resident_ratios`, that one at `sweep_ratios`."""

    studies: tuple[str, ...]
    resident_ratios: tuple[float, ...] = (0.25,)
    sweep_ratios: tuple[float, ...] = (0.15, 0.2, 0.25, 0.3, 0.4, 0.6)
    calibrated: bool = False
    num_streams: int = 4
    stream_prompts: int = 160
    conditions: Conditions = dataclasses.field(default_factory=Conditions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationRow:
    """`knob` is what the study turns, `value` where it stood. `perplexity_ratio`: of all answer tokens together."""

    study: str
    mix: str
    strategy: str
    knob: str
    value: float
    resident_ratio: float
    perplexity_ratio: float
    coverage: float
    hit_ratio: float
    bytes_moved: int
    """A request's share."""
    num_requests: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Lab:
    harness: Harness
    settings: AblationSettings

    @property
    def variant(self) -> Variant:
        """Whether the model is calibrated does not hang on the strategy here."""
        return Variant("emoe", calibrated=self.settings.calibrated)

    @property
    def seeds(self) -> range:
        first = self.settings.conditions.seed
        return range(first, first + self.settings.num_streams)

    def run_mixes(self, mixes: Sequence[Mixes], build: Build, *, resident_ratio: float, what: str) -> list[Stream]:
        """A stream a mix."""
        streams = [draw_stream(self.harness, mix, seed=seed) for mix, seed in zip(mixes, self.seeds, strict=True)]
        known = self.known(resident_ratio)
        self.run([(stream, build(known, number)) for number, stream in enumerate(streams)], what=what)
        return streams

    def run(self, streams: Sequence[tuple[Stream, ResidencyStrategy]], *, what: str) -> None:
        self.harness.run(streams, self.variant, what=what)

    def known(self, resident_ratio: float) -> Known:
        return self.harness.known(num_slots=slots_of(self.harness.model, resident_ratio, self.variant))

    def perplexity_ratio(self, requests: Sequence[Running]) -> float:
        return perplexity(requests) / perplexity([self.harness.full[request.row] for request in requests])

    def row(
        self,
        requests: Sequence[Running],
        *,
        num_loaded: int,
        study: str,
        mix: str,
        strategy: str,
        knob: str,
        value: float,
        resident_ratio: float,
    ) -> AblationRow:
        return AblationRow(
            study=study,
            mix=mix,
            strategy=strategy,
            knob=knob,
            value=value,
            resident_ratio=resident_ratio,
            perplexity_ratio=self.perplexity_ratio(requests),
            coverage=coverage(requests),
            hit_ratio=hit_ratio(requests),
            bytes_moved=self.bytes_moved(num_loaded, len(requests)),
            num_requests=len(requests),
        )

    def bytes_moved(self, num_loaded: int, num_requests: int) -> int:
        return round(num_loaded * self.harness.model.grid.expert_bytes / num_requests)


def named(name: str) -> Build:
    """A strategy of `eval.strategies`."""
    return lambda known, _: STRATEGIES[name].build(known)


def all_requests(streams: Sequence[Stream]) -> list[Running]:
    return [request for stream in streams for request in stream.requests]


def mean_choices(requests: Sequence[Running]) -> float:
    """Of a request in one layer."""
    return float(np.mean([request.wanted.sum(axis=1).max() for request in requests]))
