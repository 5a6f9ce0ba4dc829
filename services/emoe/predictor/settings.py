"""The predictor's settings, from arguments or `EMOE_PREDICTOR_` variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from emoe.runtime.settings import ServiceSettings
from emoe.store.shipped import PRIOR_FILE, shipped_model


class PredictorSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="EMOE_PREDICTOR_", extra="forbid", frozen=True)

    state_dir: Path | None = None
    """Where what was learnt outlives a restart; made if missing. Without it a restart begins afresh."""
    prior: Path | None = None
    """A state file from elsewhere, such as one that ships with a model: where to begin with models never seen here.
    demo:// is that of the model that ships with emoe."""
    half_life_tokens: float = Field(default=50_000.0, gt=0, allow_inf_nan=False)
    """After so many more tokens of its task, a routing count weighs half."""
    save_interval_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """The most that a kill can lose. Does nothing without `state_dir`."""

    @field_validator("prior", mode="before")
    @classmethod
    def _find_shipped(cls, prior: object) -> object:
        return shipped_model() / PRIOR_FILE if prior == "demo://" else prior
