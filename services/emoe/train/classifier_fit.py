"""Fits the task classifier: softmax regression on hashed features, with features left out at random while it learns.

Dropping a prompt's features, and now and then all of its edges, keeps single words (a template's, say) from deciding.
Weights are kept in 8 bits. Temperature and threshold are then chosen on prompts of other origin than the training's.
N prompts, F features, C labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from emoe.core.task_classifier import LABELS, TaskClassifier
from emoe.core.text_features import EDGES, NUM_FEATURES, TextFeatures

_TEMPERATURES = np.geomspace(0.25, 4.0, 65)
_THRESHOLDS = np.arange(0.30, 0.96, 0.01)
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    num_epochs: int = 6
    batch_prompts: int = 256
    learning_rate: float = 0.02
    dropped_share: float = 0.5
    dropped_edges_share: float = 0.2
    label_smoothing: float = 0.05
    weight_decay: float = 1e-6
    seed: int = 0


def fit(features: Sequence[TextFeatures], labels: Sequence[str], settings: FitSettings) -> TaskClassifier:
    """Not calibrated yet: temperature 1, and a threshold of one half."""
    generator = torch.Generator().manual_seed(settings.seed)
    targets_N = torch.tensor([LABELS.index(label) for label in labels])
    weights_FC = torch.zeros(NUM_FEATURES, len(LABELS), requires_grad=True)
    biases_C = torch.zeros(len(LABELS), requires_grad=True)
    optimizer = torch.optim.Adam([weights_FC, biases_C], lr=settings.learning_rate)
    batches = list(_batches(len(labels), settings, generator))
    for step, chosen in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - step / len(batches))
        ids, values, offsets = _pack([features[index] for index in chosen.tolist()])
        kept = _kept(ids, offsets, settings, generator)
        logits = F.embedding_bag(ids, weights_FC, offsets, mode="sum", per_sample_weights=values * kept) + biases_C
        loss = F.cross_entropy(logits, targets_N[chosen], label_smoothing=settings.label_smoothing)
        loss = loss + settings.weight_decay * weights_FC.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _quantised(weights_FC.detach().numpy(), biases_C.detach().numpy(), features)


def calibrate(classifier: TaskClassifier, features: Sequence[TextFeatures], wanted: Sequence[frozenset[str]],
              *, sure_accuracy: float) -> TaskClassifier:  # fmt: skip
    """The temperature that makes the wanted labels likeliest, then the lowest threshold at which the named tasks are
    right in `sure_accuracy` of all prompts that get a name; the highest there is if none reaches it."""
    allowed_NC = np.array([[label in labels for label in LABELS] for labels in wanted])

    def loss(temperature: float) -> float:
        scaled = dataclasses.replace(classifier, temperature=float(temperature))
        probabilities_NC = np.stack([scaled.probabilities(one) for one in features])
        return -float(np.mean(np.log((probabilities_NC * allowed_NC).sum(axis=1) + 1e-9)))

    best = dataclasses.replace(classifier, temperature=float(min(_TEMPERATURES, key=loss)))
    probabilities_NC = np.stack([best.probabilities(one) for one in features])
    likeliest_N = probabilities_NC[:, :-1].argmax(axis=1)
    top_N = probabilities_NC[:, :-1].max(axis=1)
    right_N = allowed_NC[np.arange(len(top_N)), likeliest_N]
    reached = [th for th in _THRESHOLDS if np.any(top_N >= th) and right_N[top_N >= th].mean() >= sure_accuracy]
    return dataclasses.replace(best, threshold=round(float(reached[0] if reached else _THRESHOLDS[-1]), 2))


def _batches(num_prompts: int, settings: FitSettings, generator: torch.Generator) -> Iterator[torch.Tensor]:
    for _ in range(settings.num_epochs):
        yield from torch.randperm(num_prompts, generator=generator).split(settings.batch_prompts)


def _pack(features: Sequence[TextFeatures]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = [len(one.ids) for one in features]
    return (
        torch.from_numpy(np.concatenate([one.ids for one in features])),
        torch.from_numpy(np.concatenate([one.values for one in features])),
        torch.tensor([0, *lengths[:-1]]).cumsum(0),
    )


def _kept(ids: torch.Tensor, offsets: torch.Tensor, settings: FitSettings, generator: torch.Generator) -> torch.Tensor:
    """Scaled up by what is dropped, so that sums stay as they are on average."""
    kept = torch.rand(len(ids), generator=generator) >= settings.dropped_share
    prompts = torch.searchsorted(offsets, torch.arange(len(ids)), right=True) - 1
    without_edges = torch.rand(len(offsets), generator=generator) < settings.dropped_edges_share
    kept &= ~(without_edges[prompts] & (ids >= EDGES.start) & (ids < EDGES.stop))
    return kept / (1 - settings.dropped_share)


def _quantised(weights_FC: Floats, biases_C: Floats, features: Sequence[TextFeatures]) -> TaskClassifier:
    scales_C = np.maximum(np.abs(weights_FC).max(axis=0), 1e-9) / 127
    counts_F = np.bincount(np.concatenate([one.ids for one in features]), minlength=NUM_FEATURES)
    rarity_F = np.log((len(features) + 1) / (counts_F + 1)) / np.log(len(features) + 1)
    return TaskClassifier(
        weights=np.rint(weights_FC / scales_C).astype(np.int8),
        scales=scales_C.astype(np.float32),
        biases=biases_C.astype(np.float32),
        rarities=np.rint(255 * rarity_F.clip(0, 1)).astype(np.uint8),
        temperature=1.0,
        threshold=0.5,
    )
