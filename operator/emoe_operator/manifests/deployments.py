"""The four Deployments, as far as they differ: what each service is told, what it mounts, and how it is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emoe.api.pods import PodTemplate, Resources
from emoe.api.quantity import CountOrPercent
from emoe.api.spec import Experts, Rollout
from emoe.core.capacity import WorkerPlan, as_quantity
from emoe.core.memory import AUTO
from emoe_operator.desired import Manifest
from emoe_operator.manifests.accounts import ca_environment, ca_mounted, revision_environment
from emoe_operator.manifests.context import Context
from emoe_operator.manifests.environment import Variable, reference, shared_environment, to_json, variable
from emoe_operator.manifests.identity import BULK_PORT, GRPC_PORT, address
from emoe_operator.manifests.pods import Service, pod_template
from emoe_operator.manifests.storage import (
    CACHE_PATH,
    STATE_PATH,
    loader_source,
    loader_storage,
    predictor_storage,
    scheduler_storage,
    worker_storage,
)
from emoe_operator.manifests.workloads import RECREATE, deployment, rolling

_SINGLE_DRAIN_SECONDS = 10
"""Loader and predictor have no streams of clients to finish."""


def predictor_deployment(context: Context) -> Manifest:
    wanted, storage = context.spec.services.predictor, predictor_storage(context)
    service = Service(
        component="predictor",
        image=context.images.control,
        environment=[
            *shared_environment(context, "predictor", drain_seconds=_SINGLE_DRAIN_SECONDS),
            variable("EMOE_PREDICTOR_STATE_DIR", STATE_PATH),
        ],
        resources=_resources(wanted.resources, context.settings.predictor_resources),
        drain_seconds=_SINGLE_DRAIN_SECONDS,
        user_template=_template(wanted.pod_template),
        storage=storage,
    )
    return deployment(context, "predictor", replicas=1, strategy=RECREATE, template=pod_template(context, service))


def loader_deployment(context: Context) -> Manifest:
    wanted, model = context.spec.services.loader, context.spec.model
    service = Service(
        component="loader",
        image=context.images.control,
        environment=_loader_environment(context),
        resources=_resources(wanted.resources, context.settings.loader_resources),
        drain_seconds=_SINGLE_DRAIN_SECONDS,
        user_template=_template(wanted.pod_template),
        storage=loader_storage(context) + ca_mounted(context),
        further_ports=(("bulk", BULK_PORT),),
        env_from=[{"secretRef": {"name": model.secret_ref.name}}] if model.secret_ref else [],
    )
    return deployment(context, "loader", replicas=1, strategy=RECREATE, template=pod_template(context, service))


def _loader_environment(context: Context) -> list[Variable]:
    experts = context.spec.experts
    return [
        *shared_environment(context, "loader", drain_seconds=_SINGLE_DRAIN_SECONDS),
        variable("EMOE_LOADER_SOURCE", loader_source(context)),
        *revision_environment(context),
        variable("EMOE_LOADER_MODEL_CACHE", CACHE_PATH),
        variable("EMOE_LOADER_PREDICTOR", address(context.resource, "predictor")),
        variable("EMOE_LOADER_REFRESH_INTERVAL_PROMPTS", experts.refresh_interval_prompts),
        variable("EMOE_LOADER_PLANNER", experts.planner),
        *_pinned("LOADER", experts),
        *ca_environment(context),
        *(variable(name, value) for name, value in sorted(context.settings.pod_env.items())),
    ]


def _pinned(service: str, experts: Experts) -> list[Variable]:
    pairs = [[entry.layer, index] for entry in experts.pinned for index in entry.experts]
    return [variable(f"EMOE_{service}_PINNED", to_json(sorted(pairs)))] if pairs else []


def scheduler_deployment(context: Context) -> Manifest:
    wanted, drain_seconds = context.spec.services.scheduler, context.spec.rollout.drain_seconds
    service = Service(
        component="scheduler",
        image=context.images.control,
        environment=_scheduler_environment(context, drain_seconds),
        resources=_resources(wanted.resources, context.settings.scheduler_resources),
        drain_seconds=drain_seconds,
        user_template=_template(wanted.pod_template),
        storage=scheduler_storage(),
        waits_before_stop=True,
    )
    strategy = rolling(max_surge=1, max_unavailable=0)
    template = pod_template(context, service)
    return deployment(context, "scheduler", replicas=wanted.replicas, strategy=strategy, template=template)


def _scheduler_environment(context: Context, drain_seconds: int) -> list[Variable]:
    tasks, scheduling = context.spec.tasks, context.spec.scheduling
    targets = {task.name: task.slo.model_dump(exclude_none=True) for task in tasks}
    slos = {name: slo for name, slo in targets.items() if slo}
    examples = {task.name: task.examples for task in tasks if task.examples}
    return [
        *shared_environment(context, "scheduler", drain_seconds=drain_seconds),
        variable("EMOE_SCHEDULER_LOADER", address(context.resource, "loader")),
        variable("EMOE_SCHEDULER_MODEL_NAME", context.resource.name),
        variable("EMOE_SCHEDULER_STATE_DIR", STATE_PATH),
        variable("EMOE_SCHEDULER_POLICY", scheduling.policy),
        *([variable("EMOE_SCHEDULER_PLACEMENT", scheduling.placement)] if scheduling.placement else []),
        variable("EMOE_SCHEDULER_MAX_QUEUED_REQUESTS", scheduling.max_queued_requests),
        *([variable("EMOE_SCHEDULER_EXTRA_TASKS", to_json([task.name for task in tasks]))] if tasks else []),
        *([variable("EMOE_SCHEDULER_TASK_SLOS", to_json(slos))] if slos else []),
        *([variable("EMOE_SCHEDULER_TASK_EXAMPLES", to_json(examples))] if examples else []),
        *([] if scheduling.identify_tasks else [variable("EMOE_SCHEDULER_IDENTIFY_TASKS", "false")]),
    ]


def worker_deployment(context: Context, resources: Resources, plan: WorkerPlan) -> Manifest:
    """`resources`: what is asked for in all, wherever it was said."""
    wanted, drain_seconds = context.spec.workers, context.spec.rollout.drain_seconds
    service = Service(
        component="worker",
        image=context.images.worker,
        environment=_worker_environment(context, drain_seconds, plan),
        resources=worker_resources(resources, context.settings.worker_cpu_request, plan.worker_memory_bytes),
        drain_seconds=drain_seconds,
        user_template=_template(wanted.pod_template),
        storage=worker_storage(context),
        waits_before_stop=True,
    )
    strategy = worker_strategy(context.spec.rollout, on_gpu=resources.asks_for_gpu)
    template = pod_template(context, service)
    return deployment(context, "worker", replicas=wanted.replicas, strategy=strategy, template=template)


def _worker_environment(context: Context, drain_seconds: int, plan: WorkerPlan) -> list[Variable]:
    workers, experts = context.spec.workers, context.spec.experts
    return [
        *shared_environment(context, "worker", drain_seconds=drain_seconds),
        reference("EMOE_WORKER_ADVERTISE", f"$(POD_IP):{GRPC_PORT}"),
        reference("EMOE_WORKER_WORKER_ID", "$(POD_NAME)"),
        variable("EMOE_WORKER_LOADER", address(context.resource, "loader")),
        variable("EMOE_WORKER_PREDICTOR", address(context.resource, "predictor")),
        variable("EMOE_WORKER_EXPERT_MEMORY", AUTO if plan.is_left_to_worker else plan.resident_bytes),
        variable("EMOE_WORKER_MISS_POLICY", experts.miss_policy),
        *([variable("EMOE_WORKER_EVICTION", experts.eviction)] if experts.eviction else []),
        *(_pinned("WORKER", experts) if experts.miss_policy == "load" else []),
        variable("EMOE_WORKER_MAX_CONTEXT", workers.max_context),
        variable("EMOE_WORKER_MAX_CONCURRENCY", workers.max_concurrency),
        variable("EMOE_WORKER_CACHE_DIR", STATE_PATH),
    ]


def worker_resources(wanted: Resources, cpu_request: str, memory_bytes: int) -> dict[str, dict[str, str]]:
    """Memory's request is its limit: a worker fills what it plans, so nothing less would be true."""
    limits = {name: str(amount) for name, amount in wanted.limits.items()}
    requests = {name: str(amount) for name, amount in wanted.requests.items()}
    # A device is never shared: its request and its limit are one number, and the API server wants the limit.
    limits.update({name: amount for name, amount in requests.items() if "/" in name and name not in limits})
    limits.setdefault("memory", _at_least(wanted, memory_bytes))
    requests.setdefault("memory", limits["memory"])
    requests.setdefault("cpu", limits.get("cpu", cpu_request))
    return {"requests": requests, "limits": limits}


def _at_least(wanted: Resources, memory_bytes: int) -> str:
    request = wanted.requests.get("memory")
    return str(request) if request and request.num_bytes > memory_bytes else as_quantity(memory_bytes)


def worker_strategy(wanted: Rollout, *, on_gpu: bool) -> dict[str, Any]:
    """On GPUs none beyond the number: a newcomer would wait for a device that its predecessor holds."""
    surge, unavailable = (0, 1) if on_gpu else (1, 0)
    max_surge = _amount(wanted.max_surge, surge)
    max_unavailable = _amount(wanted.max_unavailable, unavailable)
    if _is_none(max_surge) and _is_none(max_unavailable):
        # One was set to nothing and the other's default is nothing: the one that was not set gives way.
        max_surge, max_unavailable = (1, 0) if wanted.max_surge is None else (0, 1)
    return rolling(max_surge=max_surge, max_unavailable=max_unavailable)


def _amount(wanted: CountOrPercent | None, default: int) -> int | str:
    if wanted is None:
        return default
    amount = wanted.to_manifest()
    return amount if isinstance(amount, int) else str(amount)


def _is_none(amount: int | str) -> bool:
    return amount in (0, "0%")


def _resources(wanted: Resources, defaults: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Ours where the resource says nothing at all; half of each could contradict itself."""
    asked = wanted.to_dict()
    return {key: value for key, value in asked.items() if value} or {
        key: dict(value) for key, value in defaults.items()
    }


def _template(template: PodTemplate | None) -> dict[str, Any]:
    if template is None:
        return {}
    metadata = {key: value for key, value in template.metadata.to_dict().items() if value}
    return {"metadata": metadata, "spec": template.spec}
