"""The loader's settings, from arguments or `EMOE_LOADER_` variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from emoe.core.experts import ExpertId
from emoe.core.planning import PLANNERS
from emoe.core.refresh import DEFAULT_REFRESH_INTERVAL_PROMPTS, RefreshInterval, parse_interval
from emoe.runtime.settings import ServiceSettings
from emoe.store.sidecar import default_cache_dir

BULK_PORT_STEP = 2
"""From `listen` to the bulk port, so that it can be known from outside, by a network policy for one."""


class LoaderSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="EMOE_LOADER_", extra="forbid", frozen=True)

    model: Path | None = None
    """The checkpoint's folder, as published. A loader that cannot open it ends."""
    source: str | None = Field(default=None, validate_default=True)
    """Instead of `model`, tried until it is there: hf://org/name, s3://bucket/prefix, https://host/path/, demo:// or
    the path of a folder."""
    revision: str | None = None
    """Branch, tag or commit of an hf:// source; resolved once."""
    model_cache: Path | None = None
    """Where fetched models are kept; `models` in the user's cache folder if not set."""
    fetch_wait_seconds: float = Field(default=3600.0, gt=0)
    """For another loader that fetches the same source into the same cache."""
    fetch_retry_seconds: float = Field(default=1.0, gt=0)
    """The first pause after a failure that may pass; each further one is twice as long."""
    max_fetch_retry_seconds: float = Field(default=60.0, gt=0)
    permanent_retry_seconds: float = Field(default=300.0, gt=0)
    """After a failure that only a change of the source will end."""
    bulk_listen: str | None = None
    """host:port at which workers get experts by a plain socket, let in by a ticket from a call: in plaintext, as the
    calls are. If not set: two ports above `listen`, or any free one where that is taken. off: experts go by calls
    alone."""
    bulk_socket: Path | None = None
    """A Unix socket, in a folder that workers on this node see at the same path: they are handed the files'
    descriptors and read experts themselves, also where the files have no path or no permission for them."""
    predictor: str | None = None
    """host:port of the predictor. Without one demand is uniform, and `refresh_interval_prompts` does nothing."""
    predictor_retry_seconds: float = Field(default=5.0, gt=0)
    """Between two questions while the predictor does not answer."""
    refresh_interval_prompts: int | Literal["auto"] = DEFAULT_REFRESH_INTERVAL_PROMPTS
    """Prompts between two predictions; auto: more of them while predictions change little, fewer when they change."""
    planner: str = "global"
    """How the slots are split: global (the most demanded experts of all), per-layer (as many in each layer) or adapmoe
    (the fewest expected loads, exactly; differs from global where routing is limited to groups)."""
    pinned: tuple[ExpertId, ...] = ()
    """Experts that are in every plan, as [[layer, index], ...]."""
    cache_dir: Path | None = None
    """Where the store keeps its index when the model's folder is read-only."""
    heartbeat_timeout_seconds: float = Field(default=30.0, gt=0)
    """A worker that says nothing for so long is dropped; it may subscribe again."""
    apply_deadline_seconds: float = Field(default=30.0, gt=0)
    """A worker that has not applied its plan by then gets the next all the same."""
    read_threads: int = Field(default=4, ge=1, le=64)
    max_pulled_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    """Expert bytes held for all pulls together; one expert always fits."""

    @field_validator("source")
    @classmethod
    def _either_model_or_source(cls, source: str | None, info: ValidationInfo) -> str | None:
        if "model" in info.data and (source is None) == (info.data["model"] is None):
            raise ValueError("give either a model's folder (--model) or a source, not both and not neither")
        return source

    @field_validator("refresh_interval_prompts", mode="before")
    @classmethod
    def _check_interval(cls, value: object) -> RefreshInterval:
        is_number = isinstance(value, str) and value.isascii() and value.isdigit()
        return parse_interval(int(value) if is_number else value)  # type: ignore[call-overload]  # text of digits

    @field_validator("planner")
    @classmethod
    def _check_planner(cls, name: str) -> str:
        if name not in PLANNERS:
            raise ValueError(f"planner {name!r} is not one of {', '.join(sorted(PLANNERS))}")
        return name

    @property
    def bulk_addresses(self) -> tuple[str, ...]:
        """To be tried in this order; none: there is to be no bulk port."""
        if self.bulk_listen is not None:
            return () if self.bulk_listen == "off" else (self.bulk_listen,)
        host, _, port = self.listen.rpartition(":")
        if self.listen.startswith("unix:"):
            return ()
        above = int(port) + BULK_PORT_STEP if port.isdecimal() else 0
        derived = (f"{host}:{above}",) if BULK_PORT_STEP < above < 1 << 16 else ()
        return (*derived, f"{host}:0")

    @property
    def model_cache_folder(self) -> Path:
        home = default_cache_dir()
        if self.model_cache is None and home is None:
            raise ValueError("there is no home to keep fetched models in: set --model-cache to a folder")
        return self.model_cache or home / "models"  # type: ignore[operator]  # one of them is set
