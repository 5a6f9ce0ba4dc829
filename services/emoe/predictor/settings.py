"""The predictor's settings, from arguments or `EMOE_PREDICTOR_` variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from emoe.runtime.settings import ServiceSettings


class PredictorSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="EMOE_PREDICTOR_", extra="forbid", frozen=True)

    state_dir: Path | None = None
    """Where what was learnt outlives a restart; made if missing. Without it a restart begins afresh."""
    predictor: Literal["frequency", "sequence"] = "frequency"
    """Who foretells demand while nobody does better: the tasks' routing frequencies, or the sequence model that
    `emoe profile` trains. Without a trained one, frequencies."""
    half_life_tokens: float = Field(default=50_000.0, gt=0, allow_inf_nan=False)
    """After so many more tokens of its task, a routing count weighs half."""
    profile_tokens: float = Field(default=2000.0, gt=0, allow_inf_nan=False)
    """What a model's profile says of a task weighs as much as so many counted tokens of it. Does nothing for a model
    without a profile."""
    sensitivity_threshold: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """A layer counts in a task's demand if random routing up to it leaves its answers less similar than this, or their
    perplexity above its inverse; from 1 on, every layer counts. The profile's own threshold if not set."""
    save_interval_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """The most that a kill can lose. Does nothing without `state_dir`."""
