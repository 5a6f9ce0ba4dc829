"""The operator's settings, from `EMOE_OPERATOR_` variables (the chart sets them) or keyword arguments.

Everything that a rendered child depends on beside the resource itself is a field here, so that the plan stays a
function of its arguments. Lists and maps are JSON.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class OperatorSettings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="EMOE_OPERATOR_", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    control_image: str
    """Image of scheduler, loader and predictor; by digest where upgrades must be exact."""
    worker_image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    """Names of secrets in the resource's namespace, given to every pod."""

    namespaces: tuple[str, ...] = ()
    """Where resources are watched; empty: in the whole cluster."""
    host_paths: tuple[str, ...] = ()
    """Node folders that `spec.cache.hostPath` may name, themselves or folders below them."""
    pod_env: dict[str, str] = Field(default_factory=dict)
    """Handed to the loader, which alone fetches: proxies, HF_ENDPOINT and such."""
    ca_bundle: str = ""
    """PEM certificates that the loader trusts in place of its image's own; empty: those of its image."""

    network_policies: bool = True
    operator_labels: dict[str, str] = Field(default_factory=dict)
    """Of the operator's own pods, for the loader's NetworkPolicy; empty: every pod of the operator's namespace."""

    scheduler_resources: dict[str, dict[str, str]] = Field(
        default_factory=lambda: {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}}
    )
    """Where the resource sets none; the same for the loader and the predictor below."""
    loader_resources: dict[str, dict[str, str]] = Field(
        default_factory=lambda: {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}
    )
    predictor_resources: dict[str, dict[str, str]] = Field(
        default_factory=lambda: {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}}
    )
    worker_cpu_request: str = "500m"
    """Where the resource sets none."""
    start_seconds: float = Field(default=300.0, gt=0)
    """How long a pod may take to open its health port before it is started again."""
    progress_deadline_seconds: int = Field(default=1800, ge=60)
    """How long a rollout may stand still (a worker loads its model) before it counts as stuck."""
    status_interval_seconds: float = Field(default=5.0, gt=0)
    """Between two patches of a status in which only progress or residency moved."""
    max_listed_workers: int = Field(default=32, ge=0, le=1000)
    """So many are listed one by one in `status.residency`; its summary counts all."""

    log_format: Literal["text", "json"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    health_port: int = Field(default=8080, ge=1, le=65535)
    """http: /healthz, /readyz and /metrics."""
    lease_name: str = "emoe-operator"
    lease_namespace: str = "emoe-system"
    """The operator's own namespace: its lease is there, and from there it calls the loaders."""
