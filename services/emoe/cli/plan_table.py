"""What `emoe plan` prints for people."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emoe.api.resource import MoEDeployment
from emoe.cli.footprint_table import format_bytes
from emoe.cli.plan import PlannedModel, PlannedResource
from emoe.core.capacity import WorkerPlan, as_quantity


def print_plan(planned: PlannedResource) -> None:
    console = Console(highlight=False, soft_wrap=True)
    resource, plan, model = planned.resource, planned.plan, planned.model
    console.print(f"[bold]{escape(planned.name) or 'a resource without a name'}[/]")
    for problem in planned.problems:
        console.print(f"  [red]refused[/] {escape(str(problem))}")
    if resource is None:
        return
    if plan is None or model is None:
        console.print(
            f"  the file is valid; {escape(resource.spec.model.source)} is not read from here: give --model a folder "
            "with its files, and its memory is planned too"
        )
        return
    console.print(_facts(planned, resource, plan, model))
    for text in plan.problems:
        console.print(f"  [red]does not fit[/] {escape(text)}")
    if plan.fits:
        console.print(f"  [green]fits[/] {_verdict(resource, plan)}")


def _facts(planned: PlannedResource, resource: MoEDeployment, plan: WorkerPlan, model: PlannedModel) -> Table:
    experts, workers = resource.spec.experts, resource.spec.workers
    table = Table(box=None, show_header=False, pad_edge=True)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("model", f"{escape(resource.spec.model.source)} ({model.family})")
    table.add_row(
        "expert bytes", f"{format_bytes(plan.expert_bytes)}, {plan.total_experts} experts in {model.expert_format}"
    )
    table.add_row("base bytes", f"{format_bytes(plan.base_bytes)}, always in memory")
    table.add_row("slots", _slots(plan, memory=str(experts.memory)))
    if plan.calibration_bytes:
        table.add_row("calibration", f"{format_bytes(plan.calibration_bytes)} of the expert memory, beside the slots")
    table.add_row("least", f"{as_quantity(plan.min_bytes)} of expert memory, for missPolicy {experts.miss_policy}")
    table.add_row("KV", _kv(plan, model, context=workers.max_context, concurrency=workers.max_concurrency))
    if plan.device_bytes:
        least = ", with the fewest slots" if plan.is_left_to_worker else ""
        table.add_row("device memory", f"{format_bytes(plan.device_bytes)} beside a step's own{least}")
    table.add_row(
        "host memory" if plan.device_bytes else "worker memory",
        f"{as_quantity(plan.worker_memory_bytes)} each, {format_bytes(plan.overhead_bytes)} of it for the process",
    )
    table.add_row("hit rate", _hits(planned, resource))
    table.add_row("time to load", _load_time(planned))
    return table


def _load_time(planned: PlannedResource) -> str:
    seconds = planned.load_seconds or 0.0
    took = "under a second" if seconds < 1 else f"{seconds:.0f} s"
    without = " for the base weights, beside the slots'" if planned.plan and planned.plan.is_left_to_worker else ""
    return f"{took}{without} at {planned.bytes_per_second / 1e6:.0f} MB/s, a rate that is assumed (--bandwidth)"


def _slots(plan: WorkerPlan, *, memory: str) -> str:
    if plan.is_left_to_worker:
        return f"of {plan.total_experts}, as many as each worker finds room for on its GPU when it starts; at {memory}"
    staging = f", {plan.staging} of them for staging" if plan.staging else ""
    return f"{plan.slots}/{plan.total_experts} at {escape(memory)}, {format_bytes(plan.resident_bytes)}{staging}"


def _kv(plan: WorkerPlan, model: PlannedModel, *, context: int, concurrency: int) -> str:
    if not plan.kv_bytes:
        return "not derivable from the config, so not counted"
    longest = min(context, model.geometry.max_context or context)
    return f"{format_bytes(plan.kv_bytes)}, {concurrency} requests of {longest} tokens"


def _hits(planned: PlannedResource, resource: MoEDeployment) -> str:
    if planned.hits:
        tasks = ", ".join(f"{task} {ratio:.0%}" for task, ratio in planned.hits.by_task.items())
        return f"{planned.hits.ratio:.0%} expected of all tasks alike; alone: {tasks}"
    if planned.plan and planned.plan.is_left_to_worker:
        return "not known before a worker has counted its slots"
    if resource.spec.experts.miss_policy == "load":
        return "not foretold with missPolicy load, where whoever is used stays"
    if planned.plan and not planned.plan.fits:
        return "none, since it does not fit"
    return "not known: there is no profile (emoe-profile.json) beside the model; `emoe profile` makes one"


def _verdict(resource: MoEDeployment, plan: WorkerPlan) -> str:
    replicas = resource.spec.workers.replicas
    memory = as_quantity(plan.worker_memory_bytes * replicas)
    unseen = "; whether a device has its part is not known here" if plan.device_bytes else ""
    return f"{memory} for {replicas} worker{'' if replicas == 1 else 's'}{unseen}"
