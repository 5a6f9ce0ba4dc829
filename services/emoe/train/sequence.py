"""Trains the sequence predictors: cross-entropy against the next prompt's routing, with early stopping.

`train_sequence` makes what the predictor serves (`core.sequence_predictor`), from counts of prompts that ran with all
experts resident; `fit_network` trains any of the networks that are compared. The same prompts and seed give the same
weights: one thread trains, as networks so small gain nothing from more.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from emoe.core.demand import tokens_in
from emoe.core.sequence_predictor import SequenceWeights
from emoe.train.sequence_data import (
    Batch,
    Elements,
    Indices,
    PromptCounts,
    build_elements,
    draw_batch,
    pools_of,
    task_priors,
)
from emoe.train.sequence_networks import MAX_PROMPTS_BEFORE, NETWORKS, GruA, NextPrompt, Sizes

Say = Callable[[str], None]
Foretelling = Callable[[Tensor, Tensor], Tensor]
"""Features [B, R, M, E] and entries [B, R] -> logits [B, R, M, E]."""

HELD_OUT_RATIO = 0.15
"""Of the prompts, for early stopping: by prompt."""
JUDGED_AT_ONCE = 16
ELEMENT_PERCENTILE = 10
"""An element served is no smaller than most prompts that were trained on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """`patience`: so many judgements without a better one, one every `judge_steps`, and training ends."""

    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    batch_sequences: int = 16
    max_steps: int = 800
    judge_steps: int = 40
    patience: int = 5
    judged_sequences: int = 32


SETTINGS: dict[str, TrainingSettings] = {
    "gru-a": TrainingSettings(),
    "gru-l": TrainingSettings(),
    "xlnet-a": TrainingSettings(learning_rate=3e-4, max_steps=300, judge_steps=50, patience=2),
    "xlnet-l": TrainingSettings(learning_rate=3e-4, max_steps=300, judge_steps=50, patience=2, batch_sequences=4),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """Losses are of held-out prompts, nats a layer. `frequency_loss`: before training, that of the task's frequency
    alone; `truth_fed_loss`: had an eMoE-L known the layer before as it will be; an accuracy is of the K most wanted."""

    network: NextPrompt
    tasks: tuple[str, ...]
    frequency_loss: float
    loss: float
    truth_fed_loss: float
    accuracy: float
    truth_fed_accuracy: float
    num_steps: int
    seconds: float
    """Of one core."""


def train_sequence(
    prompts: Sequence[PromptCounts],
    *,
    moe_layers: Sequence[int],
    top_k: int,
    seed: int = 0,
    settings: TrainingSettings | None = None,
    say: Say,
) -> dict[str, npt.NDArray[Any]]:
    """The arrays under `sequence/` of the learned file. ValueError with fewer than two prompts."""
    trained = fit_network("gru-a", prompts, moe_layers=moe_layers, top_k=top_k, seed=seed, settings=settings, say=say)
    return export_weights(trained, prompts, moe_layers).to_arrays()


def fit_network(
    name: str,
    prompts: Sequence[PromptCounts],
    *,
    moe_layers: Sequence[int],
    top_k: int,
    seed: int = 0,
    settings: TrainingSettings | None = None,
    say: Say,
) -> Trained:
    """One of NETWORKS, on the CPU."""
    settings = settings or SETTINGS[name]
    began = time.process_time()
    elements = build_elements(prompts, moe_layers)
    random = np.random.default_rng(seed)
    learnt, held_out = _split(elements, random)
    judged = draw_batch(
        elements, pools_of(elements, held_out), num=settings.judged_sequences, length=MAX_PROMPTS_BEFORE, random=random
    )
    with _repeatable(seed):
        network = _build(name, elements, task_priors([prompts[n] for n in learnt], elements.tasks, moe_layers, top_k))
        frequency_loss, _ = _judge(network.foretell, elements, judged, top_k)
        num_steps = _fit(network, elements, learnt, judged, settings, random, say)
        loss, accuracy = _judge(network.foretell, elements, judged, top_k)
        truth_fed_loss, truth_fed_accuracy = _judge(network, elements, judged, top_k)
    network.set_priors(torch.from_numpy(task_priors(prompts, elements.tasks, moe_layers, top_k)))
    return Trained(
        network=network,
        tasks=elements.tasks,
        frequency_loss=frequency_loss,
        loss=loss,
        truth_fed_loss=truth_fed_loss,
        accuracy=accuracy,
        truth_fed_accuracy=truth_fed_accuracy,
        num_steps=num_steps,
        seconds=time.process_time() - began,
    )


def export_weights(trained: Trained, prompts: Sequence[PromptCounts], moe_layers: Sequence[int]) -> SequenceWeights:
    network = trained.network
    if not isinstance(network, GruA):
        raise TypeError(f"a {type(network).__name__} is not served; only the GRU over whole prompts is")
    choices = [tokens_in(prompt.counts) for prompt in prompts]
    return SequenceWeights(
        tasks=trained.tasks,
        moe_layers=np.array(moe_layers, dtype=np.int64),
        element_choices=max(1.0, float(np.percentile(choices, ELEMENT_PERCENTILE))),
        centre=_numpy(network.centre).reshape(-1),
        project_in=_numpy(network.project_in.weight),
        task_in=_numpy(network.task_in.weight),
        gates_in=_numpy(network.gru.weight_ih_l0),
        gates_hidden=_numpy(network.gru.weight_hh_l0),
        bias_in=_numpy(network.gru.bias_ih_l0),
        bias_hidden=_numpy(network.gru.bias_hh_l0),
        project_out=_numpy(network.project_out.weight),
        task_logits=_numpy(network.task_logits).reshape(len(trained.tasks) + 1, -1),
    )


@contextlib.contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """The caller's random numbers and threads are as they were afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _split(elements: Elements, random: np.random.Generator) -> tuple[Indices, Indices]:
    """By prompt, each task alike; at least one prompt each side."""
    learnt: list[int] = []
    held_out: list[int] = []
    for entry in range(len(elements.tasks) + 1):
        order = random.permutation(elements.prompts_of(entry))
        num_held_out = round(HELD_OUT_RATIO * len(order))
        held_out += order[:num_held_out].tolist()
        learnt += order[num_held_out:].tolist()
    if not held_out and len(learnt) > 1:
        held_out = [learnt.pop()]
    if not held_out:
        raise ValueError("one prompt is too few to learn sequences: one more at least is held out")
    return np.array(learnt, dtype=np.int64), np.array(held_out, dtype=np.int64)


def _build(name: str, elements: Elements, priors: npt.NDArray[np.float32]) -> NextPrompt:
    num_layers, num_experts = elements.features.shape[1:]
    sizes = Sizes(num_layers=num_layers, num_experts=num_experts, num_entries=len(elements.tasks) + 1)
    return NETWORKS[name](sizes, torch.from_numpy(priors), torch.from_numpy(elements.features.mean(axis=0)))


def _fit(
    network: NextPrompt,
    elements: Elements,
    learnt: Indices,
    judged: Batch,
    settings: TrainingSettings,
    random: np.random.Generator,
    say: Say,
) -> int:
    """Leaves the best weights in the network, for inference. -> steps made."""
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=False
    )
    pools = pools_of(elements, learnt)
    first = best = _judge(network.foretell, elements, judged)[0]
    best_weights, best_step, step = copy.deepcopy(network.state_dict()), 0, 0
    while step < settings.max_steps and step - best_step < settings.patience * settings.judge_steps:
        step += 1
        batch = draw_batch(elements, pools, num=settings.batch_sequences, length=MAX_PROMPTS_BEFORE, random=random)
        optimizer.zero_grad(set_to_none=True)
        _loss(network.train(), elements, batch).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % settings.judge_steps == 0:
            loss, _ = _judge(network.eval().foretell, elements, judged)
            say(f"sequence predictor: step {step} of at most {settings.max_steps}, loss {loss:.4f}, {first:.4f} before")
            if loss < best:
                best, best_step, best_weights = loss, step, copy.deepcopy(network.state_dict())
    network.load_state_dict(best_weights)
    network.eval()
    return step


def _loss(foretell: Foretelling, elements: Elements, batch: Batch) -> Tensor:
    """Nats a layer: cross-entropy of the frequencies."""
    return _cross_entropy(_logits(foretell, elements, batch), elements, batch)


def _logits(foretell: Foretelling, elements: Elements, batch: Batch) -> Tensor:
    return foretell(torch.from_numpy(elements.features[batch.prompts]), torch.from_numpy(batch.entries))


def _cross_entropy(logits: Tensor, elements: Elements, batch: Batch) -> Tensor:
    wanted = torch.from_numpy(elements.frequencies[batch.prompts])
    losses_BR = -(wanted * logits.log_softmax(dim=-1)).sum(dim=-1).mean(dim=-1)
    return losses_BR[torch.from_numpy(batch.count)].mean()


@torch.no_grad()
def _judge(foretell: Foretelling, elements: Elements, judged: Batch, top_k: int = 1) -> tuple[float, float]:
    """-> loss, and the share of the K most wanted experts of each layer that were foretold."""
    found = np.zeros(3)
    for begin in range(0, len(judged.prompts), JUDGED_AT_ONCE):
        batch = judged.part(slice(begin, begin + JUDGED_AT_ONCE))
        logits, num = _logits(foretell, elements, batch), float(batch.count.sum())
        loss = float(_cross_entropy(logits, elements, batch))
        wanted = torch.from_numpy(elements.frequencies[batch.prompts])
        ours, theirs = (_foremost(grid, top_k) for grid in (logits, wanted))
        hits = (ours & theirs)[torch.from_numpy(batch.count)].float().mean() * wanted.shape[-1] / top_k
        found += num * np.array([loss, float(hits), 1.0])
    return float(found[0] / found[2]), float(found[1] / found[2])


def _foremost(grid: Tensor, top_k: int) -> Tensor:
    return torch.zeros_like(grid, dtype=torch.bool).scatter(-1, grid.topk(top_k, dim=-1).indices, value=True)


def _numpy(tensor: Tensor | torch.nn.Module) -> npt.NDArray[np.float32]:
    assert isinstance(tensor, Tensor)
    return np.asarray(tensor.detach().numpy(), dtype=np.float32)
