"""Makes the cluster agree with the plan: applies the children that are missing or differ, removes those that must go.

Nothing is written that stands as rendered. Every child is tried, whatever became of the others; what failed comes back
as problems. An object that is not this resource's is never touched. Does not know why a child is wanted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

from emoe.api.names import KIND, OWNER_LABEL
from emoe.core.errors import EmoeError
from emoe_operator import drift
from emoe_operator.client import KubeApi
from emoe_operator.desired import Desired, Manifest
from emoe_operator.errors import INVALID, ApiError, NameTakenError, StillDeletingError, Verdict, verdict_of
from emoe_operator.kinds import kind_of
from emoe_operator.observed import Body, ChildKey, Problem, Resource

log = logging.getLogger(__name__)

MAX_CORRECTIONS = 5
CORRECTIONS_SECONDS = 60.0
"""A child that somebody else keeps editing is put back so many times in this time, then it has to wait."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """`answers` are the objects as they stand now, of those that were applied."""

    answers: tuple[Body, ...] = ()
    problems: tuple[Problem, ...] = ()
    verdict: Verdict | None = None
    """The worst that happened: gone, else temporary, else permanent."""
    again_seconds: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Accepted:
    """How the API server showed a child right after it was applied."""

    uid: str
    hash: str
    shown: Any


@dataclasses.dataclass
class _Memory:
    """Of one child: lost with the process, at the price of one more request."""

    accepted: _Accepted | None = None
    corrections: list[float] = dataclasses.field(default_factory=list)


class Executor:
    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self._memories: dict[str, dict[ChildKey, _Memory]] = {}

    async def carry_out(self, resource: Resource, desired: Desired, standing: Mapping[ChildKey, Body]) -> Outcome:
        if desired.paused:
            return Outcome()
        run = _Run(self._api, resource, standing, self._memories.setdefault(resource.uid, {}))
        last_good = {_key(manifest): manifest for manifest in desired.last_good}
        for manifest in desired.children:
            key = _key(manifest)
            error = await run.attempt(key, run.apply(manifest))
            if _is_refused(error) and key in last_good:
                await run.attempt(key, run.apply(last_good[key]))
        for child in desired.prune:
            await run.attempt(child, run.prune(child))
        if desired.suspended:
            for child in run.left_running(but=desired.prune):
                await run.attempt(child, run.stop(child))
        return run.outcome()

    def forget(self, uids: set[str]) -> None:
        """Of all resources but these."""
        for uid in set(self._memories) - uids:
            del self._memories[uid]


class _Run:
    """One pass over the children of one resource."""

    def __init__(
        self, api: KubeApi, resource: Resource, standing: Mapping[ChildKey, Body], memories: dict[ChildKey, _Memory]
    ) -> None:
        self._api = api
        self._resource = resource
        self._standing = standing
        self._memories = memories
        self._answers: list[Body] = []
        self._problems: list[Problem] = []
        self._verdicts: set[Verdict] = set()
        self._again_seconds: float | None = None
        self._done: set[ChildKey] = set()

    async def attempt(self, child: ChildKey, step: Coroutine[Any, Any, None]) -> EmoeError | None:
        try:
            await step
        except EmoeError as error:
            self._verdicts.add(verdict_of(error))
            self._problems.append(Problem(reason=_reason(error), message=f"{child[0]} {child[1]}: {error}"))
            return error
        self._done.add(child)
        return None

    def outcome(self) -> Outcome:
        worst = next((v for v in (Verdict.GONE, Verdict.TEMPORARY, Verdict.PERMANENT) if v in self._verdicts), None)
        return Outcome(
            answers=tuple(self._answers),
            problems=tuple(self._problems),
            verdict=worst,
            again_seconds=self._again_seconds,
        )

    async def apply(self, manifest: Manifest) -> None:
        child = _key(manifest)
        wanted = drift.with_hash(manifest)
        memory = self._memories.setdefault(child, _Memory())
        standing = self._standing.get(child)
        if standing is None:
            standing = await self._api.get(kind_of(child[0]), self._resource.namespace, child[1])
            applied_before = False
        else:
            applied_before = drift.hash_on(standing) == drift.hash_on(wanted)
        if standing is not None:
            _check_ours(standing, self._resource)
            if applied_before and not _differs(wanted, standing, memory):
                return
        if applied_before and not self._may_correct(child, memory):
            return
        answer = await self._put(wanted, standing)
        memory.accepted = _accept(wanted, answer)
        self._answers.append(answer)
        log.info("applied %s %s/%s", child[0], self._resource.namespace, child[1])

    async def _put(self, wanted: Manifest, standing: Body | None) -> Body:
        try:
            return await self._api.apply(wanted)
        except ApiError as error:
            if standing is None or wanted["kind"] != "Service" or error.status != INVALID:
                raise
        await self._api.replace_ports(wanted)
        return await self._api.apply(wanted)

    async def prune(self, child: ChildKey) -> None:
        standing = self._standing.get(child)
        if standing is None or "deletionTimestamp" in standing["metadata"]:
            return
        if _controller_uid(standing) != self._resource.uid:
            log.warning("%s %s is not owned by %s; it is left alone", *child, self._resource.name)
            return
        uid = standing["metadata"]["uid"]
        await self._api.delete(kind_of(child[0]), self._resource.namespace, child[1], uid=uid)
        log.info("removed %s %s/%s", child[0], self._resource.namespace, child[1])

    def left_running(self, *, but: tuple[ChildKey, ...]) -> list[ChildKey]:
        """Deployments of this resource that still want pods, because their rendering could not be applied or made."""
        unseen = (child for child in self._standing if child not in self._done and child not in but)
        return [child for child in unseen if _wants_pods(child, self._standing[child], self._resource)]

    async def stop(self, child: ChildKey) -> None:
        self._answers.append(await self._api.scale_to_zero(kind_of(child[0]), self._resource.namespace, child[1]))
        log.info("scaled %s %s/%s to nothing", child[0], self._resource.namespace, child[1])

    def _may_correct(self, child: ChildKey, memory: _Memory) -> bool:
        now = asyncio.get_running_loop().time()
        recent = [when for when in memory.corrections if now - when < CORRECTIONS_SECONDS]
        memory.corrections = recent
        if len(recent) < MAX_CORRECTIONS:
            recent.append(now)
            return True
        message = f"{child[0]} {child[1]} is changed by somebody else as often as it is put back; find out who does it"
        self._problems.append(Problem(reason="Contested", message=message))
        self._again_seconds = CORRECTIONS_SECONDS
        return False


def _key(manifest: Manifest) -> ChildKey:
    return manifest["kind"], manifest["metadata"]["name"]


def _is_refused(error: EmoeError | None) -> bool:
    return isinstance(error, ApiError) and error.status == INVALID


def _wants_pods(child: ChildKey, standing: Body, resource: Resource) -> bool:
    wanted = (standing.get("spec") or {}).get("replicas", 1)
    return child[0] == "Deployment" and wanted != 0 and _controller_uid(standing) == resource.uid


def _check_ours(standing: Body, resource: Resource) -> None:
    """NameTakenError unless it is this resource's, or was made for one of its name and has no owner any more."""
    meta = standing["metadata"]
    owner = _controller(standing)
    label = (meta.get("labels") or {}).get(OWNER_LABEL)
    if "deletionTimestamp" in meta:
        raise StillDeletingError("the one of this name is still being deleted")
    if owner is not None and owner["uid"] == resource.uid:
        return
    if owner is None and label == resource.name:
        return
    if owner is not None and (owner["kind"], owner["name"]) == (KIND, resource.name):
        raise StillDeletingError(f"one of this name belongs to an earlier {resource.name}, and is still to be deleted")
    raise NameTakenError(f"one of this name exists and is not {resource.name}'s; delete it, or rename the resource")


def _controller(body: Body) -> Body | None:
    owners = body["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), None)


def _controller_uid(body: Body) -> str | None:
    owner = _controller(body)
    return None if owner is None else str(owner["uid"])


def _differs(wanted: Manifest, standing: Body, memory: _Memory) -> bool:
    if drift.matches(wanted, standing):
        return False
    seen = _Accepted(
        uid=standing["metadata"]["uid"], hash=drift.hash_on(wanted) or "", shown=drift.shown(wanted, standing)
    )
    return seen != memory.accepted


def _accept(wanted: Manifest, answer: Body) -> _Accepted:
    return _Accepted(uid=answer["metadata"]["uid"], hash=drift.hash_on(wanted) or "", shown=drift.shown(wanted, answer))


def _reason(error: EmoeError) -> str:
    if isinstance(error, ApiError):
        return error.reason if error.reason.isidentifier() else "Rejected"
    return type(error).__name__.removesuffix("Error")
