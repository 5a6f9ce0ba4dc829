"""The API as people meet it: what is refused and with which words, what is filled in, what `kubectl explain` says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import kube as k
import pytest
from refused_cases import ACCEPTED, CHANGES, REFUSED, Case, apply_patch

pytestmark = pytest.mark.cluster


def placed(kube: k.Kube, body: k.Body) -> k.Body:
    return {**body, "metadata": {**body["metadata"], "namespace": kube.namespace}}


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in REFUSED])
def test_a_bad_resource_is_refused_with_words_that_help(kube: k.Kube, case: Case) -> None:
    message = kube.refusal(placed(kube, apply_patch(case.patch)))
    assert all(word in message for word in case.words), message


@pytest.mark.parametrize(("patch"), [pytest.param(patch, id=id) for id, patch in ACCEPTED])
def test_a_good_resource_is_taken(kube: k.Kube, patch: dict[str, Any]) -> None:
    kube.apply(placed(kube, apply_patch(patch)), options=("--dry-run=server",))


@pytest.fixture(scope="module")
def standing(kube: k.Kube) -> Iterator[k.Body]:
    """A suspended resource that changes are tried on."""
    body = placed(kube, apply_patch({"metadata": {"name": "standing"}}))
    kube.apply(body)
    yield body
    kube.delete("moed", "standing")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CHANGES])
def test_a_change_of_the_model_is_refused_with_a_way_out(kube: k.Kube, standing: k.Body, case: Case) -> None:
    message = kube.refusal(apply_patch(case.patch, standing))
    assert all(word in message for word in case.words), message


def test_a_misspelt_field_is_refused_by_name(kube: k.Kube) -> None:
    body = placed(kube, apply_patch({"spec": {"experts": {"memroy": "25%"}}}))
    assert "memroy" in kube.refusal(body)


def test_a_dry_run_shows_every_default(kube: k.Kube) -> None:
    body = placed(kube, k.demo("defaults"))
    del body["spec"]["experts"]
    shown = json.loads(kube.apply(body, options=("--dry-run=server", "--output=json")))["spec"]
    assert shown["experts"] == {
        "memory": "25%",
        "missPolicy": "reroute",
        "strategy": "emoe",
        "refreshIntervalPrompts": 40,
        "planner": "global",
    } | {key: value for key, value in shown["experts"].items() if value in ([], None)}
    assert (shown["workers"]["replicas"], shown["workers"]["maxContext"]) == (1, 2048)
    assert shown["services"]["scheduler"]["replicas"] == 1
    assert (shown["service"]["type"], shown["service"]["port"]) == ("ClusterIP", 8000)
    assert shown["rollout"]["drainSeconds"] == 60
    assert shown["suspend"] is False


def test_a_resource_without_workers_can_be_scaled(kube: k.Kube) -> None:
    kube.apply(placed(kube, k.demo("scaled", suspend=True)))
    kube.kubectl("scale", "moed/scaled", "--replicas=3")
    assert kube.get("moed", "scaled")["spec"]["workers"]["replicas"] == 3
    kube.delete("moed", "scaled")


@pytest.mark.parametrize("path", ["", ".spec", ".spec.experts", ".spec.model.source", ".status", ".status.plan"])
def test_explain_describes_every_field_that_it_lists(kube: k.Kube, path: str) -> None:
    told = kube.kubectl("explain", f"moedeployments{path}")
    assert "<no description>" not in told.lower()
    assert "DESCRIPTION:" in told


def test_the_short_name_and_the_category_are_known(kube: k.Kube) -> None:
    listed = kube.kubectl("api-resources", "--api-group=emoe.dev", "--no-headers").split()
    assert {"moedeployments", "moed", "true", "MoEDeployment"} <= set(listed)


def test_the_status_cannot_be_set_by_applying(kube: k.Kube, standing: k.Body) -> None:
    kube.apply({**standing, "status": {"address": "elsewhere:1"}})
    assert kube.get("moed", "standing").get("status", {}).get("address") != "elsewhere:1"
