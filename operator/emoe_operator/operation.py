"""The operator at work, put together: watches, cache, queue, reconciler and the loaders' streams, for as long as this
process leads. Ends only by an error or by being cancelled, and then leaves nothing running."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from opentelemetry import trace

from emoe.api.names import child_name
from emoe_operator.activity import WatchActivity
from emoe_operator.cache import Cache, Key
from emoe_operator.client import KubeApi
from emoe_operator.errors import NOT_FOUND, ApiError, NotInstalledError
from emoe_operator.events import Recorder
from emoe_operator.executor import Executor
from emoe_operator.handlers import watched_paths
from emoe_operator.intake import Intake, relist_for_ever
from emoe_operator.kinds import MOED, WATCHED
from emoe_operator.loader_watch import LoaderWatch
from emoe_operator.manifests.identity import GRPC_PORT
from emoe_operator.metrics import Metrics
from emoe_operator.reconciler import Reconciler
from emoe_operator.settings import OperatorSettings
from emoe_operator.supervision import first_to_end
from emoe_operator.watching import Watching
from emoe_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

_REFUSED = frozenset({401, 403})
NUM_CHECKS = 30
CHECK_PAUSE_SECONDS = 1.0
_PLURALS = frozenset(kind.plural for kind in WATCHED)


def loader_address(key: Key) -> str:
    namespace, name = key
    return f"{child_name(name, 'loader')}.{namespace}.svc:{GRPC_PORT}"


class Operation:
    def __init__(
        self,
        api: KubeApi,
        settings: OperatorSettings,
        *,
        metrics: Metrics,
        tracer: trace.Tracer,
        dial: Callable[[Key], str] = loader_address,
    ) -> None:
        self._api = api
        self._settings = settings
        self._metrics = metrics
        self._tracer = tracer
        self._dial = dial
        self._activity: WatchActivity | None = None

    def trouble(self) -> str | None:
        """What is wrong with the watches, while there are any; a replica that waits to lead has none."""
        silent = self._activity.silent() if self._activity else []
        return f"watches that are dead: {', '.join(silent)}" if silent else None

    async def run(self) -> None:
        await self._check_installed()
        self._activity = WatchActivity(watched_paths(self._settings.namespaces))
        try:
            async with asyncio.TaskGroup() as group:
                await self._work(group, self._activity)
        finally:
            self._activity = None

    async def _work(self, group: asyncio.TaskGroup, activity: WatchActivity) -> None:
        cache = Cache()
        queue = WorkQueue(lambda key: reconciler.handle(key), on_depth=self._metrics.set_queue_depth)
        loaders = LoaderWatch(
            group, wake=queue.add, dial=self._dial, progress_seconds=self._settings.status_interval_seconds
        )
        reconciler = Reconciler(
            api=self._api,
            cache=cache,
            loaders=loaders,
            executor=Executor(self._api),
            recorder=Recorder(self._api),
            settings=self._settings,
            metrics=self._metrics,
            tracer=self._tracer,
        )
        intake = Intake(cache, queue)
        namespaces = self._settings.namespaces
        watching = Watching(intake, namespaces=namespaces, activity=activity, on_response=self._count_response)
        try:
            await first_to_end(queue.run(), watching.run(), relist_for_ever(self._api, intake, namespaces=namespaces))
        finally:
            queue.close()
            loaders.leave_all()

    async def _check_installed(self) -> None:
        """kopf would only warn of a kind that is missing, and watch nothing for ever."""
        for _ in range(NUM_CHECKS):
            try:
                await self._api.list(MOED, namespace=next(iter(self._settings.namespaces), None))
            except ApiError as error:
                if error.status == NOT_FOUND:
                    missing = f"{MOED.plural}.{MOED.group}"
                    message = f"the API server does not know {missing}; install the CRD of the chart"
                    raise NotInstalledError(message) from error
                if error.status in _REFUSED:
                    raise
                log.warning("the API server is not ready yet: %s", error)
                await asyncio.sleep(CHECK_PAUSE_SECONDS)
            else:
                return
        raise NotInstalledError("the API server does not list resources; see the warnings above")

    def _count_response(self, verb: str, path: str, code: int) -> None:
        plural = next((part for part in reversed(path.split("/")) if part in _PLURALS), "discovery")
        self._metrics.count_request(verb=verb if plural == "discovery" else "WATCH", resource=plural, code=code)
