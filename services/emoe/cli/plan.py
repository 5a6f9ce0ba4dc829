"""`emoe plan`: what a MoEDeployment would need, before there is a cluster to ask.

The file is refused for what the API server would refuse it for, and planned by the rule that the operator plans by.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from emoe.api.names import KIND
from emoe.api.resource import MoEDeployment
from emoe.api.wishes import worker_wishes
from emoe.cli.failures import CommandError
from emoe.cli.footprint import used_calibration_bytes
from emoe.cli.hit_rate import ExpectedHits, expect_hits
from emoe.cli.paths import resolve_model
from emoe.cli.resource_file import read_documents
from emoe.core.capacity import ModelGeometry, WorkerPlan, WorkerWishes, plan_worker
from emoe.core.errors import FieldProblem, InvalidResourceError
from emoe.core.quantity import parse_quantity
from emoe.store.footprint import geometry_of, measure
from emoe.store.store import ExpertStore


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """What planning looked at. `kv_bytes_per_token` is 0 when the configuration does not say."""

    folder: str
    family: str
    expert_format: str
    """As the experts are published and held in slots: bf16 and the like, or the name of a quantisation."""
    geometry: ModelGeometry


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedResource:
    """`model`, `plan` and what follows are None where the file is refused or no model is given."""

    name: str
    problems: tuple[FieldProblem, ...] = ()
    resource: MoEDeployment | None = None
    model: PlannedModel | None = None
    plan: WorkerPlan | None = None
    hits: ExpectedHits | None = None
    load_seconds: float | None = None
    bytes_per_second: float = 0.0

    @property
    def is_well(self) -> bool:
        return not self.problems and (self.plan is None or self.plan.fits)


def print_plans(file: str, model: Path | None, *, bandwidth: str, as_json: bool) -> int:
    """The command's exit status: 0 when every resource of the file is valid and what is known of it fits."""
    bytes_per_second = _parse_bandwidth(bandwidth)
    bodies = [body for body in _read(file) if body.get("kind") == KIND]
    if not bodies:
        raise CommandError(f"{file} has no {KIND}; give a file that kubectl apply would take, with kind: {KIND}")
    planned = [plan_resource(body, model, bytes_per_second=bytes_per_second) for body in bodies]
    for one in planned:
        if as_json:
            print(json.dumps(describe(one)))
        else:
            from emoe.cli.plan_table import print_plan

            print_plan(one)
    return 0 if all(one.is_well for one in planned) else 1


def plan_resource(body: dict[str, Any], folder: Path | None, *, bytes_per_second: float) -> PlannedResource:
    metadata = body.get("metadata")
    name = str(metadata.get("name", "")) if isinstance(metadata, dict) else ""
    unversioned = (
        () if "apiVersion" in body else (FieldProblem(path="apiVersion", message="is required; give it a value"),)
    )
    try:
        resource = MoEDeployment.parse(body)
    except InvalidResourceError as error:
        return PlannedResource(name=name, problems=unversioned + error.problems)
    if unversioned:
        return PlannedResource(name=name, problems=unversioned)
    if folder is None and resource.spec.model.parsed_source.scheme != "demo":
        return PlannedResource(name=name, resource=resource)
    return _plan_with_model(resource, resolve_model(folder), bytes_per_second)


def _plan_with_model(resource: MoEDeployment, folder: Path, bytes_per_second: float) -> PlannedResource:
    wishes = worker_wishes(resource.spec.experts, resource.spec.workers)
    with ExpertStore.open(folder) as store:
        geometry = geometry_of(store, calibration_bytes=used_calibration_bytes(store))
        model = PlannedModel(
            folder=str(folder), family=store.family, expert_format=measure(store).expert_format, geometry=geometry
        )
        plan = plan_worker(model.geometry, wishes)
        hits = _expect(store, plan, wishes, planner=resource.spec.experts.planner)
    return PlannedResource(
        name=resource.metadata.name,
        resource=resource,
        model=model,
        plan=plan,
        hits=hits,
        load_seconds=plan.load_seconds(bytes_per_second=bytes_per_second),
        bytes_per_second=bytes_per_second,
    )


def _expect(store: ExpertStore, plan: WorkerPlan, wishes: WorkerWishes, *, planner: str) -> ExpectedHits | None:
    if not plan.fits or plan.is_left_to_worker or wishes.miss_policy == "load":
        return None
    return expect_hits(store, num_slots=plan.slots - plan.staging, planner=planner)


def _read(file: str) -> list[dict[str, Any]]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file} cannot be read ({error}); give a file of YAML or JSON") from error
    return read_documents(text, file=file)


def _parse_bandwidth(text: str) -> float:
    try:
        value = parse_quantity(text)
    except ValueError as error:
        raise CommandError(f"--bandwidth: {error}") from error
    if value <= 0:
        raise CommandError(f"--bandwidth: {text} bytes a second bring nothing; give more than 0, such as 300M")
    return float(value)


def describe(planned: PlannedResource) -> dict[str, Any]:
    """For programs."""
    plan, model, hits = planned.plan, planned.model, planned.hits
    shape = None
    if model:
        geometry = model.geometry
        shape = {
            "folder": model.folder,
            "family": model.family,
            "expert_format": model.expert_format,
            "base_bytes": geometry.base_bytes,
            "kv_bytes_per_token": geometry.kv_bytes_per_token or None,
            "max_context": geometry.max_context or None,
        }
    return {
        "name": planned.name,
        "valid": not planned.problems,
        "problems": [dataclasses.asdict(problem) for problem in planned.problems],
        "model": shape,
        "plan": _describe_plan(plan) if plan else None,
        "expected_hits": dataclasses.asdict(hits) if hits else None,
        "load_seconds": planned.load_seconds,
        "bytes_per_second": planned.bytes_per_second if plan else None,
    }


def _describe_plan(plan: WorkerPlan) -> dict[str, Any]:
    unknown = {"slots": None, "resident_bytes": None} if plan.is_left_to_worker else {}
    return {**dataclasses.asdict(plan), **unknown, "fits": plan.fits}
