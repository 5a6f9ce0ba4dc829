"""What a model routes by task, and what a request's own routing foretells: what strategies plan from.

From the profile file beside the model, or, where there is none, from training rows that ran here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from emoe.core.errors import CheckpointError
from emoe.core.experts import ExpertGrid, FloatGrid
from emoe.core.own_routing import Array, OwnRoutingRegression
from emoe.core.tasks import UNKNOWN
from emoe.eval.recording import RowRouting, frequency
from emoe.store.learned import read_arrays
from emoe.store.profile import LEARNED_FILE, Profile

__all__ = ["Moments", "RoutingProfile", "build_profile", "find_moments", "frequency", "routing_profile_from"]

MOMENT_EVERY_TOKENS = 32
HORIZON_TOKENS = 64
"""What is foretold at a moment: so many tokens at most, as long as a worker's plan stands."""
MAX_SAMPLES = 4096
MAX_SAMPLE_BYTES = 256 * 1024**2
MAX_CENTRES = 512
MAX_LEARNED_BYTES = 16 * 1024**2
"""Of the regression as written; a model of many layers and experts has fewer centres."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """N moments: `spans` [N, S, L, E] and `futures` [N, L, E] are frequencies, `num_tokens` [N] those of the future."""

    spans: Array
    futures: Array
    num_tokens: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RoutingProfile:
    """`frequencies` [L, E] of each task's answers, and `routed_frequencies` of its requests, prompt and answer, each
    token alike (f of eMoE's equation 1); rows sum to one.

    `sensitive` [L]: s of eMoE's equation; ones where it is not known. `answer_tokens`: the mean, W_o.
    """

    frequencies: Mapping[str, FloatGrid]
    routed_frequencies: Mapping[str, FloatGrid]
    sensitive: Mapping[str, FloatGrid]
    answer_tokens: Mapping[str, float]
    own_routing: OwnRoutingRegression | None
    """None where the profile has nothing of it."""

    def of(self, task: str) -> FloatGrid:
        """The mean of all for a task that was not profiled."""
        return _of(task, self.frequencies)

    def of_requests(self, task: str) -> FloatGrid:
        return _of(task, self.routed_frequencies)

    def mean(self) -> FloatGrid:
        """Of requests, prompts and answers, each task alike."""
        return _mean(self.routed_frequencies)


def _of(task: str, frequencies: Mapping[str, FloatGrid]) -> FloatGrid:
    return frequencies[task] if task in frequencies else _mean(frequencies)


def _mean(frequencies: Mapping[str, FloatGrid]) -> FloatGrid:
    return np.asarray(np.mean(list(frequencies.values()), axis=0))


def routing_profile_from(profile: Profile, learned: bytes | None) -> RoutingProfile:
    """`learned`: as `store.profile.read_learned` gives it. CheckpointError when it does not fit."""
    try:
        arrays = {} if learned is None else read_arrays(learned, name=LEARNED_FILE)
        own_routing = OwnRoutingRegression.from_arrays(arrays)
    except ValueError as error:
        raise CheckpointError(f"{LEARNED_FILE}: {error}; make it anew with `emoe profile`") from error
    if own_routing is not None and own_routing.shape != profile.shape:
        raise CheckpointError(f"{LEARNED_FILE} is of {own_routing.shape} layers and experts, not {profile.shape}")
    return RoutingProfile(
        frequencies={name: task.answer_frequencies for name, task in profile.tasks.items()},
        routed_frequencies={name: task.routed_frequencies for name, task in profile.tasks.items()},
        sensitive={name: profile.sensitive(name) for name in profile.tasks},
        answer_tokens={name: task.answer_tokens.mean for name, task in profile.tasks.items()},
        own_routing=own_routing,
    )


def build_profile(rows: Iterable[RowRouting], grid: ExpertGrid, *, seed: int = 0) -> RoutingProfile:
    """From rows that ran with all experts resident (`record_routing`); in memory, without sensitivity."""
    recorded = list(rows)
    tasks = sorted({row.task for row in recorded} - {UNKNOWN})
    of = {task: [row for row in recorded if row.task == task] for task in tasks}
    split = {task: split_frequencies(part, grid) for task, part in of.items()}
    return RoutingProfile(
        frequencies={task: answers for task, (_, answers) in split.items()},
        routed_frequencies={task: _routed(part, grid) for task, part in of.items()},
        sensitive={task: np.ones(grid.shape[0]) for task in tasks},
        answer_tokens={task: float(np.mean([row.num_response_tokens for row in part])) for task, part in of.items()},
        own_routing=fit_own_routing(recorded, grid, seed=seed),
    )


def split_frequencies(rows: Iterable[RowRouting], grid: ExpertGrid) -> tuple[FloatGrid, FloatGrid]:
    """[L, E] of the prompts' tokens and of the answers', every token alike. Answers that never ran: as the prompts."""
    prompts, answers = np.zeros(grid.shape), np.zeros(grid.shape)
    for row in rows:
        prompts += row.count(grid, 0, row.num_prompt_tokens)
        answers += row.count(grid, row.num_prompt_tokens)
    found = [counts if counts.any() else prompts for counts in (prompts, answers)]
    sums = [np.maximum(counts.sum(axis=1, keepdims=True), 1) for counts in found]
    return found[0] / sums[0], found[1] / sums[1]


def _routed(rows: Iterable[RowRouting], grid: ExpertGrid) -> FloatGrid:
    counts = np.sum([row.count(grid, 0) for row in rows], axis=0)
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def fit_own_routing(rows: Iterable[RowRouting], grid: ExpertGrid, *, seed: int = 0) -> OwnRoutingRegression | None:
    """None when no row has a moment: no answer of two tokens or more."""
    moments = find_moments(rows, grid, seed=seed)
    if not len(moments.num_tokens):
        return None
    regression = OwnRoutingRegression(max_samples=MAX_SAMPLES, max_centres=most_centres(grid.shape))
    regression.fit(moments.spans, moments.futures, moments.num_tokens)
    return regression


def most_centres(shape: tuple[int, int]) -> int:
    """That a regression for so many layers and experts has."""
    stored_bytes = 5 * shape[0] * shape[1]
    return max(1, min(MAX_CENTRES, MAX_LEARNED_BYTES // stored_bytes))


def find_moments(rows: Iterable[RowRouting], grid: ExpertGrid, *, seed: int = 0) -> Moments:
    """When a prompt has run, and every MOMENT_EVERY_TOKENS from there on; drawn evenly where there are too many."""
    places = [(row, place) for row in rows for place in range(row.num_prompt_tokens, len(row.ids), MOMENT_EVERY_TOKENS)]
    most = min(MAX_SAMPLES, MAX_SAMPLE_BYTES // (16 * grid.shape[0] * grid.shape[1]))
    order = np.random.default_rng(seed).permutation(len(places))[:most]
    found = list(_moments((places[chosen] for chosen in order), grid))
    shape = (len(found), *grid.shape)
    return Moments(
        spans=np.stack([spans for spans, _, _ in found]) if found else np.zeros((0, 1, *grid.shape), np.float32),
        futures=np.array([future for _, future, _ in found], dtype=np.float32).reshape(shape),
        num_tokens=np.array([num_tokens for _, _, num_tokens in found], dtype=np.int64),
    )


def _moments(places: Iterable[tuple[RowRouting, int]], grid: ExpertGrid) -> Iterator[tuple[Array, Array, int]]:
    for row, place in places:
        end = min(place + HORIZON_TOKENS, len(row.ids))
        yield row.spans(grid, place), frequency(row.count(grid, place, end)), end - place
