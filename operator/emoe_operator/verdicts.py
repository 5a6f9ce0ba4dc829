"""The conditions that sum others up: SpecAccepted, Available, Ready and Progressing."""

from __future__ import annotations

from emoe_operator.component_state import judge_services, judge_workers
from emoe_operator.conditions import Verdict, fails, first_on_the_way, holds
from emoe_operator.model_state import judge_model
from emoe_operator.observed import Problem
from emoe_operator.situation import Situation
from emoe_operator.wording import join_messages, one_line

_REFUSED_BY_SERVER = "Invalid"
"""The API server's own word for an object that no retry will make good: the spec asked for it."""


def judge(situation: Situation) -> dict[str, Verdict]:
    """A verdict for each type of condition."""
    aspects = {
        "SpecAccepted": judge_spec(situation),
        "ModelReady": judge_model(situation),
        "ServicesReady": judge_services(situation),
        "WorkersReady": judge_workers(situation),
        "Available": _judge_available(situation),
    }
    return {
        **aspects,
        "Ready": _judge_ready(situation, aspects),
        "Progressing": _judge_progressing(situation, aspects),
    }


def judge_spec(situation: Situation) -> Verdict:
    desired = situation.desired
    if desired.problems:
        message = join_messages([problem.message for problem in desired.problems])
        return fails(desired.problems[0].reason, f"{message}; {_meanwhile(situation)}", stuck=True)
    refused = [one_line(problem.message) for problem in situation.problems if problem.reason == _REFUSED_BY_SERVER]
    if refused:
        return fails("Rejected", f"the API server refuses what the spec asks for: {join_messages(refused)}", stuck=True)
    if desired.geometry is None:
        return holds("Accepted", "the spec is accepted; its memory is checked once the model's shape is known")
    return holds("Accepted", "the spec is accepted, and the model fits it")


def _meanwhile(situation: Situation) -> str:
    accepted, desired = situation.old.accepted, situation.desired
    if desired.suspended:
        return "no pod runs meanwhile, as spec.suspend asks"
    if accepted is None or accepted.generation == situation.resource.generation or not desired.children:
        return "what stands is left as it is"
    return f"generation {accepted.generation}, which was accepted last, is kept meanwhile"


def _judge_available(situation: Situation) -> Verdict:
    schedulers, workers = situation.num_ready("scheduler"), situation.num_ready("worker")
    if situation.desired.suspended and not workers:
        return fails("Suspended", "spec.suspend is true; set it to false to serve", stuck=True)
    if not workers:
        return fails("NoWorkerReady", "no worker of any revision is ready; see WorkersReady")
    if not schedulers:
        return fails("NoSchedulerReady", "no scheduler is ready to take requests; see ServicesReady")
    return holds("Serving", "requests are served")


def _judge_ready(situation: Situation, aspects: dict[str, Verdict]) -> Verdict:
    """True only for this very generation, applied and running in full."""
    if not aspects["SpecAccepted"].holds:
        return _as_failure(aspects["SpecAccepted"])
    if situation.desired.paused and not _is_applied(situation):
        return _paused()
    if situation.problems:
        return _not_applied(situation.problems)
    if situation.desired.suspended:
        return fails("Suspended", "spec.suspend is true; set it to false to serve", stuck=True)
    order = ("ModelReady", "ServicesReady", "WorkersReady", "Available")
    failing = [aspects[kind] for kind in order if not aspects[kind].holds]
    if not failing:
        return holds("Serving", "the model is served as the spec asks")
    return _as_failure(first_on_the_way(failing))


def _judge_progressing(situation: Situation, aspects: dict[str, Verdict]) -> Verdict:
    if not aspects["SpecAccepted"].holds:
        if situation.desired.suspended and situation.num_alive():
            return _judge_suspending(situation)
        return fails(aspects["SpecAccepted"].reason, "the spec is taken up once it is changed", stuck=True)
    if situation.desired.paused:
        return _paused()
    if situation.problems:
        return _not_applied(situation.problems)
    if situation.desired.suspended:
        return _judge_suspending(situation)
    waiting = [aspects[kind] for kind in ("ModelReady", "ServicesReady", "WorkersReady") if not aspects[kind].holds]
    if not waiting:
        return fails("Complete", "everything is as the spec asks")
    first = first_on_the_way(waiting)
    return _as_failure(first) if first.stuck else holds(first.reason, first.message)


def _judge_suspending(situation: Situation) -> Verdict:
    if alive := situation.num_alive():
        return holds("Suspending", f"{alive} pods are still to stop")
    return fails("Suspended", "no pod runs; claims and Services are kept", stuck=True)


def _is_applied(situation: Situation) -> bool:
    images = situation.old.images
    return images is not None and images.generation == situation.resource.generation


def _paused() -> Verdict:
    return fails("Paused", "nothing is changed until the annotation emoe.dev/paused is removed", stuck=True)


def _not_applied(problems: tuple[Problem, ...]) -> Verdict:
    messages = [one_line(problem.message) for problem in problems]
    if any("exceeded quota" in problem.message for problem in problems):
        return fails(
            "QuotaExceeded", join_messages(["raise the namespace's quota, or ask for less", *messages]), stuck=True
        )
    return fails(problems[0].reason, join_messages(messages), stuck=True)


def _as_failure(verdict: Verdict) -> Verdict:
    return fails(verdict.reason, verdict.message, stuck=verdict.stuck)
