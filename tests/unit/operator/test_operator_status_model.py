"""ModelReady and `status.model`, from the first byte to the last, and through a loader's restart."""

from __future__ import annotations

from typing import Any

import pytest
from operator_cases import (
    COMPONENTS,
    MIB,
    container_status,
    model_ready,
    observed,
    plan,
    pod,
    pods_but,
    resource,
    settings,
    standing,
)

from emoe_operator.observed import ModelFailure, ModelPhase, ModelView, Observed
from emoe_operator.plan import plan_children
from emoe_operator.status import build_status

FETCHING = ModelView(
    phase=ModelPhase.FETCHING,
    revision="c0ffee",
    num_bytes_done=25 * MIB,
    num_bytes_total=100 * MIB,
    bytes_per_second=MIB,
)


def status_of(seen: Observed, before: dict[str, Any] | None = None) -> dict[str, Any]:
    asked = resource(status=before or {})
    return build_status(asked, seen, plan_children(asked, seen, settings()), (), settings())


def condition(status: dict[str, Any], kind: str = "ModelReady") -> tuple[str, str, str]:
    found = next(one for one in status["conditions"] if one["type"] == kind)
    return found["status"], found["reason"], found["message"]


def failed(reason: str, *, permanent: bool = True) -> ModelView:
    return ModelView(
        phase=ModelPhase.FAILED, failure=ModelFailure(reason=reason, message="it says", permanent=permanent)
    )


PHASES = {
    "resolving": (ModelView(phase=ModelPhase.RESOLVING), "False", "ModelResolving", "which files"),
    "fetching": (
        FETCHING,
        "False",
        "ModelFetching",
        "25.0 MiB of 100 MiB fetched (25%), 1.0 MiB/s, about 1 min 30 s left",
    ),
    "verifying": (ModelView(phase=ModelPhase.VERIFYING, num_bytes_total=MIB), "False", "ModelVerifying", "1.0 MiB"),
    "ready": (model_ready(), "True", "ModelReady", "olmoe, abc123, 74.0 MiB"),
    "not found": (failed("NotFound"), "False", "ModelNotFound", "it says; check spec.model.source"),
    "unauthorized": (failed("Unauthorized"), "False", "ModelUnauthorized", "secretRef"),
    "unreachable": (failed("Unreachable", permanent=False), "False", "ModelUnreachable", "tried again"),
    "corrupt": (failed("Corrupt"), "False", "ModelCorrupt", "seldom"),
    "unsupported": (failed("Unsupported"), "False", "ModelUnsupported", "family"),
    "no space": (failed("NoSpace", permanent=False), "False", "ModelNoSpace", "spec.cache"),
    "invalid source": (failed("InvalidSource"), "False", "ModelInvalidSource", "new resource"),
    "failed without a word": (ModelView(phase=ModelPhase.FAILED), "False", "ModelFailed", "did not say"),
}


@pytest.mark.parametrize(("view", "truth", "reason", "said"), PHASES.values(), ids=PHASES.keys())
def test_each_phase_has_its_reason(view: ModelView, truth: str, reason: str, said: str) -> None:
    found = condition(status_of(observed(model=view)))
    assert found[:2] == (truth, reason)
    assert said in found[2]


def test_progress_is_told_in_bytes_and_seconds() -> None:
    model = status_of(observed(model=FETCHING))["model"]
    assert (model["bytesDone"], model["bytesTotal"], model["etaSeconds"]) == (25 * MIB, 100 * MIB, 90)
    assert model["revision"] == "c0ffee"


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_no_arrival_is_promised_while_nothing_comes(rate: float) -> None:
    stopped = ModelView(phase=ModelPhase.FETCHING, num_bytes_done=1, num_bytes_total=MIB, bytes_per_second=rate)
    status = status_of(observed(model=stopped))
    assert "etaSeconds" not in status["model"]
    assert "nothing comes" in condition(status)[2]


def test_what_a_ready_model_is_stands_in_the_status() -> None:
    model = status_of(observed())["model"]
    assert (model["digest"], model["family"]) == ("sha256-0123", "olmoe")
    assert model["geometry"]["moeLayers"] == [0, 1, 2, 3]
    assert model["geometry"]["expertBytes"] == MIB


def test_a_loader_that_starts_again_takes_nothing_back() -> None:
    before = status_of(observed())
    after = status_of(observed(model=ModelView(phase=ModelPhase.RESOLVING)), before)
    assert after["model"]["geometry"] == before["model"]["geometry"]
    assert (after["model"]["revision"], after["model"]["digest"]) == ("abc123", "sha256-0123")
    assert after["plan"] == before["plan"]


def test_a_model_stays_ready_while_only_the_operator_starts_again() -> None:
    before = status_of(observed())
    unheard = observed(model=None, children=standing(plan()), pods=tuple(pod(one) for one in COMPONENTS))
    assert condition(status_of(unheard, before))[:2] == ("True", "ModelReady")


def test_a_loader_that_is_not_up_makes_the_model_unknown() -> None:
    assert condition(status_of(observed(model=None)))[:2] == ("Unknown", "LoaderNotAnswering")


def test_a_loader_that_cannot_start_is_why_the_model_is_unknown() -> None:
    state = {"waiting": {"reason": "ErrImagePull", "message": "denied"}}
    loader = pod("loader", ready=False, containerStatuses=[container_status(state=state)])
    status = status_of(observed(model=None, children=standing(plan()), pods=pods_but("loader", loader)))
    assert condition(status)[:2] == ("Unknown", "ImagePullFailed")
    assert condition(status, "Ready")[:2] == ("False", "ImagePullFailed")
