"""What a predictor takes from a model's profile: where each task's frequencies begin, and which layers matter to it.

Parses what the loader gives (`LoadProfile`): read as strictly as beside the model, and it must be of the model that was
named. Knows neither gRPC nor what else is known of the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging

import numpy as np
import numpy.typing as npt

from emoe.core.errors import CheckpointError, InvalidRequestError
from emoe.core.experts import ExpertGrid
from emoe.core.sequence_predictor import PREFIX, SequencePredictor
from emoe.predictor.contest import Beforehand
from emoe.store.learned import read_arrays
from emoe.store.profile import Profile, parse_profile

MAX_TASKS = 256

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenProfile:
    """As it came: emoe-profile.json, and the arrays trained with it, empty where there are none."""

    digest: str
    grid: ExpertGrid
    profile: bytes
    learned: bytes

    def sha256(self) -> str:
        """Tells whether the same was given before."""
        return hashlib.sha256(hashlib.sha256(self.profile).digest() + self.learned).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileUse:
    """The settings that matter to it. `sensitivity_threshold`: the profile's own if None; from 1 on, every layer
    counts."""

    with_sequence: bool = False
    sensitivity_threshold: float | None = None

    def parse(self, given: GivenProfile) -> Beforehand:
        """InvalidRequestError when it is no profile, or not of the model that it was given for."""
        profile = _parse_profile(given)
        return Beforehand(
            priors={task: measured.routed_frequencies for task, measured in profile.tasks.items()},
            sensitivity=sensitivity_of(profile, self.sensitivity_threshold),
            sequence=_sequence(given, profile) if self.with_sequence else None,
        )


def sensitivity_of(profile: Profile, threshold: float | None) -> dict[str, npt.NDArray[np.float64]]:
    """Task -> s [L] of eMoE's equation 1; no task where every layer counts: no similarity is above 1."""
    wanted = profile.sensitivity_threshold if threshold is None else threshold
    if wanted >= 1:
        return {}
    measured = dataclasses.replace(profile, sensitivity_threshold=wanted)
    return {task: measured.sensitive(task) for task in profile.tasks}


def _parse_profile(given: GivenProfile) -> Profile:
    digest, grid = given.digest, given.grid
    try:
        profile = parse_profile(given.profile)
    except ValueError as error:
        raise InvalidRequestError(f"the profile of model {digest}: {error}") from error
    if profile.digest != digest:
        raise InvalidRequestError(f"the profile was made from model {profile.digest}, not from {digest}")
    if (profile.shape, profile.moe_layers) != (grid.shape, grid.moe_layers):
        raise InvalidRequestError(
            f"the profile has {profile.shape} layers and experts, with experts in layers {profile.moe_layers}; "
            f"model {digest} has {grid}"
        )
    if len(profile.tasks) > MAX_TASKS:
        raise InvalidRequestError(f"the profile of model {digest} has {len(profile.tasks)} tasks; at most {MAX_TASKS}")
    return profile


def _sequence(given: GivenProfile, profile: Profile) -> SequencePredictor | None:
    try:
        arrays = read_arrays(given.learned) if given.learned else {}
        if any(name.startswith(PREFIX) for name in arrays):
            return SequencePredictor.from_arrays(arrays, profile.shape)
    except (CheckpointError, ValueError) as error:
        raise InvalidRequestError(f"what was trained with the profile of model {given.digest}: {error}") from error
    _log.warning(
        "model %s has no trained sequence predictor, so its tasks' frequencies answer; `emoe profile` trains one",
        given.digest[:12],
    )
    return None
