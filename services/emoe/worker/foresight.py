"""What a worker knows of how requests go on: the files beside its model, read once at the start.

Without them, or with files of other weights, a request's own frequencies are all there is, and serving goes on.
"""

from __future__ import annotations

import logging

from emoe.core.errors import CheckpointError
from emoe.core.own_routing import OwnRoutingRegression
from emoe.store.learned import read_arrays
from emoe.store.profile import LEARNED_FILE, Profile, read_learned, read_profile
from emoe.store.store import ExpertStore
from emoe.worker.running_demand import Foresight, OwnFrequencies, RunningForecast

log = logging.getLogger(__name__)


def open_forecast(store: ExpertStore) -> RunningForecast:
    """From the profile beside the model; from the requests alone where there is none, or one that cannot be used."""
    profile, foresight = None, None
    try:
        profile = read_profile(store.folder, digest=store.digest, fingerprint=store.fingerprint())
        if profile is not None:
            foresight = _read_foresight(store, profile)
    except CheckpointError as error:
        log.warning("running requests are foretold from their own frequencies: %s", error)
    return RunningForecast(
        store.grid.shape, foresight or OwnFrequencies(), None if profile is None else profile.sensitive
    )


def _read_foresight(store: ExpertStore, profile: Profile) -> Foresight | None:
    """None where the profile has learnt nothing of this. CheckpointError when it does not fit."""
    learned = read_learned(store.folder, profile)
    if learned is None:
        return None
    path = store.folder / LEARNED_FILE
    try:
        regression = OwnRoutingRegression.from_arrays(read_arrays(learned, name=str(path)))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; make it anew with `emoe profile`") from error
    if regression is not None and regression.shape != store.grid.shape:
        raise CheckpointError(f"{path}: learnt of a grid of {regression.shape}, this model has {store.grid.shape}")
    return regression
