"""What an evaluation learns beforehand: from the profile beside the model, or from training rows that it runs itself.

A profile of other weights is not used; which of the two it was stands in the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from emoe.core.errors import CheckpointError, InvalidRequestError
from emoe.eval.harness import Rows
from emoe.eval.memory import PromptMemory, build_memory
from emoe.eval.profile import RoutingProfile, build_profile, routing_profile_from
from emoe.eval.recording import RowRouting, record_routing
from emoe.eval.scoring import ScoringModel
from emoe.store.profile import PROFILE_FILE, read_learned, read_profile
from emoe.store.store import ExpertStore

Say = Callable[[str], None]
NO_PROFILE = "none"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Learnt:
    """`source`: where the profile came from. `memory` is there where a strategy wants it."""

    profile: RoutingProfile
    source: str
    memory: PromptMemory | None = None


def load_profile(model: Path, profile: str | None, *, say: Say) -> Learnt | None:
    """None: make one. `profile`: a file, `NO_PROFILE`, or None for what is beside the model.

    CheckpointError when a file that was named does not fit; one that only lies there is passed over.
    """
    if profile == NO_PROFILE:
        return None
    path = model / PROFILE_FILE if profile is None else Path(profile)
    if path.name != PROFILE_FILE:
        raise InvalidRequestError(f"{path}: a profile's file is named {PROFILE_FILE}; name one, or {NO_PROFILE}")
    try:
        return _read(model, path)
    except CheckpointError as error:
        if profile is not None:
            raise
        say(f"{error}: going on without it, with training rows")
        return None


def _read(model: Path, path: Path) -> Learnt | None:
    with ExpertStore.open(model) as store:
        profile = read_profile(path.parent, digest=store.digest, fingerprint=store.fingerprint())
    if profile is None:
        if path.parent == model:
            return None
        raise CheckpointError(f"{path}: there is no such file")
    return Learnt(profile=routing_profile_from(profile, read_learned(path.parent, profile)), source=str(path))


def learn(model: ScoringModel, rows: Rows, loaded: Learnt | None, *, seed: int, wants_memory: bool, say: Say) -> Learnt:
    """From training rows, which run once; a profile that was loaded is kept."""
    encoded = [row for part in rows.values() for row in part]
    recorded: list[RowRouting] = []
    for part in record_routing(model, encoded):
        recorded += part
        say(f"training rows: {len(recorded)} of {len(encoded)}")
    made = loaded or Learnt(
        profile=build_profile(recorded, model.grid, seed=seed), source=f"made from {len(encoded)} training rows"
    )
    memory = build_memory(model, encoded, recorded, seed=seed) if wants_memory else None
    return dataclasses.replace(made, memory=memory)
