"""`emoe decisions`: what the scheduler decided lately and why, newest first. Imports stay inside the command."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emoe.cli.reporting import reported_errors

if TYPE_CHECKING:
    from emoe.cli.generate import Target
    from emoe.v1 import scheduler_pb2

ASK_SECONDS = 10.0
_KIND_PREFIX = "DECISION_KIND_"
_SHOWN_ID_CHARACTERS = 12

KindOption = Literal["admitted", "refused", "deferred", "requeued", "done", "cancelled", "expired", "failed"]


def decisions_command(
    task: Annotated[str, typer.Option(help="Of requests of this task.")] = "",
    tenant: Annotated[str, typer.Option(help="Of this tenant's requests.")] = "",
    request: Annotated[str, typer.Option(help="Of this request, by its id.")] = "",
    worker: Annotated[str, typer.Option(help="About this worker.")] = "",
    kind: Annotated[KindOption | None, typer.Option(help="Of one kind.", show_default="all")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 20,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "--address",
            envvar=["EMOE_TARGET", "EMOE_ADDRESS"],
            help="host:port of a scheduler, here or in a cluster. Default: the emoe up that runs here.",
        ),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="With --target: by TLS, as a gateway may want it.")] = False,
    state_dir: Annotated[
        Path | None, typer.Option(envvar="EMOE_STATE_DIR", help="Of the emoe up that runs here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say why requests went where they went, waited or were refused: the scheduler's latest decisions, newest first.

    Each scheduler keeps the latest few thousand of its own in memory (--max-decisions of emoe serve scheduler).
    """
    from emoe.cli.generate import find_target
    from emoe.cli.paths import default_state_dir
    from emoe.v1 import scheduler_pb2

    with reported_errors(as_json=as_json):
        question = scheduler_pb2.ListDecisionsRequest(
            limit=limit, request_id=request, task=task, tenant=tenant, worker_id=worker
        )
        if kind is not None:
            question.kind = scheduler_pb2.DecisionKind.Value(_KIND_PREFIX + kind.upper())
        scheduler = find_target(target, state_dir or default_state_dir(), tls=tls)
        answer = asyncio.run(_ask(scheduler, question))
        if as_json:
            rows = [describe_decision(one) for one in answer.decisions]
            print(json.dumps({"decisions": rows, "num_forgotten": answer.num_forgotten}))
        else:
            _print_table(answer)


async def _ask(target: Target, question: scheduler_pb2.ListDecisionsRequest) -> scheduler_pb2.ListDecisionsResponse:
    import grpc

    from emoe.cli.failures import RemoteError
    from emoe.cli.generation_client import check_scheduler
    from emoe.v1 import scheduler_pb2_grpc

    async with target.open_channel() as channel:
        await check_scheduler(channel, target.address, timeout_seconds=ASK_SECONDS)
        try:
            return await scheduler_pb2_grpc.SchedulerServiceStub(channel).ListDecisions(question, timeout=ASK_SECONDS)
        except grpc.aio.AioRpcError as error:
            message = (
                f"{target.address} lists no decisions: {error.code().name}, {error.details() or 'no reason given'}"
            )
            raise RemoteError(message, code=error.code().name) from error


def describe_decision(decision: scheduler_pb2.Decision) -> dict[str, Any]:
    """All of it, for a program; None where there is no such figure."""
    return {
        "unix_seconds": decision.unix_seconds,
        "kind": _kind_of(decision),
        "request_id": decision.request_id,
        "task": decision.task,
        "tenant": decision.tenant,
        "worker_id": decision.worker_id or None,
        "reason": decision.reason,
        "age_seconds": decision.age_seconds,
        "predicted_ttft_seconds": decision.predicted_ttft_seconds or None,
        "due_seconds": decision.due_seconds or None,
        "coverage": decision.coverage,
        "num_waiting": decision.num_waiting,
        "num_workers": decision.num_workers,
    }


def _kind_of(decision: scheduler_pb2.Decision) -> str:
    from emoe.v1 import scheduler_pb2

    return scheduler_pb2.DecisionKind.Name(decision.kind).removeprefix(_KIND_PREFIX).lower()


def _print_table(answer: scheduler_pb2.ListDecisionsResponse) -> None:
    import datetime

    from rich.table import Table
    from rich.text import Text

    from emoe.cli.rows_table import wide_console

    table = Table(box=None, pad_edge=False)
    for heading in ("time", "kind", "request", "task", "worker", "age", "foretold", "due", "waiting", "why"):
        right = heading in ("age", "foretold", "due", "waiting")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for one in answer.decisions:
        at = datetime.datetime.fromtimestamp(one.unix_seconds).astimezone()
        # What clients chose, and reasons, are no markup.
        texts = (one.request_id[:_SHOWN_ID_CHARACTERS], one.task, one.worker_id or "-")
        figures = (one.age_seconds, one.predicted_ttft_seconds, one.due_seconds)
        table.add_row(
            f"{at:%H:%M:%S}",
            _kind_of(one),
            *map(Text, texts),
            *(f"{seconds:.3f} s" if seconds else "-" for seconds in figures),
            str(one.num_waiting),
            Text(one.reason),
        )
    console = wide_console()
    console.print(table if answer.decisions else "no such decision is kept")
    if answer.num_forgotten:
        console.print(f"{answer.num_forgotten} older ones are forgotten")
