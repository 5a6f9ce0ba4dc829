"""What the resource, its labels and its children are called: one place for operator, CRD and command."""

from __future__ import annotations

from typing import Final, Literal

GROUP = "emoe.dev"
VERSION = "v1alpha1"
API_VERSION: Final = "emoe.dev/v1alpha1"
KIND: Final = "MoEDeployment"
PLURAL = "moedeployments"
SINGULAR = "moedeployment"
SHORT_NAME = "moed"

MAX_NAME_CHARACTERS = 40
"""Leaves room in 63 for what Kubernetes and emoe append to it."""
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""A Service carries the name, and a Service's begins with a letter and has no dots."""

OWNER_LABEL = f"{GROUP}/{SINGULAR}"
COMPONENT_LABEL = "app.kubernetes.io/component"

Component = Literal["scheduler", "loader", "predictor", "worker"]
COMPONENTS: tuple[Component, ...] = ("scheduler", "loader", "predictor", "worker")


def child_name(name: str, component: Component) -> str:
    return f"{name}-{component}"
