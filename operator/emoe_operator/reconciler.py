"""One look at one resource: gather what is observed, plan, carry out, say in its status what is true.

Everything is computed anew each time; what an earlier look did is seen in the cluster, not remembered. A look at a
resource that is as it should be makes no request at all.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import math
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace

from emoe.api.names import child_name
from emoe_operator.cache import Cache, Key
from emoe_operator.client import KubeApi
from emoe_operator.errors import CONFLICT, NOT_FOUND, ApiError, Verdict, verdict_of
from emoe_operator.events import Recorder
from emoe_operator.executor import Executor, Outcome
from emoe_operator.kinds import MOED, kind_of
from emoe_operator.loader_watch import LoaderWatch
from emoe_operator.metrics import Metrics
from emoe_operator.observed import Body, Observed, Resource
from emoe_operator.plan import plan_children
from emoe_operator.settings import OperatorSettings
from emoe_operator.status import build_status, worth_patching
from emoe_operator.tracing import reconcile_span
from emoe_operator.workqueue import Done

log = logging.getLogger(__name__)

_NOTHING = Done()


class Reconciler:
    def __init__(
        self,
        *,
        api: KubeApi,
        cache: Cache,
        loaders: LoaderWatch,
        executor: Executor,
        recorder: Recorder,
        settings: OperatorSettings,
        metrics: Metrics,
        tracer: trace.Tracer,
    ) -> None:
        self._api = api
        self._cache = cache
        self._loaders = loaders
        self._executor = executor
        self._recorder = recorder
        self._settings = settings
        self._metrics = metrics
        self._tracer = tracer
        self._said_seconds: dict[str, float] = {}

    async def handle(self, key: Key) -> Done:
        loop = asyncio.get_running_loop()
        began_seconds, result = loop.time(), "error"
        with reconcile_span(self._tracer, key) as span:
            try:
                result, done = await self._look(key)
            finally:
                span.set_attribute("emoe.result", result)
                self._metrics.count_reconcile(result, loop.time() - began_seconds)
                self._metrics.set_resources(self._ready_values())
        return done

    async def _look(self, key: Key) -> tuple[str, Done]:
        body = self._cache.resource(key)
        if body is None or "deletionTimestamp" in body["metadata"]:
            return "gone", self._let_go(key)
        resource = Resource.parse(body)
        self._follow_loader(key, resource)
        observed = self._observe(key)
        desired = plan_children(resource, observed, self._settings)
        outcome = await self._executor.carry_out(resource, desired, observed.children)
        if outcome.verdict is Verdict.GONE:
            return "gone", _NOTHING
        for answer in outcome.answers:
            self._cache.put(kind_of(answer["kind"]), answer)
        status = build_status(resource, self._observe(key), desired, outcome.problems, self._settings)
        return await self._say(body, status, outcome)

    def _let_go(self, key: Key) -> Done:
        """The garbage collector removes what it owned."""
        self._loaders.leave(key)
        if self._cache.resource(key) is None:
            alive = {str(body["metadata"]["uid"]) for body in self._cache.resources()}
            self._executor.forget(alive)
            self._recorder.forget(alive)
            self._said_seconds = {uid: when for uid, when in self._said_seconds.items() if uid in alive}
        return _NOTHING

    def _follow_loader(self, key: Key, resource: Resource) -> None:
        loader = self._cache.children(key).get(("Deployment", child_name(resource.name, "loader")))
        if loader is not None and loader["spec"].get("replicas", 1) > 0:
            self._loaders.follow(key)
        else:
            self._loaders.leave(key)

    def _observe(self, key: Key) -> Observed:
        return Observed(
            now=datetime.datetime.now(datetime.UTC),
            children=self._cache.children(key),
            pods=self._cache.pods(key),
            model=self._loaders.model(key),
            workers=self._loaders.workers(key),
        )

    async def _say(self, body: Body, status: Mapping[str, Any], outcome: Outcome) -> tuple[str, Done]:
        """Mere progress that was written down a moment ago is looked at again when its time has come."""
        before = body.get("status") or {}
        retry, waits = outcome.verdict is Verdict.TEMPORARY, [outcome.again_seconds]
        interval_seconds = self._settings.status_interval_seconds
        since_seconds = asyncio.get_running_loop().time() - self._said_seconds.get(body["metadata"]["uid"], -math.inf)
        if worth_patching(before, status, since_seconds, interval_seconds=interval_seconds):
            retry |= await self._patch(body, before, status)
        elif status != before:
            waits.append(max(0.0, interval_seconds - since_seconds))
        again_seconds = min((wait for wait in waits if wait is not None), default=None)
        return str(outcome.verdict or "ok"), Done(retry=retry, again_seconds=again_seconds)

    async def _patch(self, body: Body, before: Body, status: Body) -> bool:
        """Whether it is to be tried again."""
        try:
            self._cache.put(MOED, await self._api.apply_status(MOED, body, status))
        except ApiError as error:
            if error.status in (NOT_FOUND, CONFLICT):  # deleted or changed meanwhile; its event will come
                return error.status == CONFLICT
            log.warning("the status of %s/%s could not be written: %s", *_names(body), error)
            return verdict_of(error) is Verdict.TEMPORARY
        self._said_seconds[body["metadata"]["uid"]] = asyncio.get_running_loop().time()
        await self._recorder.record(body, before, status)
        return False

    def _ready_values(self) -> list[str]:
        return [_ready_value(body.get("status") or {}) for body in self._cache.resources()]


def _ready_value(status: Body) -> str:
    conditions = status.get("conditions") or ()
    return next((str(one["status"]) for one in conditions if one["type"] == "Ready"), "Unknown")


def _names(body: Body) -> tuple[str, str]:
    return body["metadata"]["namespace"], body["metadata"]["name"]
