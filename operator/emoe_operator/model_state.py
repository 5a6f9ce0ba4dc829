"""ModelReady, and `status.model`: how far the loader is with the model, and what it turned out to be."""

from __future__ import annotations

from emoe.api.status import ModelStatus
from emoe_operator.conditions import Verdict, fails, holds, unknown
from emoe_operator.observed import ModelFailure, ModelPhase, ModelView
from emoe_operator.recorded import describe_geometry
from emoe_operator.situation import Situation
from emoe_operator.wording import one_line, round_seconds, say_bytes, say_seconds

_HINTS = {
    "NotFound": "check spec.model.source and revision",
    "Unauthorized": "name a secret with credentials in spec.model.secretRef",
    "Unreachable": "check the network, the proxy and the endpoint that the loader is given",
    "Corrupt": "publish the files again, or name another revision in a new resource",
    "Unsupported": "choose a model of a family that emoe serves",
    "NoSpace": "give spec.cache more room",
    "InvalidSource": "make a new resource with another spec.model.source",
}


def judge_model(situation: Situation) -> Verdict:
    view = situation.observed.model
    if view is None:
        return _unheard(situation)
    if view.phase is ModelPhase.FAILED:
        return _failed(view.failure or ModelFailure(reason="Failed", message="the loader did not say why"))
    if view.phase is ModelPhase.READY:
        return _ready(describe_model(situation))
    return _under_way(view)


def _unheard(situation: Situation) -> Verdict:
    """A loader whose pod is ready has the model, whether or not the operator hears it just now."""
    if situation.desired.suspended:
        return unknown("Suspended", "the loader is suspended; set spec.suspend to false to run it")
    if situation.num_ready("loader"):
        return _ready(describe_model(situation))
    if troubles := situation.troubles("loader"):
        return unknown(troubles[0].reason, troubles[0].message, stuck=troubles[0].stuck)
    return unknown("LoaderNotAnswering", "the loader is not up yet, or cannot be reached by the operator")


def _ready(model: ModelStatus | None) -> Verdict:
    known = [part for part in (model.family, model.revision) if part] if model else []
    size = [say_bytes(model.bytes_total)] if model and model.bytes_total else []
    return holds("ModelReady", f"the model is fetched and verified ({', '.join([*known, *size]) or 'no details'})")


def _failed(failure: ModelFailure) -> Verdict:
    said = one_line(failure.message)
    hint = _HINTS.get(failure.reason)
    then = "it is tried again, seldom" if failure.permanent else "it is tried again"
    return fails(f"Model{failure.reason}", "; ".join(filter(None, (said, hint, then))), stuck=failure.permanent)


def _under_way(view: ModelView) -> Verdict:
    if view.phase is ModelPhase.RESOLVING:
        return fails("ModelResolving", "the loader finds out which files the source means")
    if view.phase is ModelPhase.VERIFYING:
        return fails("ModelVerifying", f"the files are here and are checked ({say_bytes(view.num_bytes_total)})")
    return fails("ModelFetching", _progress(view))


def _progress(view: ModelView) -> str:
    if not view.num_bytes_total:
        return f"{say_bytes(view.num_bytes_done)} fetched"
    share = 100 * view.num_bytes_done // view.num_bytes_total
    text = f"{say_bytes(view.num_bytes_done)} of {say_bytes(view.num_bytes_total)} fetched ({share}%)"
    eta = _eta_seconds(view)
    rate = f", {say_bytes(view.bytes_per_second)}/s" if view.bytes_per_second > 0 else ", nothing comes just now"
    return text + rate + (f", about {say_seconds(eta)} left" if eta is not None else "")


def _eta_seconds(view: ModelView) -> float | None:
    if view.phase is not ModelPhase.FETCHING or view.bytes_per_second <= 0 or not view.num_bytes_total:
        return None
    return max(0, view.num_bytes_total - view.num_bytes_done) / view.bytes_per_second


def describe_model(situation: Situation) -> ModelStatus | None:
    """What the loader says over what it said last: a loader that starts again has nothing to say at first."""
    view, geometry, old = situation.observed.model, situation.desired.geometry, situation.old.model
    if view is None and geometry is None:
        return old
    before = old or ModelStatus()
    eta = _eta_seconds(view) if view else None
    return ModelStatus(
        revision=(view.revision if view else "") or before.revision,
        digest=geometry.digest if geometry else before.digest,
        family=geometry.family if geometry else before.family,
        bytes_done=view.num_bytes_done if view else before.bytes_done,
        bytes_total=(view.num_bytes_total if view else 0) or before.bytes_total,
        eta_seconds=None if eta is None else round_seconds(eta),
        geometry=describe_geometry(geometry) if geometry else before.geometry,
    )
