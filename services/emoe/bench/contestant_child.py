"""emoe or transformers as one contestant of `emoe bench engine`, alone in its process.

`python -m emoe.bench.contestant_child OPTIONS`, with `kind` "emoe", "transformers", "disk" or "float32".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers

from emoe.bench.answering import answer_questions, own_options
from emoe.bench.engine import time_engine
from emoe.bench.engines import fill, new_sequence, open_parts
from emoe.bench.failures import BenchmarkError
from emoe.bench.reference import load_reference, time_generate
from emoe.core.errors import EmoeError
from emoe.worker.build import EngineOptions, EngineParts

Answer = dict[str, object]


class Runs(Protocol):
    def generate(self, prompts: list[list[int]], new_tokens: int) -> Answer: ...

    def logits(self, prompt: list[int]) -> list[float]: ...


class Ours:
    def __init__(self, parts: EngineParts) -> None:
        self._parts = parts
        self._engine = parts.build_engine()

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Answer:
        engine, residency = self._engine, self._parts.residency
        engine.task_counts.clear()
        copied = residency.counters.num_bytes_loaded
        timing = time_engine(engine, prompts, new_tokens)
        num_needed = int(np.count_nonzero(sum(engine.task_counts.values())))
        return {
            "prefill_seconds": timing.prefill_seconds,
            "total_seconds": timing.total_seconds,
            "bytes_needed": num_needed * residency.grid.expert_bytes,
            "bytes_copied": residency.counters.num_bytes_loaded - copied,
        }

    def logits(self, prompt: list[int]) -> list[float]:
        self._engine.add(new_sequence("logits", prompt, new_tokens=1))
        last: list[float] = []
        while self._engine.has_work:
            self._engine.step()
            logits_NV = self._engine.logits_NV
            if logits_NV is not None and logits_NV.shape[0]:
                last = logits_NV[-1].float().tolist()
        return last


class Theirs:
    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Answer:
        timing = time_generate(self._model, prompts, new_tokens=new_tokens)
        return {"prefill_seconds": timing.prefill_seconds, "total_seconds": timing.total_seconds}

    def logits(self, prompt: list[int]) -> list[float]:
        with torch.inference_mode():
            last: list[float] = self._model(torch.tensor([prompt])).logits[0, -1].float().tolist()
        return last


def main() -> None:
    options = own_options()
    torch.set_num_threads(int(options["threads"]))
    try:
        with opened(options) as runs:
            answer_questions(lambda step, **asked: answer(runs, step, **asked))
    except EmoeError as error:
        reason = str(error)

        def refuse(**_asked: object) -> Answer:
            raise BenchmarkError(reason)

        answer_questions(refuse)


def answer(runs: Runs, step: str, **asked: Any) -> Answer:
    if step == "generate":
        return runs.generate(asked["prompts"], asked["new_tokens"])
    if step == "logits":
        return {"logits": runs.logits(asked["prompt"])}
    return {}


@contextmanager
def opened(options: dict[str, Any]) -> Iterator[Runs]:
    model, kind = Path(options["model"]), options["kind"]
    if kind == "emoe":
        engine_options = EngineOptions(
            expert_memory=options["expert_memory"],
            miss_policy=options["miss_policy"],
            max_context=options["max_context"],
            max_concurrency=options["max_concurrency"],
        )
        with open_parts(model, engine_options) as parts:
            fill(parts)
            yield Ours(parts)
    elif kind == "disk":
        yield Theirs(load_from_disk(model, Path(options["offload"])))
    else:
        reference = load_reference(model, dtype="float32" if kind == "float32" else "auto")
        reference.set_experts_implementation(options.get("experts_function", "eager"))
        yield Theirs(reference)


def load_from_disk(model: Path, offload: Path) -> Any:
    """All layers on disk, the rest in memory: what accelerate's own `device_map` makes of a machine without room."""
    num_layers = transformers.AutoConfig.from_pretrained(model).num_hidden_layers
    device_map = {f"model.layers.{layer}": "disk" for layer in range(num_layers)}
    device_map |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    return load_reference(model, device_map=device_map, offload_folder=str(offload))


if __name__ == "__main__":
    main()
