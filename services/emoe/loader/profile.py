"""The task profile beside the loader's model, as it is passed on: whole to schedulers, with what was trained to the
predictor.

Read once, when the model is opened. One that is damaged or was made from other weights must not stop the serving: it is
left out, and the log says what to do.
"""

from __future__ import annotations

import dataclasses
import logging

from emoe.core.errors import CheckpointError
from emoe.core.sequence_predictor import PREFIX
from emoe.runtime.parts import MAX_PROFILE_BYTES
from emoe.store.learned import read_arrays, write_arrays
from emoe.store.profile import LEARNED_FILE, PROFILE_FILE, Profile, read_learned, read_profile, render_profile
from emoe.store.store import ExpertStore

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OpenProfile:
    """`profile`: emoe-profile.json, rendered anew. `sequence`: of the learned arrays the predictor's own, empty without
    any."""

    num_tasks: int
    profile: bytes
    sequence: bytes


def open_profile(store: ExpertStore) -> OpenProfile | None:
    """Blocking. None where there is none, or none that can be used: then everybody begins from nothing."""
    try:
        profile = read_profile(store.folder, digest=store.digest, fingerprint=store.fingerprint())
        if profile is None:
            _log.info(
                "no %s lies beside the model: demand is learnt from nothing; `emoe profile` makes one", PROFILE_FILE
            )
            return None
        opened = _opened(store, profile)
    except CheckpointError as error:
        _log.error("the model is served without a task profile: %s", error)
        return None
    _log.info("%s has %d tasks", store.folder / PROFILE_FILE, opened.num_tasks)
    return opened


def _opened(store: ExpertStore, profile: Profile) -> OpenProfile:
    _check_grid(store, profile)
    rendered = render_profile(profile)
    if len(rendered) > MAX_PROFILE_BYTES:
        raise CheckpointError(
            f"{store.folder / PROFILE_FILE} has {len(rendered)} bytes, more than the {MAX_PROFILE_BYTES} that are sent "
            "on; make one of fewer tasks with `emoe profile`"
        )
    learned = read_learned(store.folder, profile)
    arrays = read_arrays(learned, name=str(store.folder / LEARNED_FILE)) if learned else {}
    own = {name: array for name, array in arrays.items() if name.startswith(PREFIX)}
    return OpenProfile(num_tasks=len(profile.tasks), profile=rendered, sequence=write_arrays(own) if own else b"")


def _check_grid(store: ExpertStore, profile: Profile) -> None:
    if (profile.shape, profile.moe_layers) != (store.grid.shape, store.grid.moe_layers):
        raise CheckpointError(
            f"{store.folder / PROFILE_FILE} is of {profile.shape} layers and experts, with experts in layers "
            f"{profile.moe_layers}; the model has {store.grid}: make it anew with `emoe profile`, or remove it"
        )
