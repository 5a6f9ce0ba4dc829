"""Statuses as they are built of observations, and what tests read out of them."""

from __future__ import annotations

from typing import Any

from operator_cases import (
    COMPONENTS,
    container_status,
    observed,
    plan,
    pod,
    pods_but,
    resource,
    settings,
    standing,
)

from emoe_operator.observed import Body, Observed, Problem, Resource
from emoe_operator.plan import plan_children
from emoe_operator.status import build_status

ALL_PODS = tuple(pod(one) for one in COMPONENTS)


def running(**fields: Any) -> Observed:
    """Everything applied and rolled out."""
    return observed(**{"children": standing(plan()), "pods": ALL_PODS, **fields})


def status_of(seen: Observed, asked: Resource | None = None, *problems: Problem) -> dict[str, Any]:
    asked = asked or resource()
    return build_status(asked, seen, plan_children(asked, seen, settings()), problems, settings())


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}


def message(status: dict[str, Any], kind: str) -> str:
    return str(next(one["message"] for one in status["conditions"] if one["type"] == kind))


def worker_in(waiting: str = "", **fields: Any) -> tuple[Body, ...]:
    state = {"waiting": {"reason": waiting}} if waiting else {"running": {}}
    return pods_but("worker", pod("worker", ready=False, containerStatuses=[container_status(state=state, **fields)]))


def rolling(component: str, **status: Any) -> dict[Any, Any]:
    return standing(plan(), **{component: {"availableReplicas": 0, "readyReplicas": 0, **status}})
