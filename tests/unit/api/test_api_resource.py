from __future__ import annotations

import json
from typing import Any, get_args

from cluster.refused_cases import VALID, apply_patch
from hypothesis import given
from hypothesis import strategies as st

from emoe.api.names import child_name
from emoe.api.pods import Resources
from emoe.api.quantity import Memory, Quantity
from emoe.api.resource import MoEDeployment
from emoe.api.source import ModelSource
from emoe.api.spec import Experts
from emoe.api.status import Status
from emoe.core.planning import PLANNERS


def test_everything_but_the_model_has_a_default() -> None:
    spec = MoEDeployment.parse({"metadata": {"name": "tiny"}, "spec": {"model": {"source": "demo://"}}}).spec
    assert (spec.experts.memory, spec.experts.miss_policy, spec.experts.refresh_interval_prompts) == (
        Memory("25%"),
        "reroute",
        40,
    )
    assert (spec.workers.replicas, spec.workers.max_context, spec.workers.max_concurrency) == (1, 2048, 8)
    assert (spec.service.type, spec.service.port, spec.rollout.drain_seconds) == ("ClusterIP", 8000, 60)
    assert spec.cache is None
    assert not spec.suspend


def test_nulls_count_as_left_out_but_in_a_pod_template() -> None:
    template = {"spec": {"nodeName": None, "containers": [{"name": "main"}]}}
    body = {**VALID, "spec": {"model": {"source": "demo://", "revision": None}, "workers": None, "cache": None}}
    assert MoEDeployment.parse(body).spec.workers.replicas == 1
    workers = MoEDeployment.parse(apply_patch({"spec": {"workers": {"podTemplate": template}}})).spec.workers
    assert workers.pod_template is not None
    assert workers.pod_template.spec == template["spec"]


def test_what_is_parsed_is_written_back_as_yaml_has_it() -> None:
    patch: dict[str, Any] = {
        "experts": {"missPolicy": "load", "eviction": "demand", "pinned": [{"layer": 1, "experts": [0, 2]}]},
        "workers": {"resources": {"limits": {"memory": "8Gi", "cpu": 2}}},
        "services": {"predictor": {"storage": {"size": "1Gi", "storageClassName": "fast"}}},
    }
    written = MoEDeployment.parse(apply_patch({"spec": patch})).to_dict()
    assert written["spec"]["experts"]["pinned"] == [{"layer": 1, "experts": [0, 2]}]
    assert written["spec"]["workers"]["resources"]["limits"] == {"memory": "8Gi", "cpu": "2"}
    assert MoEDeployment.parse(json.loads(json.dumps(written))).to_dict() == written


def test_a_source_is_taken_apart() -> None:
    def source(text: str) -> ModelSource:
        return MoEDeployment.parse(apply_patch({"spec": {"model": {"source": text}}})).spec.model.parsed_source

    assert source("pvc://models/a/b/") == ModelSource(scheme="pvc", root="models", path="a/b")
    assert source("pvc://models").is_claim
    assert source("hf://allenai/OLMoE") == ModelSource(scheme="hf", root="allenai", path="OLMoE")
    assert source("demo://") == ModelSource(scheme="demo")


def test_a_status_of_another_version_is_read_as_far_as_it_goes() -> None:
    status = {"observedGeneration": 3, "invented": True, "model": {"revision": "abc", "colour": "red"}}
    read = MoEDeployment.parse({**VALID, "status": status}).status
    assert read.observed_generation == 3
    assert read.model is not None
    assert read.model.revision == "abc"


def test_a_status_that_cannot_be_read_counts_as_none() -> None:
    assert MoEDeployment.parse({**VALID, "status": {"observedGeneration": "three"}}).status == Status()


def test_a_condition_is_found_by_its_type() -> None:
    ready = {"type": "Ready", "status": "False", "reason": "Loading", "lastTransitionTime": "2030-01-01T00:00:00Z"}
    status = MoEDeployment.parse({**VALID, "status": {"conditions": [ready]}}).status
    condition = status.condition("Ready")
    assert condition is not None
    assert condition.reason == "Loading"
    assert status.condition("Available") is None


def test_a_gpu_is_recognised_by_its_resource_name() -> None:
    def asks(**limits: str) -> bool:
        return Resources(limits={name: Quantity(amount) for name, amount in limits.items()}).asks_for_gpu

    assert asks(**{"nvidia.com/gpu": "1"})
    assert asks(**{"nvidia.com/mig-1g.10gb": "1"})
    assert not asks(**{"nvidia.com/gpu": "0"})
    assert not asks(memory="8Gi", cpu="4")


@given(name=st.from_regex(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True))
def test_every_name_that_is_taken_leaves_room_for_a_childs(name: str) -> None:
    assert MoEDeployment.parse(apply_patch({"metadata": {"name": name}})).metadata.name == name
    assert len(child_name(name, "scheduler")) + len("-1234567890-12345") <= 253
    assert len(child_name(name, "scheduler")) <= 63


def test_every_planner_that_there_is_can_be_asked_for() -> None:
    assert set(get_args(Experts.model_fields["planner"].annotation)) == set(PLANNERS)
