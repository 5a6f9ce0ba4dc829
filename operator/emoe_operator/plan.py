"""The plan: a resource and what is observed of it in, the children that should stand out. Pure: no clock, no API.

For a resource that cannot be served (refused spec, folder not allowed, memory that cannot do) `problems` says why, and
the children are those of the spec that was accepted last.
"""

from __future__ import annotations

import dataclasses
from pathlib import PurePosixPath

from emoe.api.resource import MoEDeployment
from emoe.api.spec import Spec
from emoe.core.errors import InvalidResourceError
from emoe_operator.accepted import recall_accepted, wants_suspension
from emoe_operator.desired import Desired, Manifest
from emoe_operator.images import choose_images
from emoe_operator.manifests.accounts import ca_bundle, model_revision, service_account
from emoe_operator.manifests.context import Context
from emoe_operator.manifests.deployments import (
    loader_deployment,
    predictor_deployment,
    scheduler_deployment,
)
from emoe_operator.manifests.identity import PAUSE_ANNOTATION
from emoe_operator.manifests.network import network_policies
from emoe_operator.manifests.services import services
from emoe_operator.manifests.storage import claims
from emoe_operator.manifests.workloads import disruption_budget
from emoe_operator.observed import Geometry, Observed, Resource, UnservableError
from emoe_operator.prune import to_prune
from emoe_operator.recorded import known_geometry, recorded_status, resolved_revision
from emoe_operator.settings import OperatorSettings
from emoe_operator.workers import PlannedWorkers, plan_workers, refuse_unplannable

MAIN_REVISION = "main"
"""What a hub serves when nobody asks for a revision."""


def plan_children(resource: Resource, observed: Observed, settings: OperatorSettings) -> Desired:
    standing = Desired(geometry=known_geometry(resource, observed))
    if resource.annotations.get(PAUSE_ANNOTATION) == "true":
        return dataclasses.replace(standing, paused=True)
    try:
        context = _context(resource, observed, settings)
        desired = _render(context, observed, standing, _plan_workers(context, standing.geometry))
    except UnservableError as error:
        kept = _keep(resource, observed, settings, standing)
        return dataclasses.replace(kept, images=None, problems=(error.problem,), worker_plan=error.plan)
    accepted = recorded_status(resource).accepted
    if accepted is None or accepted.generation == resource.generation:
        return desired
    return dataclasses.replace(desired, last_good=_keep(resource, observed, settings, standing).children)


def parse_spec(resource: Resource) -> Spec:
    """InvalidResourceError with every problem."""
    metadata = {"name": resource.name, "namespace": resource.namespace}
    return MoEDeployment.parse({"metadata": metadata, "spec": resource.spec}).spec


def _keep(resource: Resource, observed: Observed, settings: OperatorSettings, standing: Desired) -> Desired:
    """What the spec that was accepted last comes to; nothing, where it is not known or could not be served any more."""
    nothing = dataclasses.replace(standing, suspended=wants_suspension(resource))
    before = recall_accepted(resource)
    if before is None:
        return nothing
    try:
        context = _context(before, observed, settings)
        return _render(context, observed, standing, _keep_workers(context, standing.geometry))
    except UnservableError:
        return nothing


def _context(resource: Resource, observed: Observed, settings: OperatorSettings) -> Context:
    """UnservableError for a spec that cannot be served whatever the model is."""
    try:
        spec = parse_spec(resource)
    except InvalidResourceError as error:
        raise UnservableError("InvalidSpec", str(error)) from error
    _check_host_path(spec, settings)
    return Context(
        resource=resource,
        spec=spec,
        settings=settings,
        images=choose_images(resource, observed, settings),
        revision=resolved_revision(resource, observed) or spec.model.revision or MAIN_REVISION,
    )


def _plan_workers(context: Context, geometry: Geometry | None) -> PlannedWorkers | None:
    """None before the model's shape is known."""
    if geometry is None:
        refuse_unplannable(context)
        return None
    return plan_workers(context, geometry)


def _keep_workers(context: Context, geometry: Geometry | None) -> PlannedWorkers | None:
    """A spec is accepted before the model's shape is known, and refused then: it has services without workers."""
    try:
        return _plan_workers(context, geometry)
    except UnservableError:
        return None


def _render(context: Context, observed: Observed, standing: Desired, workers: PlannedWorkers | None) -> Desired:
    children = _children(context, workers)
    return dataclasses.replace(
        standing,
        images=context.images,
        children=tuple(children),
        prune=to_prune(context.resource, observed, children, keeps_workers=workers is None),
        suspended=context.spec.suspend,
        worker_plan=workers.plan if workers else None,
    )


def _children(context: Context, workers: PlannedWorkers | None) -> list[Manifest]:
    """In the order to apply them: what pods need first, and the front door last."""
    scheduler = context.spec.services.scheduler
    return [
        service_account(context),
        *ca_bundle(context),
        *model_revision(context),
        *claims(context),
        *services(context),
        *network_policies(context),
        *disruption_budget(context, "scheduler", replicas=scheduler.replicas),
        *(disruption_budget(context, "worker", replicas=context.spec.workers.replicas) if workers else ()),
        predictor_deployment(context),
        loader_deployment(context),
        *([workers.deployment] if workers else ()),
        scheduler_deployment(context),
    ]


def _check_host_path(spec: Spec, settings: OperatorSettings) -> None:
    if spec.cache is None or spec.cache.host_path is None:
        return
    wanted = PurePosixPath(spec.cache.host_path)
    if any(wanted.is_relative_to(allowed) for allowed in settings.host_paths):
        return
    allowed = ", ".join(settings.host_paths) or "none"
    raise UnservableError(
        "HostPathNotAllowed",
        f"spec.cache.hostPath {wanted} is not below a folder that the operator allows ({allowed}); choose one "
        "of those, use claimName or size, or have it added to the chart's hostPaths",
    )
