"""The scheduler as a process: the front door, the pool of workers behind it, and what keeps both up to date."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import AsyncIterator

from emoe.core.schedule.cluster import Cluster
from emoe.core.schedule.decisions import DecisionLog
from emoe.core.schedule.desk import Desk
from emoe.core.schedule.policies import make_policy
from emoe.core.task_naming import shipped_namer
from emoe.runtime.channels import MAX_MESSAGE_BYTES, open_channel
from emoe.runtime.lifecycle import ServiceHost, service_host
from emoe.runtime.telemetry import Telemetry
from emoe.scheduler.client import LoaderClient
from emoe.scheduler.costs import CostMemory
from emoe.scheduler.dispatch import Dispatcher
from emoe.scheduler.estimates import kept_estimates
from emoe.scheduler.follow import follow_profile, follow_workers, probe_workers, report_tasks
from emoe.scheduler.health import HealthPace, watch_health
from emoe.scheduler.inference import SERVICE as INFERENCE_SERVICE
from emoe.scheduler.inference import InferenceServicer
from emoe.scheduler.lengths import LengthEstimator
from emoe.scheduler.service import SERVICE, SchedulerServicer
from emoe.scheduler.settings import SchedulerSettings
from emoe.scheduler.workers import WorkerPool

_DEADLINE_SLACK_SECONDS = 5.0


async def serve(settings: SchedulerSettings) -> None:
    """Until SIGTERM or SIGINT; then requests that wait or run get `drain_seconds`."""
    async with open_scheduler(settings) as host:
        await host.run()


@contextlib.asynccontextmanager
async def open_scheduler(
    settings: SchedulerSettings, *, telemetry: Telemetry | None = None
) -> AsyncIterator[ServiceHost]:
    """A scheduler that listens and follows its loader."""
    lengths, costs, cluster = LengthEstimator(), CostMemory(), Cluster()
    async with (
        open_channel(settings.loader) as channel,
        contextlib.aclosing(WorkerPool(cluster, costs)) as pool,
        kept_estimates(lengths, costs, settings.state_dir) as keeper,
        service_host(
            settings,
            name="scheduler",
            # Above the limit on requests, so that a client who oversteps it reads which limit that is.
            max_receive_bytes=max(MAX_MESSAGE_BYTES, 2 * settings.max_request_bytes),
            max_call_seconds=settings.max_deadline_seconds + _DEADLINE_SLACK_SECONDS,
            telemetry=telemetry,
        ) as host,
    ):
        decisions = DecisionLog(max_decisions=settings.max_decisions)
        desk = Desk(
            policy=make_policy(settings.policy, placement=settings.placement),
            cluster=cluster,
            max_requests=settings.max_queued_requests,
            max_bytes=settings.max_queued_bytes,
            decisions=decisions,
        )
        dispatcher = Dispatcher(desk=desk, pool=pool)
        servicer = SchedulerServicer(
            settings,
            dispatcher=dispatcher,
            pool=pool,
            lengths=lengths,
            namer=shipped_namer(settings.all_task_examples) if settings.identify_tasks else None,
            decisions=decisions,
        )
        host.register(SERVICE, servicer.add_to)
        inference = InferenceServicer(settings, generate=servicer.generate, pool=pool, stopping=host.stopping)
        host.register(INFERENCE_SERVICE, inference.add_to)
        await host.start()
        _follow_loader(host, LoaderClient(channel), dispatcher, pool, lengths)
        _watch_workers(host, settings, pool)
        if keeper:
            host.spawn("save estimates", keeper.save_every(settings.save_interval_seconds))
        yield host


def _follow_loader(
    host: ServiceHost, loader: LoaderClient, dispatcher: Dispatcher, pool: WorkerPool, lengths: LengthEstimator
) -> None:
    scheduler_id = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    connected = asyncio.Event()
    host.spawn("follow workers", follow_workers(loader, pool, connected))
    host.spawn("follow profile", follow_profile(loader, lengths, connected))
    host.spawn("report tasks", report_tasks(loader, dispatcher, scheduler_id))


def _watch_workers(host: ServiceHost, settings: SchedulerSettings, pool: WorkerPool) -> None:
    async def become_ready() -> None:
        """Ready from the first ready worker on; without one later the queue still holds requests."""
        await pool.found_ready.wait()
        await host.set_ready(True)

    host.spawn(
        "probe workers",
        probe_workers(
            pool,
            interval_seconds=settings.probe_interval_seconds,
            timeout_seconds=settings.probe_timeout_seconds,
        ),
    )
    pace = HealthPace(
        interval_seconds=settings.health_interval_seconds,
        timeout_seconds=settings.health_timeout_seconds,
        silence_seconds=settings.silence_seconds,
    )
    host.spawn("worker health", watch_health(pool, pace))
    host.spawn("readiness", become_ready())
