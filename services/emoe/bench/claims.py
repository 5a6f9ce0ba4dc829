"""`emoe bench claims`: what emoe gains over all experts resident where memory is capped for both.

The cap is the least at which all experts resident serve the settings' prompt, found by trying, and a little slack. In
turn: memory without a cap, the cap, the largest batch, times, the longest prompt. What was measured stays readable
while the run goes on, so that it may be broken off.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from emoe.bench.claims_probe import Contestant, DoesNotFitError, Probed, Prober, Work
from emoe.bench.claims_search import Bounds, Found, Verdict, find_largest, find_smallest
from emoe.bench.claims_turns import take_turns
from emoe.bench.failures import BenchmarkError

CAP_PRECISION_BYTES = 4 * 1024 * 1024
CAP_TURNS = 2
"""Of a probe in the search for the cap: what serves one answer may not serve the next."""
MAX_LOOKS = 16
"""Of one search."""
ALL_RESIDENT = Contestant(miss_policy="load", budget_ratio=1.0)
POLICIES = ("reroute", "load")

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimSettings:
    """`memory_cap_bytes` None: found. `probe_seconds`: a probe that takes longer counts as one that does not fit."""

    budget_ratio: float
    threads: int
    policies: tuple[str, ...] = POLICIES
    device: str = "cpu"
    memory_cap_bytes: int | None = None
    slack_ratio: float = 0.005
    prompt_tokens: int = 128
    new_tokens: int = 32
    max_prompt: int | None = None
    max_batch: int = 256
    precision_ratio: float = 0.1
    probe_seconds: float = 120.0
    repeats: int = 5

    @property
    def work(self) -> Work:
        return Work(prompt_tokens=self.prompt_tokens, new_tokens=self.new_tokens)

    @property
    def contestants(self) -> tuple[Contestant, ...]:
        """All resident first."""
        ours = (Contestant(miss_policy=policy, budget_ratio=self.budget_ratio) for policy in self.policies)
        return (ALL_RESIDENT, *ours)


Times = Mapping[Contestant, Sequence[Probed]]


@dataclasses.dataclass(kw_only=True)
class ClaimResults:
    """Filled as the run goes on."""

    cap_bytes: int | None = None
    memory: dict[Contestant, Probed] = dataclasses.field(default_factory=dict)
    batches: dict[Contestant, Found] = dataclasses.field(default_factory=dict)
    prompts: dict[Contestant, Found] = dataclasses.field(default_factory=dict)
    single: Times = dataclasses.field(default_factory=dict)
    """One prompt at a time."""
    shared: Times = dataclasses.field(default_factory=dict)
    """At the largest batch of the one that serves least."""
    shared_batch: int | None = None
    own: Times = dataclasses.field(default_factory=dict)
    """Each at its own largest batch."""
    notes: list[str] = dataclasses.field(default_factory=list)


async def run_claims(prober: Prober, settings: ClaimSettings, results: ClaimResults, *, say: Say) -> None:
    """`results` has what was measured when this ends early."""
    run = _Run(prober, settings, results, say)
    await run.memory()
    await run.cap()
    for contestant in results.memory:
        results.batches[contestant] = await run.largest_batch(contestant)
    await run.times()
    for contestant in results.memory:
        results.prompts[contestant] = await run.longest_prompt(contestant)


class _Run:
    def __init__(self, prober: Prober, settings: ClaimSettings, results: ClaimResults, say: Say) -> None:
        self._prober = prober
        self._settings = settings
        self._results = results
        self._say = say

    async def memory(self) -> None:
        """Who is refused here takes no further part; without all resident there is nothing to compare."""
        for contestant in self._settings.contestants:
            try:
                probed = await self._prober.probe(contestant, self._settings.work, None)
            except BenchmarkError as error:
                if contestant == ALL_RESIDENT:
                    raise
                self._note(f"{contestant.name}: not measured: {error}")
                continue
            self._results.memory[contestant] = probed
            self._say(f"memory without a cap, {contestant.name}: {probed.peak_bytes / 2**20:.0f} MiB")

    async def cap(self) -> None:
        settings, peak_bytes = self._settings, self._results.memory[ALL_RESIDENT].peak_bytes
        if settings.memory_cap_bytes is not None:
            self._results.cap_bytes = settings.memory_cap_bytes
            return
        least = await find_smallest(
            lambda size: self._look(
                ALL_RESIDENT, settings.work, size, f"a cap of {size / 2**20:.0f} MiB", num_turns=CAP_TURNS
            ),
            low=int(peak_bytes * 0.95),
            high=int(peak_bytes * 1.05),
            precision=CAP_PRECISION_BYTES,
            max_looks=MAX_LOOKS,
        )
        if least is None:
            raise BenchmarkError(
                "no memory cap was found at which all experts resident serve; give --memory-cap a size"
            )
        self._results.cap_bytes = int(least * (1 + settings.slack_ratio))
        self._say(f"the memory cap: {self._results.cap_bytes / 2**20:.0f} MiB")

    async def largest_batch(self, contestant: Contestant) -> Found:
        def look(batch: int) -> Awaitable[Verdict]:
            work = dataclasses.replace(self._settings.work, batch=batch)
            return self._look(contestant, work, self._results.cap_bytes, f"{batch} prompts at once")

        return await find_largest(look, self._bounds(1, self._settings.max_batch, "--max-batch"))

    async def longest_prompt(self, contestant: Contestant) -> Found:
        settings = self._settings
        assert settings.max_prompt is not None, "whoever runs this names the longest"

        def look(prompt_tokens: int) -> Awaitable[Verdict]:
            work = dataclasses.replace(settings.work, prompt_tokens=prompt_tokens)
            return self._look(contestant, work, self._results.cap_bytes, f"a prompt of {prompt_tokens} tokens")

        return await find_largest(look, self._bounds(settings.prompt_tokens, settings.max_prompt, "longest allowed"))

    async def times(self) -> None:
        settings, results = self._settings, self._results
        serving = {one: found.size for one, found in results.batches.items() if found.size is not None}
        if ALL_RESIDENT not in serving:
            return
        works = dict.fromkeys(serving, settings.work)
        results.single = await self._turns(works, "one prompt at a time")
        results.shared_batch = min(serving.values())
        shared = dict.fromkeys(serving, dataclasses.replace(settings.work, batch=results.shared_batch))
        what = f"{results.shared_batch} prompts at once"
        results.shared = results.single if shared == works else await self._turns(shared, what)
        own = {one: dataclasses.replace(settings.work, batch=batch) for one, batch in serving.items()}
        results.own = results.shared if own == shared else await self._turns(own, "each at its largest batch")

    async def _turns(self, works: Mapping[Contestant, Work], what: str) -> Times:
        self._say(f"{what}: {self._settings.repeats} rounds")
        cap_bytes = self._results.cap_bytes
        return await take_turns(self._prober, works, cap_bytes, repeats=self._settings.repeats, note=self._note)

    async def _look(
        self, contestant: Contestant, work: Work, limit_bytes: int | None, what: str, *, num_turns: int = 1
    ) -> Verdict:
        began, verdict = time.monotonic(), Verdict.FITS
        try:
            await self._prober.probe(contestant, work, limit_bytes, num_turns=num_turns)
        except DoesNotFitError as error:
            verdict = error.verdict
        self._say(f"{contestant.name}: {what}: {verdict} ({time.monotonic() - began:.0f} s)")
        return verdict

    def _bounds(self, first: int, last: int, last_name: str) -> Bounds:
        return Bounds(
            first=first,
            last=max(first, last),
            last_name=last_name,
            precision_ratio=self._settings.precision_ratio,
            max_looks=MAX_LOOKS,
        )

    def _note(self, line: str) -> None:
        self._results.notes.append(line)
        self._say(line)
