"""ServicesReady and WorkersReady: each Deployment judged by its rollout and, where that is not done, by its pods."""

from __future__ import annotations

from emoe.api.names import Component
from emoe_operator.conditions import Verdict, fails, first_on_the_way, holds
from emoe_operator.diagnosis import describe_start, is_alive, is_ready
from emoe_operator.observed import Body, ModelPhase
from emoe_operator.rollout import NOTHING, Rollout
from emoe_operator.situation import Situation
from emoe_operator.wording import join_messages, one_line

_SERVICES: tuple[Component, ...] = ("loader", "predictor", "scheduler")
_TOLD_TROUBLES = 3


def judge_services(situation: Situation) -> Verdict:
    if situation.desired.suspended:
        return fails("Suspended", "spec.suspend is true; set it to false to run the services", stuck=True)
    verdicts = {component: _judge(situation, component) for component in _SERVICES}
    failing = {component: verdict for component, verdict in verdicts.items() if not verdict.holds}
    if not failing:
        return holds("ServicesReady", "scheduler, loader and predictor are ready")
    first = first_on_the_way(failing.values())
    message = join_messages([f"{component}: {verdict.message}" for component, verdict in failing.items()])
    return fails(first.reason, message, stuck=first.stuck, follows=first.follows)


def judge_workers(situation: Situation) -> Verdict:
    rollout = situation.rollouts["worker"]
    if situation.desired.suspended:
        return fails("Suspended", "spec.suspend is true; set it to false to run the workers", stuck=True)
    if rollout is NOTHING:
        return _no_workers_yet(situation)
    if rollout.newest and rollout.wanted == 0:
        return fails("ScaledToZero", "no worker is wanted; set spec.workers.replicas to 1 or more", stuck=True)
    verdict = _judge(situation, "worker")
    ready = f"{min(rollout.available, rollout.wanted)} of {rollout.wanted} workers are ready"
    if verdict.holds:
        return holds("WorkersReady", ready)
    return fails(verdict.reason, join_messages([ready, verdict.message]), stuck=verdict.stuck, follows=verdict.follows)


def _no_workers_yet(situation: Situation) -> Verdict:
    if situation.desired.problems:
        problem = situation.desired.problems[0]
        return fails(
            problem.reason, "there are no workers yet, and none are made before the spec is accepted", stuck=True
        )
    if situation.desired.geometry is None:
        why = "workers are made once the model's shape is known, for it decides their memory"
        return fails("WaitingForModel", why, follows=True)
    return fails("Applying", "the workers' Deployment does not stand yet")


def _judge(situation: Situation, component: Component) -> Verdict:
    rollout = situation.rollouts[component]
    if rollout is NOTHING:
        return fails("Applying", "its Deployment does not stand yet")
    if rollout.complete:
        return holds("Complete", "every pod is ready and of the newest revision")
    if rollout.failure:
        return _no_pods(rollout.failure)
    if troubles := situation.troubles(component):
        message = join_messages([trouble.message for trouble in troubles[:_TOLD_TROUBLES]])
        return fails(troubles[0].reason, message, stuck=troubles[0].stuck)
    return _waiting(situation, component, rollout)


def _no_pods(failure: str) -> Verdict:
    said = one_line(failure)
    if "exceeded quota" in failure:
        return fails("QuotaExceeded", f"raise the namespace's quota, or ask for less ({said})", stuck=True)
    return fails("PodsNotCreated", f"the API server refuses its pods; change what it names ({said})", stuck=True)


def _waiting(situation: Situation, component: Component, rollout: Rollout) -> Verdict:
    if not rollout.newest:
        return fails("Applying", "its newest revision is not taken up yet")
    if rollout.available >= rollout.wanted and rollout.updated >= rollout.wanted:
        return fails("RollingOut", f"{rollout.total - rollout.updated} pods of an older revision are still to go")
    if component == "loader" and _waits_for_model(situation):
        return fails("WaitingForModel", "it is ready once the model is fetched; see ModelReady", follows=True)
    if component == "scheduler" and _waits_for_workers(situation):
        return fails("WaitingForWorkers", "it is ready once a worker is; see WorkersReady", follows=True)
    if rollout.stalled:
        return fails("Stalled", "nothing has moved for long; read the logs of its pods", stuck=True)
    if component != "worker":
        return fails("Starting", _starting(situation, component))
    if running := _running(situation, component):
        return fails("Loading", f"{len(running)} pods run, some of which still load the model or wait for a first plan")
    return fails("WaitingForWorkers", _starting(situation, component))


def _starting(situation: Situation, component: Component) -> str:
    pods = [pod for pod in situation.pods(component) if is_alive(pod) and not is_ready(pod)]
    told = sorted(describe_start(pod) for pod in pods)[:_TOLD_TROUBLES]
    return join_messages(["its pods are starting", *told])


def _waits_for_model(situation: Situation) -> bool:
    view = situation.observed.model
    return view is not None and view.phase is not ModelPhase.READY


def _waits_for_workers(situation: Situation) -> bool:
    """A scheduler is ready from the first ready worker on."""
    return bool(_running(situation, "scheduler")) and not situation.num_ready("worker")


def _running(situation: Situation, component: Component) -> list[Body]:
    pods = (pod for pod in situation.pods(component) if is_alive(pod))
    return [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Running"]
