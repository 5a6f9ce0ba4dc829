"""Settings that every service process has; each service adds its own in its `settings.py`.

Read from keyword arguments and from the environment (`EMOE_<SERVICE>_<FIELD>`). Unknown arguments are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """Addresses are `host:port` (port 0: any free one) or `unix:/path`."""

    model_config = SettingsConfigDict(env_prefix="EMOE_", extra="forbid", frozen=True, use_attribute_docstrings=True)

    listen: str = "127.0.0.1:0"
    health_listen: str = "127.0.0.1:0"
    """A plaintext port of its own for `grpc.health.v1`, so that probes need no credentials."""
    announce_file: Path | None = None
    """Where the process writes its addresses as JSON once it listens."""
    drain_seconds: float = Field(default=10.0, ge=0)
    """After SIGTERM, how long calls in flight may still run."""
    exit_with_parent: bool = False
    """Linux: the kernel kills this process when its parent dies, however that happens."""
    parent_pid: int | None = None
    """With `exit_with_parent`: the parent that must still be there at start."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
