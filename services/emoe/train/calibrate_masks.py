"""Which experts are resident for each example of a calibration's batch: drawn round the task profiles.

A planner makes them, so that every layer is routable as it is in serving: of one task's demand, or of a mixture's that
has the example's own task in it, and disturbed, so that the correction learns no single set. L layers, E experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from emoe.core.experts import BoolGrid, ExpertGrid, FloatGrid
from emoe.core.planning import PLANNERS
from emoe.store.profile import Profile

LEAST_FREQUENCY = 1e-5
"""An expert that the profile never saw may still be drawn."""
MIXTURE_CONCENTRATION = 2.0
OWN_SHARE = 1 / 8
"""Of the example's task in a mixture, beside what it draws: one of eight that run at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """`single_task_ratio` of the examples have residents for their task alone. Log-demand is disturbed by Gumbel noise
    of one of `noise_scales`. In `own_routing_ratio` of them the task's frequency is half the example's own."""

    resident_ratios: tuple[float, ...] = (0.2, 0.25, 0.25, 0.3, 0.4, 0.4, 0.5, 0.6)
    single_task_ratio: float = 0.5
    own_routing_ratio: float = 0.0
    noise_scales: tuple[float, ...] = (0.1, 0.3, 0.6)
    planner: str = "global"


class MaskDrawer:
    def __init__(self, frequencies: Mapping[str, FloatGrid], grid: ExpertGrid, settings: MaskSettings) -> None:
        self._names = list(frequencies)
        self._frequencies = np.stack([frequencies[name] for name in self._names])
        self._grid = grid
        self._settings = settings

    @property
    def uses_own_routing(self) -> bool:
        return self._settings.own_routing_ratio > 0

    def draw(
        self, tasks: Sequence[str], random: np.random.Generator, own: Sequence[FloatGrid] | None = None
    ) -> BoolGrid:
        """[N, L, E], of each example's task; `own`: frequencies of what each routes itself."""
        return np.stack([self._draw(task, random, None if own is None else own[n]) for n, task in enumerate(tasks)])

    def _draw(self, task: str, random: np.random.Generator, own: FloatGrid | None) -> BoolGrid:
        settings, grid = self._settings, self._grid
        wanted = self._frequencies[self._names.index(task)]
        if own is not None and random.random() < settings.own_routing_ratio:
            wanted = (wanted + own) / 2
        if random.random() >= settings.single_task_ratio:
            shares = random.dirichlet(np.full(len(self._names), MIXTURE_CONCENTRATION))
            wanted = np.tensordot(shares, self._frequencies, axes=1) + wanted * OWN_SHARE
        noise = random.gumbel(size=grid.shape) * random.choice(settings.noise_scales)
        demand = np.where(grid.all_experts(), np.maximum(wanted, LEAST_FREQUENCY) * np.exp(noise), 0.0)
        num_slots = round(float(random.choice(settings.resident_ratios)) * grid.num_experts_total)
        least = grid.rule.min_residents * len(grid.moe_layers)
        return PLANNERS[settings.planner].plan(demand, num_slots=max(least, num_slots), grid=grid)


def task_frequencies(profile: Profile, tasks: Sequence[str]) -> dict[str, FloatGrid]:
    """Of prompt and answer, each by its tokens: what a request of the task demands in all (eMoE equation 1)."""
    return {task: profile.tasks[task].routed_frequencies for task in tasks}
