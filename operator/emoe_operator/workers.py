"""The workers: what the model's geometry and the wishes for memory come to, and the Deployment that follows.

Memory is planned before anything is loaded, by the rule that the worker itself cuts its slots by (`core.capacity`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import ValidationError

from emoe.api.pods import Resources
from emoe.api.services import Workers
from emoe.api.wishes import worker_wishes
from emoe.core.capacity import WorkerPlan, WorkerWishes, plan_worker, why_auto_cannot_be
from emoe_operator.desired import Manifest
from emoe_operator.manifests.context import Context
from emoe_operator.manifests.deployments import worker_deployment
from emoe_operator.manifests.merge import merge_template
from emoe_operator.manifests.pods import MAIN
from emoe_operator.observed import Geometry, UnservableError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedWorkers:
    plan: WorkerPlan
    deployment: Manifest


def plan_workers(context: Context, geometry: Geometry) -> PlannedWorkers:
    """UnservableError if the memory cannot do, with what would."""
    resources = wanted_resources(context.spec.workers)
    wishes = worker_wishes(context.spec.experts, context.spec.workers, resources)
    plan = plan_worker(geometry.shape, wishes)
    if not plan.fits:
        raise UnservableError(_reason(plan, wishes, geometry), "; ".join(plan.problems), plan=plan)
    return PlannedWorkers(plan=plan, deployment=worker_deployment(context, resources, plan))


def refuse_unplannable(context: Context) -> None:
    """UnservableError for wishes that no model's geometry will make plannable."""
    wishes = worker_wishes(context.spec.experts, context.spec.workers, wanted_resources(context.spec.workers))
    if why := why_auto_cannot_be(wishes):
        raise UnservableError("MemoryNotPlannable", why)


def wanted_resources(workers: Workers) -> Resources:
    """Of the main container: the resource's own field, and what the pod template says over it."""
    template = workers.pod_template.spec if workers.pod_template else {}
    containers: list[dict[str, Any]] = template.get("containers", [])
    over = next((one.get("resources") for one in containers if one["name"] == MAIN), None)
    try:
        return Resources.model_validate(merge_template(workers.resources.to_dict(), over or {}))
    except (ValidationError, TypeError) as error:
        raise UnservableError(
            "InvalidPodTemplate",
            "spec.workers.podTemplate: the resources of container main must have limits and requests alone, each a "
            "quantity by name; or leave them out and set spec.workers.resources",
        ) from error


def _reason(plan: WorkerPlan, wishes: WorkerWishes, geometry: Geometry) -> str:
    if not all(geometry.grid.contains(expert) for expert in wishes.pinned):
        return "UnknownPinnedExperts"
    if why_auto_cannot_be(wishes):
        return "MemoryNotPlannable"
    if plan.resident_bytes < plan.min_bytes and not wishes.memory.is_auto:
        return "ExpertMemoryTooSmall"
    return "MemoryLimitTooLow"
