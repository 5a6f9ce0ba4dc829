"""The engine alone in its process, driven in a closed loop: what the services are measured against.

`python -m emoe.bench.engine_child OPTIONS`. Each question is a loop: `clients` sequences run at once, and one that
ends is followed by its client's next until all prompts are answered.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch

from emoe.bench.answering import answer_questions, own_options
from emoe.bench.engines import fill, new_sequence, open_parts
from emoe.bench.failures import BenchmarkError
from emoe.bench.rows import LoopSample
from emoe.worker.build import EngineOptions
from emoe.worker.engine import Engine
from emoe.worker.warmup import warm_up


def main() -> None:
    options = own_options()
    torch.set_num_threads(int(options["threads"]))
    engine_options = EngineOptions(
        expert_memory=options["expert_memory"],
        miss_policy=options["miss_policy"],
        max_context=int(options["max_context"]),
        max_concurrency=int(options["max_concurrency"]),
    )
    with open_parts(Path(options["model"]), engine_options) as parts:
        fill(parts)
        warm_up(parts)
        engine = parts.build_engine()

        def answer(prompts: list[list[list[int]]], new_tokens: int) -> dict[str, object]:
            return dataclasses.asdict(run_loop(engine, prompts, new_tokens=new_tokens))

        answer_questions(answer)


def run_loop(engine: Engine, prompts: list[list[list[int]]], *, new_tokens: int) -> LoopSample:
    """`prompts[client]` are that client's, in order."""
    sent_seconds: dict[str, float] = {}
    ttft_seconds: list[float] = []
    num_tokens = 0

    def send(client: int, number: int) -> None:
        name = f"{client}/{number}"
        sent_seconds[name] = time.perf_counter()
        engine.add(new_sequence(name, prompts[client][number], new_tokens=new_tokens))

    began = time.perf_counter()
    for client in range(len(prompts)):
        send(client, 0)
    while engine.has_work:
        events = engine.step()
        now = time.perf_counter()
        for event in events:
            if event.error:
                raise BenchmarkError(f"the engine failed: {event.error}")
            num_tokens += 1
            if event.sequence.num_completion_tokens == 1:
                ttft_seconds.append(now - sent_seconds[event.sequence.sequence_id])
            if event.finished:
                client, number = map(int, event.sequence.sequence_id.split("/"))
                if number + 1 < len(prompts[client]):
                    send(client, number + 1)
    return LoopSample(num_tokens=num_tokens, wall_seconds=time.perf_counter() - began, ttft_seconds=tuple(ttft_seconds))


if __name__ == "__main__":
    main()
