"""Settings of the front door."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic_settings import SettingsConfigDict

from emoe.core.schedule.placement import PLACEMENTS
from emoe.core.schedule.policies import POLICIES
from emoe.core.slo import Slo
from emoe.core.tasks import BUILTIN_TASKS, UNKNOWN, check_examples, parse_task_name
from emoe.runtime.settings import ServiceSettings

Examples = dict[str, tuple[str, ...]]


class TaskSlo(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    ttft_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    tpot_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    end_to_end_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class SchedulerSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="EMOE_SCHEDULER_")

    loader: str
    """host:port of the loader, which keeps the list of workers."""
    model_name: str = Field(default="emoe", min_length=1)
    """What clients of the Open Inference Protocol call the model."""
    policy: str = "ontime"
    """Which waiting request runs next: fifo, shortest (the least expected work), edf (the soonest due first token),
    emoe (the paper's rule), or ontime (those that can still be in time)."""
    placement: str | None = None
    """On which worker: most-free, least-wait, or residency (the best coverage of its task among those that are still in
    time). Unless given, the policy's own."""
    max_queued_requests: int = Field(default=256, ge=1)
    max_queued_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """The waiting requests' serialized size, together."""
    max_decisions: int = Field(default=4096, ge=1)
    """The latest decisions that are kept in memory, for ListDecisions; several for each request."""
    max_request_bytes: int = Field(default=1024 * 1024, ge=1)
    default_deadline_seconds: float = Field(default=300.0, gt=0)
    """For a call whose client set none."""
    max_deadline_seconds: float = Field(default=3600.0, gt=0)
    """A later deadline is taken as this one."""
    extra_tasks: tuple[str, ...] = ()
    """Task names beside the built-in ones."""
    task_slos: dict[str, TaskSlo] = Field(default_factory=dict)
    """Task -> targets for its requests that give none, as JSON: {"chat": {"ttft_seconds": 0.5}}. Its names are tasks,
    too."""
    identify_tasks: bool = True
    """Name the task of a request whose client named none; otherwise it is unknown."""
    task_examples: Examples = Field(default_factory=dict)
    """Task -> prompts that show what it is, as JSON: {"tickets": ["Which team gets this ticket? ..."]}. At most 16 a
    task, of 2000 characters each and 32 KiB in all. Its names are tasks, too."""
    tasks_file: Path | None = None
    """A JSON file like task_examples; where both have a task, task_examples counts."""
    state_dir: Path | None = None
    """Where learnt lengths and costs outlive a restart; made if missing. Without it a restart begins anew."""
    save_interval_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """The most of them that a kill can lose. Does nothing without `state_dir`."""
    probe_interval_seconds: float = Field(default=1.0, gt=0)
    """How often a worker that the loader does not vouch for is asked whether it lives."""
    probe_timeout_seconds: float = Field(default=2.0, gt=0)
    health_interval_seconds: float = Field(default=0.5, gt=0)
    """How often every worker is asked for its health, beside what it says by itself."""
    health_timeout_seconds: float = Field(default=1.0, gt=0)
    """A worker that does not answer in time gets no new request until it does."""
    silence_seconds: float = Field(default=10.0, gt=0)
    """A worker that has not answered for so long has its calls ended."""

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, name: str) -> str:
        if name not in POLICIES:
            raise ValueError(f"no admission policy {name!r}; there are {', '.join(sorted(POLICIES))}")
        return name

    @field_validator("placement")
    @classmethod
    def _known_placement(cls, name: str | None) -> str | None:
        if name is not None and name not in PLACEMENTS:
            raise ValueError(f"no placement {name!r}; there are {', '.join(sorted(PLACEMENTS))}")
        return name

    @field_validator("extra_tasks")
    @classmethod
    def _well_named(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_task_name(name) for name in names)

    @field_validator("task_slos")
    @classmethod
    def _well_named_slos(cls, slos: dict[str, TaskSlo]) -> dict[str, TaskSlo]:
        return {parse_task_name(name): slo for name, slo in slos.items()}

    @field_validator("task_examples")
    @classmethod
    def _showing_tasks(cls, examples: Examples) -> Examples:
        return _check_task_examples(examples)

    @field_validator("tasks_file")
    @classmethod
    def _readable_tasks(cls, path: Path | None) -> Path | None:
        if path is not None:
            read_task_examples(path)
        return path

    @functools.cached_property
    def all_task_examples(self) -> Mapping[str, tuple[str, ...]]:
        """Of the file and of `task_examples`. ValueError when they are too many together."""
        of_file = read_task_examples(self.tasks_file) if self.tasks_file is not None else {}
        return _check_task_examples({**of_file, **self.task_examples})

    @functools.cached_property
    def tasks(self) -> frozenset[str]:
        return frozenset((*BUILTIN_TASKS, *self.extra_tasks, *self.task_slos, *self.all_task_examples))

    def fill_slo(self, task: str, slo: Slo) -> Slo:
        """The request's own targets, and the task's where it has none."""
        default = self.task_slos.get(task)
        if default is None:
            return slo
        return dataclasses.replace(
            slo,
            ttft_seconds=slo.ttft_seconds or default.ttft_seconds,
            tpot_seconds=slo.tpot_seconds or default.tpot_seconds,
            end_to_end_seconds=slo.end_to_end_seconds or default.end_to_end_seconds,
        )


def read_task_examples(path: Path) -> Examples:
    """A JSON object, task -> prompts. ValueError names the file and what is wrong."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return _check_task_examples(TypeAdapter(Examples).validate_python(found))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_task_examples(examples: Examples) -> Examples:
    for name in examples:
        if parse_task_name(name) == UNKNOWN:
            raise ValueError(f"{UNKNOWN} is what requests without a task are called; give the task another name")
    check_examples(examples)
    return examples
