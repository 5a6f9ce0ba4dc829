"""One contestant of `emoe bench claims` at work under a cap: a process of its own, which may not survive it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from emoe.bench.anonymous import watched
from emoe.bench.children import ChildProcess, child_process
from emoe.bench.claims_cap import MemoryCap, open_cap
from emoe.bench.claims_search import Verdict
from emoe.bench.contest_io import drop_pages
from emoe.bench.contest_prompts import prompts_of
from emoe.bench.failures import BenchmarkError

CHILD = "emoe.bench.claims_child"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """`miss_policy` load is exact mode; at a budget of 1 nothing is ever missed."""

    miss_policy: str
    budget_ratio: float

    @property
    def name(self) -> str:
        return "all resident" if self.budget_ratio == 1 else f"{self.miss_policy} at {self.budget_ratio:.3g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    prompt_tokens: int
    new_tokens: int
    batch: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probed:
    work: Work
    prefill_seconds: float
    total_seconds: float
    peak_bytes: int
    """Anonymous, of the process's life so far; on a GPU what torch took of the device."""
    expert_bytes: int


class DoesNotFitError(BenchmarkError):
    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prober:
    model: Path
    threads: int
    device: str
    deadline_seconds: float

    async def probe(self, contestant: Contestant, work: Work, limit_bytes: int | None, *, num_turns: int = 1) -> Probed:
        """The last turn. DoesNotFitError when the cap or the deadline ends it; BenchmarkError when the engine
        refuses."""
        async with self.started(contestant, work, limit_bytes) as runner:
            for number in range(1, num_turns):
                await runner.run(work, number)
            return await runner.run(work)

    @contextlib.asynccontextmanager
    async def started(self, contestant: Contestant, work: Work, limit_bytes: int | None) -> AsyncIterator[Runner]:
        """Ready for this work and less. Pages read before are dropped: whoever reads them again pays for them."""
        drop_pages(sorted(self.model.glob("*.safetensors")))
        with open_cap(self.device, limit_bytes) as cap:
            options = self._options(contestant, work) | dict(cap.child_options)
            async with child_process(
                CHILD, options, name=contestant.name, prefix=cap.prefix, own_session=True
            ) as child:
                done = False
                try:
                    yield Runner(self, child, cap, contestant)
                    done = True
                finally:
                    if not done:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(child.pid, signal.SIGKILL)

    def _options(self, contestant: Contestant, work: Work) -> dict[str, object]:
        return {
            "model": str(self.model),
            "threads": self.threads,
            "device": self.device,
            "expert_memory": f"{contestant.budget_ratio * 100:g}%",
            "miss_policy": contestant.miss_policy,
            "max_context": work.prompt_tokens + work.new_tokens,
            "max_concurrency": work.batch,
        }


class Runner:
    def __init__(self, prober: Prober, child: ChildProcess, cap: MemoryCap, contestant: Contestant) -> None:
        self._prober = prober
        self._child = child
        self._cap = cap
        self._name = contestant.name

    async def run(self, work: Work, number: int = 0) -> Probed:
        """`number` draws other prompts."""
        prompts = draw(self._prober.model, work, number)
        try:
            async with watched(self._child.pid) as watch:
                answer = await self._ask(prompts=prompts, new_tokens=work.new_tokens)
                peak_bytes = watch.peak_bytes
        except DoesNotFitError:
            raise
        except BenchmarkError as error:
            # The child's end, or what was seen of its last moments.
            if self._cap.num_kills:
                raise self._too_large() from error
            raise
        return Probed(
            work=work,
            prefill_seconds=answer["prefill_seconds"],
            total_seconds=answer["total_seconds"],
            peak_bytes=answer["device_peak_bytes"] or peak_bytes,
            expert_bytes=answer["expert_bytes"],
        )

    async def _ask(self, **question: object) -> dict[str, Any]:
        seconds = self._prober.deadline_seconds
        try:
            async with asyncio.timeout(seconds):
                answer = await self._child.ask(**question)
        except TimeoutError as error:
            message = f"{self._name}: no answer in {seconds:g} s"
            raise DoesNotFitError(message, Verdict.DEADLINE) from error
        if not answer["fits"]:
            raise self._too_large()
        return answer

    def _too_large(self) -> DoesNotFitError:
        return DoesNotFitError(f"{self._name}: needs more than the memory cap", Verdict.CAP)


def draw(model: Path, work: Work, number: int) -> list[list[int]]:
    return prompts_of(model, num_tokens=work.prompt_tokens)(work.batch, number)
