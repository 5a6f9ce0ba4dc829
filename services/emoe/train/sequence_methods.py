"""The predictors that are compared, each behind `DemandPredictor`: counting ones, trained ones, and hindsight.

All begin from the same training prompts. L layers, E experts.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from emoe.core.demand import DemandPredictor, FrequencyPredictor, tokens_in
from emoe.core.experts import CountGrid, FloatGrid
from emoe.core.sequence_predictor import SequencePredictor, element_features, parse_weights
from emoe.core.tasks import UNKNOWN
from emoe.train.sequence import Trained, export_weights, fit_network
from emoe.train.sequence_data import Array, PromptCounts, task_priors
from emoe.train.sequence_networks import MAX_PROMPTS_BEFORE, NETWORKS, NextPrompt

HALF_LIFE_TOKENS = 50_000.0
PROFILE_TOKENS = 20_000.0
RECENT_HALF_LIFE_PROMPTS = 8.0
RECENT_PROFILE_PROMPTS = 8.0
UNLABELLED = "unlabelled"
GLOBAL, LAST, FREQUENCY, RECENT, HINDSIGHT = "global", "last prompt", "frequency", "recent frequency", "hindsight"

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """`make` gives a predictor that has seen the training prompts and none of the judged ones; None is hindsight."""

    name: str
    make: Callable[[], DemandPredictor] | None
    num_parameters: int = 0
    """Learned ones beside the tasks' frequencies, which all begin from."""
    num_bytes: int = 0
    """In float32."""
    training_seconds: float = 0.0


class Fixed:
    """The same for every task, whatever happens."""

    def __init__(self, frequency: FloatGrid) -> None:
        self._frequency = frequency

    def observe(self, task: str, counts: CountGrid) -> None:
        pass

    def predict(self, task_tokens: Mapping[str, float]) -> FloatGrid:
        return sum(task_tokens.values()) * self._frequency


class LastPrompt:
    """What the label's last prompt routed; its frequency before there was one."""

    def __init__(self, priors: Mapping[str, FloatGrid]) -> None:
        self._latest = dict(priors)

    def observe(self, task: str, counts: CountGrid) -> None:
        self._latest[task] = element_features(counts).astype(np.float64) ** 2

    def predict(self, task_tokens: Mapping[str, float]) -> FloatGrid:
        grids = [tokens * self._latest.get(task, self._latest[UNKNOWN]) for task, tokens in task_tokens.items()]
        return np.asarray(np.sum(grids, axis=0))


class RecentFrequency:
    """Counting with a short memory, which unlabelled prompts share as if they were a task of their own."""

    def __init__(self, predictor: FrequencyPredictor) -> None:
        self._predictor = predictor

    def observe(self, task: str, counts: CountGrid) -> None:
        self._predictor.observe(_labelled(task), counts)

    def predict(self, task_tokens: Mapping[str, float]) -> FloatGrid:
        return self._predictor.predict({_labelled(task): tokens for task, tokens in task_tokens.items()})


class NetworkPredictor:
    """Any of the networks over the latest prompts of each label."""

    def __init__(self, network: NextPrompt, tasks: Sequence[str], moe_layers: Sequence[int], num_layers: int) -> None:
        self._network = network
        self._entries = {task: entry for entry, task in enumerate(tasks)}
        self._moe_layers = list(moe_layers)
        self._num_layers = num_layers
        self._seen: dict[str, collections.deque[Array]] = {}

    def observe(self, task: str, counts: CountGrid) -> None:
        seen = self._seen.setdefault(task, collections.deque(maxlen=MAX_PROMPTS_BEFORE - 1))
        seen.append(element_features(counts[self._moe_layers]))

    def predict(self, task_tokens: Mapping[str, float]) -> FloatGrid:
        demand = np.zeros((self._num_layers, self._network.sizes.num_experts))
        for task, tokens in task_tokens.items():
            demand[self._moe_layers] += tokens * self._frequency(task)
        return demand

    @torch.inference_mode()
    def _frequency(self, task: str) -> Array:
        coming = np.zeros((len(self._moe_layers), self._network.sizes.num_experts), dtype=np.float32)
        features = torch.from_numpy(np.stack([*self._seen.get(task, ()), coming]))[None]
        entries = torch.full(features.shape[:2], self._entries.get(task, len(self._entries)))
        return np.asarray(self._network.foretell_last(features, entries)[0].softmax(dim=-1).numpy())


def counting_methods(prompts: Sequence[PromptCounts], *, moe_layers: Sequence[int], top_k: int) -> list[Method]:
    shape = prompts[0].counts.shape
    tasks = sorted({prompt.task for prompt in prompts} - {UNKNOWN})
    grids = np.zeros((len(tasks) + 1, *shape))
    grids[:, list(moe_layers)] = task_priors(prompts, tasks, moe_layers, top_k)
    priors: dict[str, FloatGrid] = dict(zip([*tasks, UNKNOWN], grids, strict=True))
    known = {task: priors[task] for task in tasks}
    prompt_choices = float(np.mean([tokens_in(prompt.counts) for prompt in prompts]))
    num_bytes = grids[:-1].size * 4

    def frequency() -> DemandPredictor:
        return FrequencyPredictor(
            (shape[0], shape[1]),
            half_life_tokens=HALF_LIFE_TOKENS * top_k,
            profile_tokens=PROFILE_TOKENS * top_k,
            priors=known,
        )

    def recent() -> DemandPredictor:
        counting = FrequencyPredictor(
            (shape[0], shape[1]),
            half_life_tokens=RECENT_HALF_LIFE_PROMPTS * prompt_choices,
            profile_tokens=RECENT_PROFILE_PROMPTS * prompt_choices,
            priors={**known, UNLABELLED: priors[UNKNOWN]},
        )
        return RecentFrequency(counting)

    return [
        Method(name=GLOBAL, make=lambda: Fixed(priors[UNKNOWN]), num_bytes=grids[0].size * 4),
        Method(name=LAST, make=lambda: LastPrompt(priors), num_bytes=num_bytes),
        Method(name=FREQUENCY, make=frequency, num_bytes=num_bytes),
        Method(name=RECENT, make=recent, num_bytes=num_bytes),
        Method(name=HINDSIGHT, make=None),
    ]


def learned_method(
    name: str, prompts: Sequence[PromptCounts], *, moe_layers: Sequence[int], top_k: int, seed: int, say: Say
) -> tuple[Method, Trained]:
    """Trains one of NETWORKS. The one that is served is judged as it is served."""
    trained = fit_network(name, prompts, moe_layers=moe_layers, top_k=top_k, seed=seed, say=say)
    shape = prompts[0].counts.shape

    def make() -> DemandPredictor:
        if name != SERVED:
            return NetworkPredictor(trained.network, trained.tasks, moe_layers, shape[0])
        weights = parse_weights(export_weights(trained, prompts, moe_layers).to_arrays(), (shape[0], shape[1]))
        return SequencePredictor(weights, (shape[0], shape[1]))

    num_stored = trained.network.num_parameters + trained.network.task_logits.numel()
    method = Method(
        name=name,
        make=make,
        num_parameters=trained.network.num_parameters,
        num_bytes=4 * num_stored,
        training_seconds=trained.seconds,
    )
    return method, trained


SERVED = "gru-a"
LEARNED = tuple(NETWORKS)


def _labelled(task: str) -> str:
    return UNLABELLED if task == UNKNOWN else task
