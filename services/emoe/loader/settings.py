"""The loader's settings, from arguments or `EMOE_LOADER_` variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from emoe.core.planning import PLANNERS
from emoe.runtime.settings import ServiceSettings


class LoaderSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="EMOE_LOADER_", extra="forbid", frozen=True)

    model: Path
    """The checkpoint's folder, as published."""
    predictor: str | None = None
    """host:port of the predictor. Without one demand is uniform, and `refresh_interval_prompts` does nothing."""
    predictor_retry_seconds: float = Field(default=5.0, gt=0)
    """Between two questions while the predictor does not answer."""
    refresh_interval_prompts: int = Field(default=40, ge=1)
    """Prompts between two predictions."""
    planner: str = "global"
    cache_dir: Path | None = None
    """Where the store keeps its index when the model's folder is read-only."""
    heartbeat_timeout_seconds: float = Field(default=30.0, gt=0)
    """A worker that says nothing for so long is dropped; it may subscribe again."""
    apply_deadline_seconds: float = Field(default=30.0, gt=0)
    """A worker that has not applied its plan by then gets the next all the same."""
    read_threads: int = Field(default=4, ge=1, le=64)
    max_pulled_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    """Expert bytes held for all pulls together; one expert always fits."""

    @field_validator("planner")
    @classmethod
    def _check_planner(cls, name: str) -> str:
        if name not in PLANNERS:
            raise ValueError(f"planner {name!r} is not one of {', '.join(sorted(PLANNERS))}")
        return name
