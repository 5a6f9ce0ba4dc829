"""A worker's step costs, learnt from its own steps: what `StepCosts` of it the scheduler is told.

Weighted least squares over the latest steps, the older the less, with no cost below nothing. Relative errors count, so
that a decoding step of milliseconds and a prefill of seconds say as much as each other, and steps far off (one that
compiled a kernel, one in which the machine was busy elsewhere) hardly any (Huber's weights, 1964). Steps with pieces of
prompts are remembered apart: hours of decoding do not wash away what a prefill costs. Has no clock.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from emoe.core.schedule.costs import FIRST_GUESS, StepCosts

Floats = npt.NDArray[np.float64]

MIN_STEPS = 32
FIT_EVERY_STEPS = 32
MEMORY_STEPS = 256
HALF_LIFE_STEPS = 100
NUM_REWEIGHTINGS = 4
HUBER_DEVIATIONS = 1.5
LEAST_DEVIATION = 0.005
"""Relative: steps that agree better than this are all believed."""
PRIOR_STEPS = 0.3
"""The last fit counts as so many steps: it decides where the latest steps cannot (always as many sequences, say)."""
NEWS_RATIO = 0.04
"""The costs told stay until those of the latest fit foretell steps differently by more than this."""
SIGNIFICANT_DIGITS = 3
STALL_MEMORY_TOKENS = 20_000.0

_GUESS = np.array([FIRST_GUESS.base_seconds, FIRST_GUESS.prompt_token_seconds, FIRST_GUESS.sequence_seconds, 1e-6])
_KEPT = np.array(list(itertools.product((True, False), repeat=len(_GUESS))))
"""Every choice of costs that are not nothing, [16, 4]."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepWork:
    """What one step did. `num_missed_tokens`: choices of absent experts, in tokens all of whose experts are absent."""

    num_prompt_tokens: int
    num_decoding: int
    num_context_tokens: int
    stall_seconds: float = 0.0
    num_missed_tokens: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FittedCosts:
    """`num_steps` had been seen when these were told."""

    costs: StepCosts
    num_steps: int


class StepCostFit:
    """`told` is None until enough steps were seen. A fit takes a fraction of a millisecond, once in so many steps."""

    def __init__(self, *, step_tokens: int, loads_misses: bool = False) -> None:
        self.told: FittedCosts | None = None
        self._step_tokens = step_tokens
        self._loads_misses = loads_misses
        self._num_seen = 0
        self._prefills, self._decodes = _Memory(), _Memory()
        self._fitted: Floats | None = None
        self._stall_seconds = self._missed_tokens = 0.0

    def observe(self, work: StepWork, *, seconds: float) -> None:
        """One step, which took `seconds`, waits for loads included.

        What prompts waited is a cost of their misses; of the decoding sequences it is a part of what a step takes.
        """
        memory = self._prefills if work.num_prompt_tokens else self._decodes
        prompt_share = work.num_prompt_tokens / max(1, work.num_prompt_tokens + work.num_decoding)
        waited = self._observe_stall(work, prompt_share) if self._loads_misses else 0.0
        features = 1.0, work.num_prompt_tokens, work.num_decoding, work.num_context_tokens
        memory.add(features, max(seconds - waited, 1e-6))
        self._num_seen += 1
        if self._num_seen >= MIN_STEPS and self._num_seen % FIT_EVERY_STEPS == 0:
            self._fit()

    def _observe_stall(self, work: StepWork, prompt_share: float) -> float:
        """The seconds for which its prompts are made to answer."""
        missed, waited = prompt_share * work.num_missed_tokens, prompt_share * work.stall_seconds
        if missed <= 0:
            return 0.0
        kept = 0.5 ** (missed / STALL_MEMORY_TOKENS)
        self._stall_seconds = self._stall_seconds * kept + waited
        self._missed_tokens = self._missed_tokens * kept + missed
        return waited

    def _fit(self) -> None:
        parts = [memory.recent() for memory in (self._prefills, self._decodes) if memory.num_steps]
        work, seconds, trust = (np.concatenate(part) for part in zip(*parts, strict=True))
        before = self._fitted if self._fitted is not None else _GUESS * np.median(seconds / (work @ _GUESS))
        self._fitted = fit_robustly(work, seconds, trust, before)
        latest = self._to_costs(self._fitted)
        if self.told is None or _differs(self.told.costs, latest, [part[0] for part in parts]):
            self.told = FittedCosts(costs=latest, num_steps=self._num_seen)

    def _to_costs(self, fitted: Floats) -> StepCosts:
        base, prompt_token, sequence, context_token = (_rounded(float(value)) for value in fitted)
        missed = self._stall_seconds / self._missed_tokens if self._missed_tokens else 0.0
        return StepCosts(
            base_seconds=base,
            prompt_token_seconds=prompt_token,
            sequence_seconds=sequence,
            context_token_seconds=context_token,
            missed_token_seconds=_rounded(missed),
            step_tokens=self._step_tokens,
        )


class _Memory:
    """The latest steps of one kind, in a ring."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._work = np.zeros((MEMORY_STEPS, len(_GUESS)))
        self._seconds = np.zeros(MEMORY_STEPS)

    def add(self, work: tuple[float, ...], seconds: float) -> None:
        place = self.num_steps % MEMORY_STEPS
        self._work[place], self._seconds[place] = work, seconds
        self.num_steps += 1

    def recent(self) -> tuple[Floats, Floats, Floats]:
        """Work [N, 4], seconds [N] and how much each counts by its age [N]."""
        size = min(self.num_steps, MEMORY_STEPS)
        ages = (self.num_steps - 1 - np.arange(size)) % MEMORY_STEPS
        return self._work[:size], self._seconds[:size], 0.5 ** (ages / HALF_LIFE_STEPS)


def fit_robustly(work: Floats, seconds: Floats, trust: Floats, before: Floats) -> Floats:
    """Costs [4] not below nothing for work [N, 4] that took seconds [N]; `before` decides what these leave open."""
    scale = np.maximum(before, 1e-3 * _GUESS * float(np.median(seconds / (work @ _GUESS))))
    weights, foretold, found = trust, seconds, before
    for _ in range(NUM_REWEIGHTINGS):
        # In parts of the last fit, and each step in parts of what it was foretold to take: all are near one.
        rows = work * scale / foretold[:, None]
        gram = (rows * weights[:, None]).T @ rows + PRIOR_STEPS * np.eye(len(scale))
        gained = rows.T @ (weights * seconds / foretold) + PRIOR_STEPS * before / scale
        found = scale * _least_squares_from_zero(gram, gained)
        foretold = np.maximum(work @ found, 1e-3 * seconds)
        off = np.abs(seconds / foretold - 1)
        deviation = max(1.4826 * float(np.median(off)), LEAST_DEVIATION)
        weights = trust * np.minimum(1.0, HUBER_DEVIATIONS * deviation / np.maximum(off, 1e-12))
    return found


def _least_squares_from_zero(gram: Floats, gained: Floats) -> Floats:
    """The exact least squares over non-negative costs: the best of all choices of which ones are nothing."""
    systems = np.where(_KEPT[:, :, None] & _KEPT[:, None, :], gram, np.eye(len(gained)))
    found = np.linalg.solve(systems, np.where(_KEPT, gained, 0.0)[..., None])[..., 0]
    squares = np.einsum("si,ij,sj->s", found, gram, found) - 2 * found @ gained
    best: Floats = found[int(np.argmin(np.where((found >= 0).all(axis=1), squares, np.inf)))]
    return best


def _differs(told: StepCosts, latest: StepCosts, kinds: list[Floats]) -> bool:
    """Whether steps of any kind, or misses, are foretold to take clearly more or less than was told."""
    before, now = _vector(told), _vector(latest)
    drifts = [float(np.median(np.abs((work @ now) / np.maximum(work @ before, 1e-9) - 1))) for work in kinds]
    missed = latest.missed_token_seconds - told.missed_token_seconds
    return max(drifts) > NEWS_RATIO or abs(missed) > NEWS_RATIO * told.missed_token_seconds


def _vector(costs: StepCosts) -> npt.NDArray[Any]:
    return np.array(
        [costs.base_seconds, costs.prompt_token_seconds, costs.sequence_seconds, costs.context_token_seconds]
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
