"""The status: resource, observations and plan in, the whole of `status` out. Pure; all that it says can be observed.

`build_status` says it, `worth_patching` whether it is worth a request to write it down.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from emoe.api.names import child_name
from emoe.api.status import AcceptedSpec, PlanStatus, Status, WorkerCount
from emoe.api.status import Images as ImagesStatus
from emoe.core.capacity import WorkerPlan
from emoe_operator.accepted import record_accepted
from emoe_operator.conditions import Verdict, stamp
from emoe_operator.desired import Desired
from emoe_operator.manifests.identity import selector_labels
from emoe_operator.model_state import describe_model
from emoe_operator.observed import Body, Observed, Problem, Resource
from emoe_operator.residency import describe_residency
from emoe_operator.settings import OperatorSettings
from emoe_operator.situation import Situation, survey
from emoe_operator.verdicts import judge

STATUS_INTERVAL_SECONDS = 5.0
_MOVING = frozenset({"bytesDone", "etaSeconds", "residency", "message"})
"""What changes by itself, all the time, while nothing has happened."""


def build_status(
    resource: Resource,
    observed: Observed,
    desired: Desired,
    problems: tuple[Problem, ...],
    settings: OperatorSettings,
) -> dict[str, Any]:
    """`problems` are the executor's, `desired.problems` the plan's. As YAML has it, for the status subresource."""
    situation = survey(resource, observed, desired, problems)
    worker = situation.rollouts["worker"]
    verdicts = judge(situation)
    conditions = stamp(verdicts, situation.old.conditions, generation=resource.generation, now=observed.now)
    return Status(
        observed_generation=resource.generation,
        conditions=conditions,
        address=_address(situation),
        model=describe_model(situation),
        plan=_plan(situation),
        residency=describe_residency(situation, max_listed=settings.max_listed_workers),
        workers=WorkerCount(replicas=worker.total, ready=situation.num_ready("worker")),
        replicas=worker.total,
        selector=",".join(f"{key}={value}" for key, value in sorted(selector_labels(resource, "worker").items())),
        images=_images(situation),
        accepted=_accepted(situation, verdicts["SpecAccepted"]),
    ).to_dict()


def _plan(situation: Situation) -> PlanStatus | None:
    """Of what serves. One that was refused stands there, for its figures, only where no workers have been planned."""
    wanted, old = situation.desired.worker_plan, situation.old
    workers = ("Deployment", child_name(situation.resource.name, "worker"))
    stands = bool(situation.desired.problems) and workers in situation.observed.children
    return old.plan if wanted is None or stands else _describe_plan(wanted, situation)


def worth_patching(
    old: Body, new: Body, seconds_since_last: float, *, interval_seconds: float = STATUS_INTERVAL_SECONDS
) -> bool:
    """At once when a condition or a fact has changed; progress and residency may wait for the interval."""
    before, after = _plain(old), _plain(new)
    if before == after:
        return False
    return _still(before) != _still(after) or seconds_since_last >= interval_seconds


def _plain(status: Body) -> Any:
    return json.loads(json.dumps(dict(status), default=dict))


def _still(value: Any) -> Any:
    """Without what moves by itself."""
    if isinstance(value, Mapping):
        return {key: _still(item) for key, item in value.items() if key not in _MOVING}
    return [_still(item) for item in value] if isinstance(value, list) else value


def _address(situation: Situation) -> str | None:
    """Of the Service as it was rendered; while nothing is rendered, as it was said before."""
    resource = situation.resource
    service = situation.desired.child("Service", resource.name)
    if service is None:
        return situation.old.address
    return f"{resource.name}.{resource.namespace}.svc:{service['spec']['ports'][0]['port']}"


def _images(situation: Situation) -> ImagesStatus | None:
    images = situation.desired.images
    if images is None:
        return situation.old.images
    return ImagesStatus(control=images.control, worker=images.worker, generation=situation.resource.generation)


def _accepted(situation: Situation, verdict: Verdict) -> AcceptedSpec | None:
    """While nothing is planned, as it was: a paused resource's spec has not been looked at."""
    is_planned = situation.desired.images is not None
    return record_accepted(situation.resource) if is_planned and verdict.holds else situation.old.accepted


def _describe_plan(plan: WorkerPlan, situation: Situation) -> PlanStatus:
    figures = PlanStatus(**{name: getattr(plan, name) for name in PlanStatus.model_fields})
    if not plan.is_left_to_worker:
        return figures
    slots = _counted_slots(plan, situation)
    return figures.model_copy(update={"slots": slots, "resident_bytes": slots and slots * plan.slot_bytes})


def _counted_slots(plan: WorkerPlan, situation: Situation) -> int | None:
    """As the workers say, of the one with the fewest; while none is heard, as it was said before."""
    counts = [worker.num_slots for worker in situation.observed.workers if worker.num_slots]
    if counts:
        return min(min(counts) + plan.staging, plan.total_experts)
    old = situation.old.plan
    same = old is not None and (old.slot_bytes, old.total_experts) == (plan.slot_bytes, plan.total_experts)
    return old.slots if old and same else None
