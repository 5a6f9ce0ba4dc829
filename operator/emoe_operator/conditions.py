"""Conditions as Kubernetes has them: drafts without a clock, stamped once they are compared with what stood before."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Mapping
from typing import Literal

from emoe.api.status import CONDITION_TYPES, Condition

Truth = Literal["True", "False", "Unknown"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """One aspect, judged. `stuck`: not so, and waiting alone will not change it. `follows`: it only waits for another
    aspect, which says more."""

    status: Truth
    reason: str
    message: str
    stuck: bool = False
    follows: bool = False

    @property
    def holds(self) -> bool:
        return self.status == "True"


def holds(reason: str, message: str) -> Verdict:
    return Verdict(status="True", reason=reason, message=message)


def fails(reason: str, message: str, *, stuck: bool = False, follows: bool = False) -> Verdict:
    return Verdict(status="False", reason=reason, message=message, stuck=stuck, follows=follows)


def unknown(reason: str, message: str, *, stuck: bool = False) -> Verdict:
    return Verdict(status="Unknown", reason=reason, message=message, stuck=stuck)


def first_on_the_way(failing: Iterable[Verdict]) -> Verdict:
    """What is broken before what will pass, and last what only waits for something else; else in the order given."""
    return min(failing, key=lambda verdict: (not verdict.stuck, verdict.follows))


def stamp(
    verdicts: Mapping[str, Verdict], old: tuple[Condition, ...], *, generation: int, now: datetime.datetime
) -> tuple[Condition, ...]:
    """In their fixed order. A time changes only with its status."""
    before = {condition.type: condition for condition in old}
    return tuple(_stamp(kind, verdicts[kind], before.get(kind), generation, now) for kind in CONDITION_TYPES)


def _stamp(kind: str, verdict: Verdict, before: Condition | None, generation: int, now: datetime.datetime) -> Condition:
    same = before is not None and before.status == verdict.status
    return Condition(
        type=kind,
        status=verdict.status,
        reason=verdict.reason,
        message=verdict.message,
        last_transition_time=before.last_transition_time if before and same else say_time(now),
        observed_generation=generation,
    )


def say_time(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
