"""Where the model's files lie, for each kind of source and cache, and who sees them."""

from __future__ import annotations

from typing import Any

import pytest
from operator_cases import environment, main_container, plan, pod_spec

HUB = {"source": "hf://org/name"}


def volume(desired: Any, component: str, name: str) -> Any:
    return next((one for one in pod_spec(desired, component)["volumes"] if one["name"] == name), None)


def mount(desired: Any, component: str, name: str) -> Any:
    return next((one for one in main_container(desired, component)["volumeMounts"] if one["name"] == name), None)


@pytest.mark.parametrize(
    ("cache", "source", "shared"),
    [
        pytest.param(None, {"emptyDir": {}}, False, id="none"),
        pytest.param({"claimName": "models"}, {"persistentVolumeClaim": {"claimName": "models"}}, True, id="claim"),
        pytest.param({"size": "1Gi"}, {"persistentVolumeClaim": {"claimName": "tiny-cache"}}, False, id="size"),
        pytest.param(
            {"size": "1Gi", "accessMode": "ReadWriteMany"},
            {"persistentVolumeClaim": {"claimName": "tiny-cache"}},
            True,
            id="size for many nodes",
        ),
        pytest.param(
            {"hostPath": "/srv/models/a"},
            {"hostPath": {"path": "/srv/models/a", "type": "DirectoryOrCreate"}},
            True,
            id="node folder",
        ),
    ],
)
def test_the_loader_fetches_into_its_cache_and_workers_read_one_that_all_nodes_see(
    cache: dict[str, Any] | None, source: dict[str, Any], shared: bool
) -> None:
    desired = plan({"model": HUB, **({"cache": cache} if cache else {})})
    assert volume(desired, "loader", "model-cache") == {"name": "model-cache", **source}
    assert mount(desired, "loader", "model-cache") == {"name": "model-cache", "mountPath": "/var/cache/emoe"}
    seen = {"name": "model-cache", "mountPath": "/var/cache/emoe", "readOnly": True} if shared else None
    assert mount(desired, "worker", "model-cache") == seen
    assert environment(desired, "loader")["EMOE_LOADER_MODEL_CACHE"] == "/var/cache/emoe"


def test_a_claim_that_holds_the_model_is_read_at_one_path_by_loader_and_workers() -> None:
    desired = plan({"model": {"source": "pvc://models/olmoe/v1"}})
    for component in ("loader", "worker"):
        assert volume(desired, component, "model-source")["persistentVolumeClaim"] == {"claimName": "models"}
        assert mount(desired, component, "model-source")["mountPath"] == "/var/lib/emoe-claims/models"
        assert mount(desired, component, "model-source")["readOnly"] is True
    assert environment(desired, "loader")["EMOE_LOADER_SOURCE"] == "/var/lib/emoe-claims/models/olmoe/v1"


def test_the_shipped_model_needs_no_claim_even_if_one_is_offered() -> None:
    desired = plan({"model": {"source": "demo://"}, "cache": {"size": "1Gi"}})
    assert environment(desired, "loader")["EMOE_LOADER_SOURCE"] == "demo://"
    assert not [one for one in desired.children if one["kind"] == "PersistentVolumeClaim"]


@pytest.mark.parametrize(("retain", "owners"), [(True, 0), (False, 1)], ids=["retained", "not retained"])
def test_a_retained_cache_has_no_owner_to_be_deleted_with(retain: bool, owners: int) -> None:
    desired = plan({"model": HUB, "cache": {"size": "20Gi", "retain": retain}})
    claim = desired.child("PersistentVolumeClaim", "tiny-cache")
    assert claim is not None
    assert len(claim["metadata"].get("ownerReferences", [])) == owners
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}}


def test_the_predictors_learning_goes_to_its_claim_and_with_the_resource() -> None:
    desired = plan({"services": {"predictor": {"storage": {"size": "1Gi", "storageClassName": "fast"}}}})
    claim = desired.child("PersistentVolumeClaim", "tiny-predictor")
    assert claim is not None
    assert claim["metadata"]["ownerReferences"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert volume(desired, "predictor", "state")["persistentVolumeClaim"] == {"claimName": "tiny-predictor"}
    assert environment(desired, "predictor")["EMOE_PREDICTOR_STATE_DIR"] == "/var/lib/emoe"


def test_workers_write_to_a_folder_of_their_own() -> None:
    desired = plan({"model": HUB, "cache": {"claimName": "models"}})
    folder = environment(desired, "worker")["EMOE_WORKER_CACHE_DIR"]
    assert mount(desired, "worker", "state") == {"name": "state", "mountPath": folder}
    assert volume(desired, "worker", "state") == {"name": "state", "emptyDir": {}}


def test_schedulers_keep_their_estimates_over_a_containers_restart() -> None:
    desired = plan({})
    folder = environment(desired, "scheduler")["EMOE_SCHEDULER_STATE_DIR"]
    assert mount(desired, "scheduler", "state") == {"name": "state", "mountPath": folder}
    assert volume(desired, "scheduler", "state") == {"name": "state", "emptyDir": {}}
