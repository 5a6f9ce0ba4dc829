"""What the resource's own status remembers: images, geometry, conditions. Written by this operator or an older one."""

from __future__ import annotations

from pydantic import ValidationError

from emoe.api.status import Geometry as GeometryStatus
from emoe.api.status import ModelStatus, Status
from emoe.core.experts import ExpertGrid, RoutingRule
from emoe_operator.observed import Geometry, Observed, Resource


def recorded_status(resource: Resource) -> Status:
    """One that cannot be read counts as none."""
    try:
        return Status.model_validate(dict(resource.status))
    except ValidationError:
        return Status()


def known_geometry(resource: Resource, observed: Observed) -> Geometry | None:
    """The loader's, else what it said last: a loader that restarts must not take the workers with it."""
    if observed.model and observed.model.geometry:
        return observed.model.geometry
    return _from_status(recorded_status(resource).model)


def resolved_revision(resource: Resource, observed: Observed) -> str:
    """The commit or version that the source's revision was resolved to, once and for all; empty before."""
    recorded = recorded_status(resource).model
    heard = observed.model.revision if observed.model else ""
    return (recorded.revision if recorded and recorded.revision else "") or heard


def _from_status(model: ModelStatus | None) -> Geometry | None:
    if model is None or model.geometry is None or not model.digest:
        return None
    shape = model.geometry
    return Geometry(
        digest=model.digest,
        family=model.family or "",
        grid=_grid(shape),
        base_bytes=shape.base_bytes,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        max_context=shape.max_context,
    )


def _grid(shape: GeometryStatus) -> ExpertGrid:
    rule = RoutingRule(
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        num_groups=shape.num_groups,
        topk_groups=shape.topk_groups,
        group_score_experts=shape.group_score_experts,
    )
    return ExpertGrid(
        num_layers=shape.num_layers, moe_layers=shape.moe_layers, rule=rule, expert_bytes=shape.expert_bytes
    )


def describe_geometry(geometry: Geometry) -> GeometryStatus:
    """For the status, from which `known_geometry` reads it again."""
    grid, rule = geometry.grid, geometry.grid.rule
    return GeometryStatus(
        num_layers=grid.num_layers,
        moe_layers=grid.moe_layers,
        num_experts=rule.num_experts,
        top_k=rule.top_k,
        num_groups=rule.num_groups,
        topk_groups=rule.topk_groups,
        group_score_experts=rule.group_score_experts,
        expert_bytes=grid.expert_bytes,
        base_bytes=geometry.base_bytes,
        kv_bytes_per_token=geometry.kv_bytes_per_token,
        max_context=geometry.max_context,
    )
