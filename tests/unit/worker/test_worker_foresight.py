"""What a worker takes from the files beside its model to foretell running requests, and what it does without."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from emoe.core.own_routing import SPAN_TOKENS, Array, OwnRoutingRegression
from emoe.store.learned import write_arrays
from emoe.store.profile import LEARNED_FILE, Lengths, Profile, Sensitivity, TaskProfile, write_profile
from emoe.store.store import ExpertStore
from emoe.worker.foresight import open_forecast
from emoe.worker.own_counts import OwnCounts
from emoe.worker.running_demand import RunningForecast, RunningRequest

Checkpoint = Callable[[str], Path]
GOES_ON_WITH = 5
LENGTHS = Lengths(mean=10, p50=10, p90=10, p99=10)


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("mixtral"), tmp_path / "model"))


def regression(shape: tuple[int, int]) -> OwnRoutingRegression:
    """Learnt from requests that, whatever they did, go on with one expert of each layer."""
    random = np.random.default_rng(0)
    spans = random.dirichlet(np.ones(shape[1]), size=(64, len(SPAN_TOKENS), shape[0])).astype(np.float32)
    futures = np.zeros((64, *shape), dtype=np.float32)
    futures[..., GOES_ON_WITH] = 1.0
    learned = OwnRoutingRegression()
    learned.fit(spans, futures, np.full(64, 64))
    return learned


def write(
    folder: Path,
    *,
    fingerprint: str | None = None,
    learned_shape: tuple[int, int] | None = None,
    similarity: tuple[float, ...] = (),
) -> None:
    with ExpertStore.open(folder) as store:
        grid, own = store.grid, fingerprint or store.fingerprint()
        frequencies = grid.all_experts() / grid.rule.num_experts
        sensitivity = Sensitivity(similarity=similarity, perplexity_ratio=similarity) if similarity else None
        task = TaskProfile(
            num_requests=1,
            num_tokens=1,
            prompt_tokens=LENGTHS,
            answer_tokens=LENGTHS,
            prompt_frequencies=frequencies,
            answer_frequencies=frequencies,
            sensitivity=sensitivity,
        )
        learned = write_arrays(regression(learned_shape or grid.shape).arrays())
        profile = Profile(
            family=store.family,
            digest=store.digest,
            fingerprint=own,
            shape=grid.shape,
            moe_layers=grid.moe_layers,
            tasks={"chat": task},
            learned_sha256=hashlib.sha256(learned).hexdigest(),
        )
        write_profile(folder, profile, learned)


def forecast_of(folder: Path) -> RunningForecast:
    with ExpertStore.open(folder) as store:
        return open_forecast(store)


def foretold(forecast: RunningForecast) -> Array:
    """For a request whose tokens all chose experts 0 and 1."""
    shape = forecast.last.demand.shape
    own = OwnCounts(np.arange(shape[0]), shape)
    own.add(np.broadcast_to(np.array([0, 1]), (shape[0], 40, 2)))
    request = RunningRequest(sequence_id="a", task="chat", num_coming_tokens=1, routing=own.look())
    return forecast.update([request]).demand.astype(np.float32)


def test_what_was_learnt_foretells(folder: Path) -> None:
    write(folder)
    demand = foretold(forecast_of(folder))
    assert (demand.argmax(axis=1) == GOES_ON_WITH).all()


def test_without_a_profile_requests_go_on_as_they_went(folder: Path) -> None:
    demand = foretold(forecast_of(folder))
    np.testing.assert_allclose(demand[:, :2], 0.5, rtol=1e-6)


def test_layers_that_the_profile_found_insensitive_ask_for_nothing(folder: Path) -> None:
    write(folder, similarity=(0.95, 0.5, 0.4))
    assert foretold(forecast_of(folder)).sum(axis=1).tolist() == pytest.approx([0.0, 1.0, 1.0])


@pytest.mark.parametrize("damage", ["other-weights", "other-shape", "other-file"])
def test_a_profile_that_does_not_fit_is_said_and_done_without(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(
        folder,
        fingerprint="of others" if damage == "other-weights" else None,
        learned_shape=(2, 8) if damage == "other-shape" else None,
    )
    if damage == "other-file":
        (folder / LEARNED_FILE).write_bytes(b"")
    demand = foretold(forecast_of(folder))
    np.testing.assert_allclose(demand[:, :2], 0.5, rtol=1e-6)
    assert "own frequencies" in caplog.text
