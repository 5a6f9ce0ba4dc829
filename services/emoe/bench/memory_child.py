"""One row of `emoe bench memory`: a process that loads one engine and answers one prompt, and says what it holds.

`python -m emoe.bench.memory_child OPTIONS`, with `engine` "bare", "emoe" or "transformers".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from emoe.bench.answering import answer_questions, own_options
from emoe.bench.engines import fill, new_sequence, open_parts
from emoe.bench.reference import generate, load_reference
from emoe.worker.build import EngineOptions

Holding = dict[str, object]


def main() -> None:
    options = own_options()
    torch.set_num_threads(int(options["threads"]))
    RUNS[options["engine"]](options)


def run_bare(_options: dict[str, Any]) -> None:
    """The libraries, and the class that both engines are built through; no model."""
    assert transformers.AutoModelForCausalLM is not None
    answer_questions(lambda step: {"step": step})


def run_emoe(options: dict[str, Any]) -> None:
    """In exact mode, with every slot in use: a slot that was never written takes no memory."""
    prompt, new_tokens = options["prompt"], int(options["new_tokens"])
    engine_options = EngineOptions(
        expert_memory=options["budget"],
        miss_policy="load",
        max_context=len(prompt) + new_tokens,
        max_concurrency=1,
    )
    with open_parts(Path(options["model"]), engine_options) as parts:
        engine = parts.build_engine()

        def answer(step: str) -> Holding:
            if step == "load":
                fill(parts)
                return {}
            engine.add(new_sequence("0", prompt, new_tokens=new_tokens))
            while engine.has_work:
                engine.step()
            return {"slot_bytes": parts.residency.arena.num_bytes, "kv_bytes": engine.num_kv_bytes}

        answer_questions(answer)


def run_transformers(options: dict[str, Any]) -> None:
    model = load_reference(Path(options["model"]))

    def answer(step: str) -> Holding:
        if step == "load":
            return {}
        out = generate(model, [options["prompt"]], new_tokens=int(options["new_tokens"]))
        layers = out.past_key_values.layers
        return {"kv_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)}

    answer_questions(answer)


RUNS: dict[str, Callable[[dict[str, Any]], None]] = {
    "bare": run_bare,
    "emoe": run_emoe,
    "transformers": run_transformers,
}

if __name__ == "__main__":
    main()
