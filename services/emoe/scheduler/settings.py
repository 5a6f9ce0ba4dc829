"""Settings of the front door."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from emoe.core.admission import ADMISSION_POLICIES
from emoe.core.tasks import BUILTIN_TASKS, parse_task_name
from emoe.runtime.settings import ServiceSettings


class SchedulerSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="EMOE_SCHEDULER_")

    loader: str
    """host:port of the loader, which keeps the list of workers."""
    policy: str = "fifo"
    """Which waiting request runs next: fifo, or edf (the soonest due first token)."""
    max_queued_requests: int = Field(default=256, ge=1)
    max_queued_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """The waiting requests' serialized size, together."""
    max_request_bytes: int = Field(default=1024 * 1024, ge=1)
    default_deadline_seconds: float = Field(default=300.0, gt=0)
    """For a call whose client set none."""
    max_deadline_seconds: float = Field(default=3600.0, gt=0)
    """A later deadline is taken as this one."""
    extra_tasks: tuple[str, ...] = ()
    """Task names beside the built-in ones."""
    probe_interval_seconds: float = Field(default=1.0, gt=0)
    """How often a worker that the loader does not vouch for is asked whether it lives."""
    probe_timeout_seconds: float = Field(default=2.0, gt=0)

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, name: str) -> str:
        if name not in ADMISSION_POLICIES:
            raise ValueError(f"no admission policy {name!r}; there are {', '.join(sorted(ADMISSION_POLICIES))}")
        return name

    @field_validator("extra_tasks")
    @classmethod
    def _well_named(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_task_name(name) for name in names)

    @property
    def tasks(self) -> frozenset[str]:
        return frozenset(BUILTIN_TASKS) | frozenset(self.extra_tasks)
