"""Trains the small mixture-of-experts model that ships with emoe.

    python models/training/train.py --data CORPUS --work STATE --out models/emoe-tiny --minutes 120

CORPUS holds train/, valid/ and test/ with one `<task>.jsonl.zst` a task. Interrupted, it goes on from the last
state in --work. The learning rate falls to zero with the larger of two shares: tokens of --tokens, and minutes
of --minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen2MoeForCausalLM

from absence import ExpertAbsence
from architecture import build_config, build_model, load_tokenizer, train_tokenizer, wrap_tokenizer
from corpus import TASKS, Example, encode, mixed_batches, read_rows
from flat import FlatBatch, flatten

STATE_INTERVAL_SECONDS = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    tokens: int
    minutes: float
    tokens_per_batch: int = 8192
    peak_lr: float = 3e-3
    warmup_steps: int = 150
    weight_decay: float = 0.05
    prompt_weight: float = 0.3
    balance_weight: float = 0.002
    absence: float = 0.0  # the share of examples that are trained with most experts absent
    seed: int = 0
    autocast: bool = False  # bfloat16 for the products; pays on a GPU, not on two cores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counters:
    """How far the training has come, over all runs that shared one state."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def share(self, recipe: Recipe) -> float:
        return max(self.tokens / recipe.tokens, self.seconds / 60 / recipe.minutes)


class RouterTap:
    """Collects each layer's router logits [T, E] of one forward pass."""

    def __init__(self, model: Qwen2MoeForCausalLM) -> None:
        self.logits: list[torch.Tensor] = []
        for layer in model.model.layers:
            layer.mlp.gate.register_forward_hook(lambda _module, _args, out: self.logits.append(out[0]))


def balance_loss(logits_TE: torch.Tensor, num_topk: int) -> torch.Tensor:
    """E * sum_e f_e * P_e over the whole mixed batch (Switch Transformers, eq. 4); 1.0 when perfectly even."""
    probs_TE = logits_TE.float().softmax(-1)
    chosen = probs_TE.topk(num_topk, dim=-1).indices.reshape(-1)
    share_E = torch.bincount(chosen, minlength=logits_TE.shape[-1]).float() / len(chosen)
    return logits_TE.shape[-1] * (share_E * probs_TE.mean(0)).sum()


def batch_loss(
    model: Qwen2MoeForCausalLM, tap: RouterTap, batch: FlatBatch, recipe: Recipe
) -> tuple[torch.Tensor, torch.Tensor]:
    """The language loss, and the loss to descend: with the weighted balance loss added."""
    tap.logits.clear()
    hidden = model.model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, flat_batch=batch
    ).last_hidden_state[0]
    losses = cross_entropy(model.lm_head(hidden).float(), batch.targets, reduction="none")
    language = (losses * batch.loss_weights).sum() / batch.loss_weights.sum()
    balance = torch.stack([balance_loss(x, model.config.num_experts_per_tok) for x in tap.logits]).mean()
    return language, language + recipe.balance_weight * balance


def learning_rate(recipe: Recipe, *, step: int, progress: float) -> float:
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.peak_lr * warm * (0.5 * (1 + math.cos(math.pi * min(1.0, progress))) * 0.99 + 0.01)


def build_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.95), fused=True)


def load_examples(data: Path, work: Path, vocab_size: int) -> dict[str, list[Example]]:
    rows = {task: list(read_rows(data, "train", task)) for task in TASKS}
    if not (work / "tokenizer.json").exists():
        texts = (text for task in TASKS for row in rows[task] for text in (row.prompt, row.response))
        train_tokenizer(texts, vocab_size=vocab_size).save(str(work / "tokenizer.json"))
    tokenizer = load_tokenizer(work)
    examples = {task: encode(tokenizer, rows[task]) for task in TASKS}
    for task, encoded in examples.items():
        print(f"{task}: {len(encoded)} rows, {sum(len(example.ids) for example in encoded)} tokens", flush=True)
    return examples


def train(
    examples: dict[str, list[Example]],
    model: Qwen2MoeForCausalLM,
    recipe: Recipe,
    *,
    state_path: Path,
    device: torch.device,
) -> Counters:
    """Trains `model` in place until the recipe's tokens or minutes are used up; goes on from `state_path`."""
    optimizer, tap = build_optimizer(model, recipe), RouterTap(model)
    counters = _load_state(state_path, model, optimizer, device) if state_path.exists() else Counters()
    absence = None
    if recipe.absence:
        rng = np.random.default_rng([recipe.seed, counters.step])
        absence = ExpertAbsence(model, share=recipe.absence, rng=rng)
    began, saved, smooth = time.monotonic() - counters.seconds, time.monotonic(), 0.0
    for chosen in mixed_batches(examples, tokens_per_batch=recipe.tokens_per_batch, seed=recipe.seed + counters.step):
        counters = dataclasses.replace(counters, seconds=time.monotonic() - began)
        if counters.share(recipe) >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step=counters.step, progress=counters.share(recipe))
        batch = flatten(chosen, prompt_weight=recipe.prompt_weight, device=device)
        if absence:
            absence.begin(batch)
        loss = _descend(model, optimizer, tap, batch, recipe)
        counters = dataclasses.replace(
            counters, step=counters.step + 1, tokens=counters.tokens + batch.input_ids.numel()
        )
        smooth = 0.98 * smooth + 0.02 * loss if smooth else loss
        if counters.step % 20 == 0:
            _report(counters, recipe, loss=smooth, seconds=time.monotonic() - began)
        if time.monotonic() - saved > STATE_INTERVAL_SECONDS:
            _save_state(state_path, model, optimizer, counters)
            saved = time.monotonic()
    _save_state(state_path, model, optimizer, counters)
    return counters


def _descend(
    model: Qwen2MoeForCausalLM, optimizer: torch.optim.Optimizer, tap: RouterTap, batch: FlatBatch, recipe: Recipe
) -> float:
    with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=recipe.autocast):
        language, loss = batch_loss(model, tap, batch, recipe)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return language.item()


def _report(counters: Counters, recipe: Recipe, *, loss: float, seconds: float) -> None:
    print(
        f"step {counters.step} tokens {counters.tokens / 1e6:.2f}M loss {loss:.4f} "
        f"{counters.tokens / seconds:.0f} tokens/s {counters.share(recipe):.1%}",
        flush=True,
    )


def _load_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Counters:
    state = torch.load(path, map_location=device)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return Counters(step=state["step"], tokens=state["tokens"], seconds=state["seconds"])


def _save_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, counters: Counters) -> None:
    partial = path.with_suffix(".partial")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **dataclasses.asdict(counters)}
    torch.save(state, partial)
    partial.replace(path)


def save_checkpoint(model: Qwen2MoeForCausalLM, work: Path, out: Path, *, recipe: Recipe, counters: Counters) -> None:
    """The checkpoint in bfloat16 with its tokenizer, and `training.json`: the recipe and how far it went."""
    model.config.dtype = torch.bfloat16
    model.bfloat16().save_pretrained(out)
    wrap_tokenizer(load_tokenizer(work)).save_pretrained(out)
    record = {"recipe": dataclasses.asdict(recipe), **dataclasses.asdict(counters)}
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished checkpoint (bfloat16)")
    parser.add_argument("--work", type=Path, required=True, help="folder of the tokenizer and the resumable state")
    parser.add_argument("--tokens", type=int, default=200_000_000)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--absence", type=float, default=0.0, help="share of examples trained with few experts")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(
        tokens=options.tokens,
        minutes=options.minutes,
        absence=options.absence,
        autocast=options.device == "cuda",
    )
    device = torch.device(options.device)
    examples = load_examples(options.data, options.work, options.vocab_size)
    model = build_model(build_config(vocab_size=options.vocab_size), seed=recipe.seed)
    torch.nn.Module.to(model, device)
    counters = train(examples, model, recipe, state_path=options.work / "state.pt", device=device)
    save_checkpoint(model, options.work, options.out, recipe=recipe, counters=counters)
    print(f"saved {options.out}")


if __name__ == "__main__":
    main()
