"""Writes the routing frequencies that ship with the model: where the predictor begins on a machine that never saw it.

    python models/training/routing_prior.py models/emoe-tiny --data CORPUS

Prompts and answers of the training split run through emoe's own engine with all experts resident; what the routers
chose, task by task, becomes a predictor state file beside the weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer

from corpus import TASKS, encode, read_rows
from emoe.core.generation import Sampling
from emoe.predictor import state
from emoe.predictor.learning import Learning
from emoe.store.store import ExpertStore
from emoe.worker.build import EngineOptions, build_parts
from emoe.worker.sequence import Sequence
from emoe.worker.sources import LocalSource

HALF_LIFE_TOKENS = 1e9
"""Every row counts alike."""


def learn(model: Path, data: Path, *, num_rows: int) -> Learning:
    learning = Learning(half_life_tokens=HALF_LIFE_TOKENS)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    with ExpertStore.open(model) as store:
        options = EngineOptions(expert_memory="100%", miss_policy="load", max_context=2048, max_concurrency=8)
        engine = build_parts(store, LocalSource(store), options).build_engine()
        for task in TASKS:
            rows = [row for row, _ in zip(read_rows(data, "train", task), range(num_rows), strict=False)]
            for number, example in enumerate(encode(tokenizer, rows)):
                ids = example.ids.tolist()
                sampling = Sampling(max_tokens=1)
                engine.add(
                    Sequence(
                        sequence_id=f"{task}/{number}",
                        task=task,
                        token_ids=ids,
                        num_prompt_tokens=len(ids),
                        sampling=sampling,
                        seed=0,
                    )
                )
            while engine.has_work:
                engine.step()
            learning.observe(store.digest, store.grid, task, engine.task_counts.pop(task))
            print(f"{task}: {len(rows)} rows", flush=True)
    return learning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=400, help="rows of each task")
    options = parser.parse_args()
    state.save(options.model, learn(options.model, options.data, num_rows=options.rows).memories())
    print(f"wrote {options.model / state.FILE_NAME}")


if __name__ == "__main__":
    main()
