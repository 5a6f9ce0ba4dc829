"""The loop that trains a calibration: deal a batch, ask the teacher, draw residents, let the student learn.

Each step's order and residents follow from the seed and the step alone, so that a run which goes on from its state ends
as one that was never interrupted. Knows neither folders nor who asks.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from emoe.core.experts import ExpertGrid, FloatGrid
from emoe.train.calibrate_batches import Dealer, FlatBatch, flatten
from emoe.train.calibrate_loss import divergence
from emoe.train.calibrate_masks import MaskDrawer
from emoe.train.calibrate_model import StudentModel
from emoe.train.calibrate_state import Progress, TrainingState
from emoe.worker.calibration import Calibration

KEEP_SECONDS = 60.0
SAY_SECONDS = 2.0
SMOOTHING = 0.95
"""Of the loss that is shown and kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """AdamW; the rate rises over `warmup_steps` and falls as a cosine to `final_rate_ratio` of itself."""

    tokens_per_batch: int = 2048
    learning_rate: float = 2e-3
    final_rate_ratio: float = 0.05
    warmup_steps: int = 30
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    max_gradient_norm: float = 1.0
    prompt_weight: float = 0.3
    """Of a prompt's token in the loss; an answer's is 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """Whichever is spent first ends the training."""

    tokens: int | None = None
    minutes: float | None = None

    def spent_ratio(self, progress: Progress) -> float:
        of_tokens = progress.num_tokens / self.tokens if self.tokens else 0.0
        of_time = progress.seconds / (60 * self.minutes) if self.minutes else 0.0
        return max(of_tokens, of_time)


class Trainer:
    def __init__(
        self,
        *,
        student: StudentModel,
        calibration: Calibration,
        dealer: Dealer,
        masks: MaskDrawer,
        grid: ExpertGrid,
        schedule: Schedule,
        budget: Budget,
        device: torch.device,
        seed: int,
    ) -> None:
        self.calibration = calibration
        self.progress = Progress()
        self._student = student
        self._dealer = dealer
        self._masks = masks
        self._grid = grid
        self._schedule = schedule
        self._budget = budget
        self._device = device
        self._seed = seed
        self._is_updating = False
        self._optimizer = torch.optim.AdamW(
            calibration.parameters(),
            lr=schedule.learning_rate,
            betas=schedule.betas,
            weight_decay=schedule.weight_decay,
        )

    def run(self, state: TrainingState, *, say: Callable[[str], None]) -> Progress:
        """To the end of the budget. KeyboardInterrupt passes, after what was reached is kept."""
        self._restore(state, say)
        kept = said = time.monotonic()
        for line in self._steps(state):
            state.note(line)
            now = time.monotonic()
            if now - said > SAY_SECONDS:
                said = now
                say(self._describe())
            if now - kept > KEEP_SECONDS:
                kept = now
                self._keep(state)
        say(self._describe())
        return self.progress

    def _steps(self, state: TrainingState) -> Iterator[dict[str, float]]:
        while self._budget.spent_ratio(self.progress) < 1:
            dealt = self._dealer.state()
            try:
                yield self._step()
            except KeyboardInterrupt:
                # A step that was cut short is taken again; parameters that are half updated are not kept.
                self._dealer.restore(dealt)
                if not self._is_updating:
                    self._keep(state)
                raise

    def _step(self) -> dict[str, float]:
        began = time.monotonic()
        schedule, progress = self._schedule, self.progress
        batch = flatten(
            self._dealer.deal(schedule.tokens_per_batch), prompt_weight=schedule.prompt_weight, device=self._device
        )
        self._optimizer.zero_grad()
        loss = self.loss(batch, np.random.default_rng((self._seed, progress.num_steps)))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.calibration.parameters(), schedule.max_gradient_norm)
        rate = self._rate()
        self._is_updating = True
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        value = loss.item()
        progress.num_steps += 1
        progress.num_tokens += batch.num_tokens
        progress.seconds += time.monotonic() - began
        progress.loss = SMOOTHING * progress.loss + (1 - SMOOTHING) * value if progress.num_steps > 1 else value
        progress.first_loss = progress.first_loss if progress.num_steps > 1 else value
        self._is_updating = False
        return {
            "step": progress.num_steps,
            "num_tokens": progress.num_tokens,
            "loss": value,
            "learning_rate": rate,
            "gradient_norm": float(norm),
            "seconds": progress.seconds,
        }

    def loss(self, batch: FlatBatch, random: np.random.Generator) -> torch.Tensor:
        """Of residents drawn by `random`."""
        with torch.no_grad():
            teacher_TD = self._student.states(batch)
        own = self._own_routing(batch) if self._masks.uses_own_routing else None
        masks = torch.from_numpy(self._masks.draw(batch.tasks, random, own)).to(self._device)
        student_TD = self._student.states(batch, masks)
        return divergence(self._student.head, student_TD, teacher_TD, batch.weights)

    def _own_routing(self, batch: FlatBatch) -> list[FloatGrid]:
        """[L, E] of each example, from the teacher's pass."""
        num_experts = self._grid.rule.num_experts
        grids = np.zeros((len(batch.tasks), *self._grid.shape))
        for layer, ids_TK in self._student.wanted.items():
            cells = (batch.owner[:, None] * num_experts + ids_TK).reshape(-1)
            counts_NE = torch.bincount(cells, minlength=len(grids) * num_experts).view(len(grids), num_experts)
            grids[:, layer] = (counts_NE / counts_NE.sum(-1, keepdim=True)).cpu().numpy()
        return list(grids)

    def _rate(self) -> float:
        schedule, steps = self._schedule, self.progress.num_steps
        cosine = (1 + math.cos(math.pi * min(1.0, self._budget.spent_ratio(self.progress)))) / 2
        fallen = schedule.final_rate_ratio + (1 - schedule.final_rate_ratio) * cosine
        return schedule.learning_rate * min(1.0, (steps + 1) / max(1, schedule.warmup_steps)) * fallen

    def _restore(self, state: TrainingState, say: Callable[[str], None]) -> None:
        kept = state.read()
        if kept is None:
            state.begin()
            return
        self.progress = Progress(**kept["progress"])
        self.calibration.load_state_dict(kept["calibration"])
        self._optimizer.load_state_dict(kept["optimizer"])
        self._dealer.restore(kept["dealer"])
        say(f"going on from {state.path}: {self.progress.num_tokens} tokens are done")

    def _keep(self, state: TrainingState) -> None:
        state.write(
            self.progress,
            calibration=self.calibration.state_dict(),
            optimizer=self._optimizer.state_dict(),
            dealer=self._dealer.state(),
        )

    def _describe(self) -> str:
        progress = self.progress
        spent = min(1.0, self._budget.spent_ratio(progress))
        left = progress.seconds * (1 - spent) / spent if spent else 0.0
        speed = progress.num_tokens / progress.seconds if progress.seconds else 0.0
        return (
            f"calibrating: {spent:.0%}, {progress.num_tokens} tokens at {speed:.0f} a second, "
            f"loss {progress.loss:.4f} (began at {progress.first_loss:.4f}), {_minutes(left)} left"
        )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
