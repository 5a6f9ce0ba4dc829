"""All that a status is judged by, sorted once: the rollout and the pods of each service, and what the loader says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from emoe.api.names import COMPONENT_LABEL, COMPONENTS, Component
from emoe.api.status import Status
from emoe_operator.desired import Desired
from emoe_operator.diagnosis import Trouble, diagnose, is_alive, is_ready
from emoe_operator.manifests.identity import child_name
from emoe_operator.observed import Body, Observed, Problem, Resource
from emoe_operator.recorded import recorded_status
from emoe_operator.rollout import Rollout, observe_rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Situation:
    """`problems` are the executor's: what could not be applied. `old` is the status as it stands."""

    resource: Resource
    observed: Observed
    desired: Desired
    problems: tuple[Problem, ...]
    old: Status
    rollouts: Mapping[Component, Rollout]

    def pods(self, component: Component) -> list[Body]:
        return [pod for pod in self.observed.pods if pod["metadata"]["labels"].get(COMPONENT_LABEL) == component]

    def num_ready(self, component: Component) -> int:
        return sum(is_ready(pod) for pod in self.pods(component))

    def num_alive(self) -> int:
        return sum(is_alive(pod) for pod in self.observed.pods)

    def troubles(self, component: Component) -> list[Trouble]:
        """The gravest first."""
        found = [trouble for pod in self.pods(component) if (trouble := diagnose(pod))]
        return sorted(found, key=lambda trouble: (trouble.rank, trouble.message))


def survey(resource: Resource, observed: Observed, desired: Desired, problems: tuple[Problem, ...]) -> Situation:
    rollouts = {component: _rollout(resource, observed, desired, component) for component in COMPONENTS}
    return Situation(
        resource=resource,
        observed=observed,
        desired=desired,
        problems=problems,
        old=recorded_status(resource),
        rollouts=rollouts,
    )


def _rollout(resource: Resource, observed: Observed, desired: Desired, component: Component) -> Rollout:
    name = child_name(resource, component)
    return observe_rollout(observed.children.get(("Deployment", name)), desired.child("Deployment", name))
