"""What is removed: what was made for this resource and is wanted no more, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from operator_cases import observed, plan, resource, settings, standing

from emoe_operator.plan import plan_children

WIDE = {
    "model": {"source": "hf://org/name"},
    "workers": {"replicas": 2},
    "cache": {"size": "1Gi", "retain": False},
    "services": {"predictor": {"storage": {"size": "1Gi"}}},
}
NARROW = {"model": {"source": "hf://org/name"}}


def pruned(spec: dict[str, Any], children: Any, **fields: Any) -> set[tuple[str, str]]:
    return set(plan_children(resource(spec), observed(children=children, **fields), settings()).prune)


def test_nothing_is_removed_when_everything_is_wanted() -> None:
    assert pruned(WIDE, standing(plan(WIDE))) == set()


def test_what_a_spec_no_longer_asks_for_is_removed() -> None:
    assert pruned(NARROW, standing(plan(WIDE))) == {
        ("PersistentVolumeClaim", "tiny-cache"),
        ("PersistentVolumeClaim", "tiny-predictor"),
        ("PodDisruptionBudget", "tiny-worker"),
    }


def test_a_retained_cache_is_never_removed() -> None:
    retained = {**WIDE, "cache": {"size": "1Gi", "retain": True}}
    assert ("PersistentVolumeClaim", "tiny-cache") not in pruned(NARROW, standing(plan(retained)))


def test_workers_are_not_removed_because_their_model_is_not_known() -> None:
    found = pruned(NARROW, standing(plan(WIDE)), model=None)
    assert not [name for _, name in found if name == "tiny-worker"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"ownerReferences": [{"controller": True, "uid": "another"}]}, id="of an earlier resource"),
        pytest.param({"ownerReferences": []}, id="of nobody"),
        pytest.param({"ownerReferences": [{"uid": resource().uid}]}, id="ours to own and another's to control"),
        pytest.param({"deletionTimestamp": "2026-01-01T00:00:00Z"}, id="already going"),
    ],
)
def test_what_is_not_ours_to_remove_is_left(change: dict[str, Any]) -> None:
    children = standing(plan(WIDE))
    children["PersistentVolumeClaim", "tiny-predictor"]["metadata"].update(change)  # type: ignore[index]
    assert ("PersistentVolumeClaim", "tiny-predictor") not in pruned(NARROW, children)


def test_policies_go_when_the_operator_is_to_make_none() -> None:
    children = standing(plan())
    desired = plan_children(resource(), observed(children=children), settings(network_policies=False))
    services = ("loader", "predictor", "scheduler", "worker")
    assert desired.prune == tuple(("NetworkPolicy", f"tiny-{one}") for one in services)
