"""Settings of a worker process (`emoe serve worker`, environment EMOE_WORKER_*)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from emoe.core.experts import ExpertId
from emoe.runtime.settings import ServiceSettings


class WorkerSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="EMOE_WORKER_", extra="forbid", frozen=True)

    model: Path | None = None
    """Checkpoint folder as published: config, tokenizer and base tensors are read here. Without one the loader is
    asked, and waited for."""
    cache_dir: Path | None = None
    """Where the checkpoint's index is kept if its own folder cannot be written, and base files that the loader sent."""
    loader: str | None = Field(default=None, validate_default=True)
    """host:port of the loader: plans come from it. Without one the first plan stands."""
    predictor: str | None = None
    """host:port of the predictor: routing counts go to it."""
    advertise: str | None = None
    """host:port under which schedulers reach this worker; the listening address if not set."""
    worker_id: str | None = None
    """Name in lists, logs and traces; made from the address if not set."""
    expert_source: Literal["auto", "local", "loader"] = "auto"
    """Read experts from the checkpoint's files, or pull them from the loader. auto: from files that are whole here."""
    expert_memory: str = "100%"
    """Bytes for expert slots: a share of all expert bytes (25%), a size (2GiB), or auto: what is left of the device's
    memory, or of the cgroup's or host's, once the base model is loaded. Staging slots are part of it."""
    miss_policy: Literal["reroute", "load"] = "reroute"
    """reroute: only resident experts are used. load: exact, a step waits for what it misses."""
    calibration: Literal["auto", "off"] | Path = "auto"
    """Reroute mode: the calibration that makes up for absent experts; its bytes are part of the expert memory. auto:
    the one beside the model, if there is one and it fits. off: none. Else a file's path."""
    eviction: Literal["frequency", "lru", "demand"] = "frequency"
    """Load mode: whose slot is freed. Reroute mode follows plans alone and does not use it."""
    lookahead: bool = False
    """Load mode: read ahead what the next layer's router would choose. Where reads only wait, as from a loader far
    away; where they take a processor's time it costs more than it saves."""
    pinned: tuple[ExpertId, ...] = ()
    """Load mode: experts that keep their slots once they have come, as [[layer, index], ...]."""
    max_context: int = Field(default=2048, ge=8)
    """Longest prompt and answer together, in tokens; cut to what the model was made for."""
    max_concurrency: int = Field(default=8, ge=1, le=1024)
    """Sequences that run at once; with max_context it sizes the KV cache."""
    max_waiting: int = Field(default=16, ge=0)
    """Sequences that may wait inside the worker; more are refused with RESOURCE_EXHAUSTED."""
    step_tokens: int = Field(default=2048, ge=1)
    """Most tokens of one step; longer prompts are prefilled in chunks."""
    stream_interval_seconds: float = Field(default=0.05, ge=0, le=1)
    """Tokens that come closer than this are sent together; an answer's first and last at once. 0: each by itself."""
    device: str = "auto"
    """cpu, cuda, cuda:N or auto."""
    threads: int | None = Field(default=None, ge=1)
    """Threads for computing; what the cgroup allows if not set."""
    io_threads: int = Field(default=4, ge=1, le=64)
    """Experts that are read at once."""
    max_request_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    heartbeat_seconds: float = Field(default=0.5, gt=0)
    own_routing_tokens: int = Field(default=64, ge=0)
    """How often, in its tokens, the loader is told what a running request will route next; after its prompt as well.
    0: never, and plans follow from tasks alone. Nor is it where all experts fit."""
    report_seconds: float = Field(default=0.5, gt=0)
    """How often routing counts go to the predictor."""
    start_timeout_seconds: float = Field(default=600.0, gt=0)
    """For the loader's model, where there is none here, and then for the first residents."""

    @field_validator("loader")
    @classmethod
    def _model_or_loader(cls, loader: str | None, info: ValidationInfo) -> str | None:
        if "model" in info.data and info.data["model"] is None and loader is None:
            raise ValueError("without a model's folder (--model) a worker needs a loader to get it from")
        return loader
