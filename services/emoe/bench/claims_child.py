"""emoe's engine as one contestant of `emoe bench claims`, alone in its process, mostly under a memory cap.

`python -m emoe.bench.claims_child OPTIONS`. What does not fit a device's share is answered; a cgroup just kills.
"""

from __future__ import annotations

from pathlib import Path

import torch

from emoe.bench.answering import answer_questions, own_options
from emoe.bench.claims_cap import limit_device
from emoe.bench.engine import time_engine
from emoe.bench.engines import fill, open_parts
from emoe.bench.failures import BenchmarkError
from emoe.core.errors import EmoeError
from emoe.worker.build import EngineOptions, EngineParts

Answer = dict[str, object]
TOO_LARGE: Answer = {"fits": False}


def main() -> None:
    options = own_options()
    torch.set_num_threads(int(options["threads"]))
    device = str(options["device"])
    engine_options = EngineOptions(
        expert_memory=options["expert_memory"],
        miss_policy=options["miss_policy"],
        max_context=options["max_context"],
        max_concurrency=options["max_concurrency"],
        device=device,
    )
    try:
        limit_device(device, options)
        with open_parts(Path(options["model"]), engine_options) as parts:
            fill(parts)
            serve(parts, device)
    except torch.OutOfMemoryError:
        answer_questions(lambda **_asked: TOO_LARGE)
    except EmoeError as error:
        refuse(str(error))


def serve(parts: EngineParts, device: str) -> None:
    engine = parts.build_engine()

    def answer(prompts: list[list[int]], new_tokens: int) -> Answer:
        try:
            timing = time_engine(engine, prompts, new_tokens)
        except torch.OutOfMemoryError:
            return TOO_LARGE
        return {
            "fits": True,
            "prefill_seconds": timing.prefill_seconds,
            "total_seconds": timing.total_seconds,
            "expert_bytes": parts.residency.arena.num_bytes,
            "device_peak_bytes": torch.cuda.max_memory_reserved(device) if device.startswith("cuda") else None,
        }

    answer_questions(answer)


def refuse(reason: str) -> None:
    def answer(**_asked: object) -> Answer:
        raise BenchmarkError(reason)

    answer_questions(answer)


if __name__ == "__main__":
    main()
