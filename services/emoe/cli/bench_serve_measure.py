"""What a simulator must know of the system that was just replayed against, asked of that system."""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
from collections.abc import Sequence

import grpc.aio

from emoe.bench.schedule_trace import Workload
from emoe.bench.serve import OpenLoad
from emoe.bench.serve_compare import Measured
from emoe.bench.serve_load import Load
from emoe.cli.failures import CommandError
from emoe.cli.loader_facts import ask_workers
from emoe.core.schedule.costs import StepCosts
from emoe.core.tasks import UNKNOWN
from emoe.v1 import loader_pb2, scheduler_pb2, scheduler_pb2_grpc

SETTLE_SECONDS = 1.5
"""For the last heartbeats to bring the last costs."""
NUM_PROBES = 9
PROBE_TOKENS = 16
PROBE_GAP_SECONDS = 0.3
PROBE_TIMEOUT_SECONDS = 60.0
_FIELDS = tuple(field.name for field in dataclasses.fields(StepCosts))


async def measure_system(channel: grpc.aio.Channel, loader: str, *, vocab_size: int) -> Measured:
    """While nothing runs. CommandError when no worker has measured its steps yet."""
    await asyncio.sleep(SETTLE_SECONDS)
    workers = [worker for worker in await ask_workers(loader) if worker.ready]
    costs = [_costs(worker) for worker in workers if worker.step_costs.num_steps]
    if not costs:
        raise CommandError("no worker has told what its steps take: they measure for 32 steps; send more requests")
    stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
    status = await stub.GetStatus(scheduler_pb2.GetSchedulerStatusRequest(), timeout=PROBE_TIMEOUT_SECONDS)
    return Measured(
        policy=status.policy,
        max_queued=status.max_queued_requests,
        num_workers=len(workers),
        num_rows=round(statistics.median(_num_rows(worker) for worker in workers)),
        costs=_median(costs),
        idle_ttft_seconds=await _probe(channel, vocab_size),
        num_idle_tokens=PROBE_TOKENS,
    )


async def _probe(channel: grpc.aio.Channel, vocab_size: int) -> float:
    """Median time to first token of short prompts, one at a time."""
    workload = Workload(
        name="probes",
        arrived_seconds=[number * PROBE_GAP_SECONDS for number in range(NUM_PROBES)],
        prompt_tokens=[PROBE_TOKENS] * NUM_PROBES,
        answer_tokens=[1] * NUM_PROBES,
        tasks=[UNKNOWN] * NUM_PROBES,
        span_seconds=NUM_PROBES * PROBE_GAP_SECONDS,
    )
    load = Load(workload=workload, vocab_size=vocab_size)
    opened = OpenLoad(channel, workload, {}, load.write_prompt, timeout_seconds=PROBE_TIMEOUT_SECONDS)
    await opened.run()
    if opened.outcome.failures:
        raise CommandError(f"a short prompt on the idle system failed: {next(iter(opened.outcome.failures.values()))}")
    taken = zip(opened.outcome.first_token_seconds, workload.arrived_seconds, strict=True)
    return statistics.median(first - arrived for first, arrived in taken)


def _num_rows(worker: loader_pb2.WorkerState) -> int:
    return worker.free_sequences + worker.num_running + worker.num_waiting


def _costs(worker: loader_pb2.WorkerState) -> StepCosts:
    return StepCosts(**{name: getattr(worker.step_costs, name) for name in _FIELDS})


def _median(costs: Sequence[StepCosts]) -> StepCosts:
    fields = {name: statistics.median(getattr(one, name) for one in costs) for name in _FIELDS}
    return StepCosts(**fields | {"step_tokens": round(fields["step_tokens"])})
