"""`emoe bench claims`: what its search finds, and what its rows say of what was measured."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from emoe.bench.claims import ALL_RESIDENT, ClaimResults, ClaimSettings, run_claims
from emoe.bench.claims_plot import draw_claims
from emoe.bench.claims_probe import Contestant, DoesNotFitError, Probed, Prober, Work
from emoe.bench.claims_report import build_notes, build_rows
from emoe.bench.claims_search import Bounds, Found, Verdict, find_largest, find_smallest
from emoe.cli.bench_claims import parse_cap, parse_one_budget

EXACT = Contestant(miss_policy="load", budget_ratio=0.25)
LASTING_BATCH = 20
"""Of the simulated prober: what fits once, but not turn after turn, is larger."""
WORK = Work(prompt_tokens=8, new_tokens=5, batch=2)


class Limit:
    """Fits up to `most`; keeps what it was asked."""

    def __init__(self, most: int, failure: Verdict = Verdict.CAP) -> None:
        self.most = most
        self.failure = failure
        self.asked: list[int] = []

    async def largest(self, size: int) -> Verdict:
        self.asked.append(size)
        return Verdict.FITS if size <= self.most else self.failure

    async def smallest(self, size: int) -> Verdict:
        self.asked.append(size)
        return Verdict.FITS if size >= self.most else self.failure


def bounds(first: int, last: int, *, precision_ratio: float = 0.1, max_looks: int = 32) -> Bounds:
    return Bounds(first=first, last=last, last_name="positions", precision_ratio=precision_ratio, max_looks=max_looks)


def largest(limit: Limit, asked: Bounds) -> Found:
    return asyncio.run(find_largest(limit.largest, asked))


@given(most=st.integers(1, 5000), first=st.integers(1, 200), last=st.integers(200, 4000))
def test_the_largest_is_found_to_within_the_precision(most: int, first: int, last: int) -> None:
    limit = Limit(most)
    found = largest(limit, bounds(first, last))
    if most < first:
        assert found == Found(size=None, ended_by="memory cap")
    elif most >= last:
        assert found == Found(size=last, ended_by="positions")
    else:
        assert found.size is not None
        assert found.size <= most < found.size + max(1, 0.1 * found.size) + 1
        assert found.ended_by == "memory cap"
    assert len(set(limit.asked)) == len(limit.asked)
    assert max(limit.asked) <= last


def test_the_largest_says_when_time_kept_a_larger_one_away() -> None:
    assert largest(Limit(100, Verdict.DEADLINE), bounds(1, 4000)).ended_by == "deadline"


def test_the_largest_is_looked_for_no_more_often_than_allowed() -> None:
    limit = Limit(3000)
    assert largest(limit, bounds(1, 4000, max_looks=5)) == Found(size=8, ended_by="number of probes")
    assert limit.asked == [1, 4000, 2, 4, 8]


def test_what_holds_everything_is_asked_twice() -> None:
    limit = Limit(5000)
    assert largest(limit, bounds(1, 4000)) == Found(size=4000, ended_by="positions")
    assert limit.asked == [1, 4000]


@given(least=st.integers(101, 1000))
def test_the_smallest_is_found_to_within_the_precision(least: int) -> None:
    found = asyncio.run(find_smallest(Limit(least).smallest, low=100, high=200, precision=4, max_looks=40))
    assert found is not None
    assert least <= found <= least + 4


def test_no_smallest_is_made_up_where_nothing_fits() -> None:
    limit = Limit(10**9)
    assert asyncio.run(find_smallest(limit.smallest, low=100, high=200, precision=4, max_looks=3)) is None
    assert len(limit.asked) == 3


def probed(seconds: float, *, peak_bytes: int = 0, expert_bytes: int = 0) -> Probed:
    return Probed(
        work=WORK, prefill_seconds=seconds / 2, total_seconds=seconds, peak_bytes=peak_bytes, expert_bytes=expert_bytes
    )


def whole_results() -> ClaimResults:
    times = {ALL_RESIDENT: [probed(4.0), probed(2.0), probed(1.0)], EXACT: [probed(2.0), probed(1.0), probed(0.5)]}
    return ClaimResults(
        cap_bytes=2**30,
        memory={
            ALL_RESIDENT: probed(1.0, peak_bytes=2**30, expert_bytes=2**29),
            EXACT: probed(1.0, peak_bytes=2**29, expert_bytes=2**27),
        },
        batches={ALL_RESIDENT: Found(size=2, ended_by="memory cap"), EXACT: Found(size=9, ended_by="--max-batch")},
        prompts={ALL_RESIDENT: Found(size=None, ended_by="memory cap"), EXACT: Found(size=512, ended_by="deadline")},
        single=times,
        shared=times,
        shared_batch=2,
        own=times,
    )


def test_each_claim_stands_beside_the_papers_ratio() -> None:
    rows = {row.claim: row for row in build_rows(whole_results())}
    assert {name: (row.ours_ratio, row.paper_ratio) for name, row in rows.items()} == {
        "memory": (0.5, 0.2),
        "expert memory": (0.25, None),
        "latency": (0.5, 0.83),
        "first token": (0.5, None),
        "further tokens": (0.5, None),
        "throughput, batch 2": (2.0, None),
        "throughput, own batch": (2.0, 1.5),
        "largest batch": (4.5, 4.5),
        "longest prompt": (None, 40.0),
    }
    assert (rows["further tokens"].all_resident, rows["throughput, own batch"].ours) == (250.0, 10.0)
    assert rows["latency"].samples == ((4000.0, 2000.0), (2000.0, 1000.0), (1000.0, 500.0))
    assert (rows["largest batch"].ended_by, rows["longest prompt"].ended_by) == ("--max-batch", "deadline")


def test_a_run_that_was_broken_off_gives_what_there_is() -> None:
    results = ClaimResults(memory={ALL_RESIDENT: probed(1.0, peak_bytes=4), EXACT: probed(1.0, peak_bytes=2)})
    assert {row.claim for row in build_rows(results)} == {"memory", "expert memory"}
    assert build_rows(ClaimResults()) == []


def test_the_notes_say_where_the_cap_came_from_and_what_all_resident_reached() -> None:
    notes = build_notes(whole_results(), ClaimSettings(budget_ratio=0.25, threads=1))
    assert any("Memory cap: 1024 MiB" in note and "least for a prompt of 128" in note for note in notes)
    assert "longest prompt of all resident: none, ended by memory cap" in notes


def test_a_picture_is_drawn_of_each_claim_that_has_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = draw_claims(build_rows(whole_results()), tmp_path / "plots")
    assert {path.name for path in drawn} >= {"claims-memory.png", "claims-throughput-own-batch.png"}
    assert "claims-longest-prompt.png" not in {path.name for path in drawn}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


class SimulatedProber:
    """Takes memory by the prompts' tokens; all resident, four times as much beside."""

    def __init__(self) -> None:
        self.probes: list[tuple[Contestant, Work, int | None]] = []

    async def probe(self, contestant: Contestant, work: Work, limit_bytes: int | None, *, num_turns: int = 1) -> Probed:
        self.probes += [(contestant, work, limit_bytes)] * num_turns
        peak_bytes = int(contestant.budget_ratio * 4000) * 2**20 + work.batch * work.prompt_tokens * 2**20
        if limit_bytes is not None and peak_bytes > limit_bytes:
            raise DoesNotFitError("too large", Verdict.CAP)
        return Probed(work=work, prefill_seconds=1.0, total_seconds=2.0, peak_bytes=peak_bytes, expert_bytes=1)

    @contextlib.asynccontextmanager
    async def started(
        self, contestant: Contestant, _work: Work, limit_bytes: int | None
    ) -> AsyncIterator[SimulatedRunner]:
        yield SimulatedRunner(self, contestant, limit_bytes)


class SimulatedRunner:
    def __init__(self, prober: SimulatedProber, contestant: Contestant, limit_bytes: int | None) -> None:
        self._prober = prober
        self._contestant = contestant
        self._limit_bytes = limit_bytes

    async def run(self, work: Work, _number: int = 0) -> Probed:
        if work.batch > LASTING_BATCH:
            raise DoesNotFitError("too large in turns", Verdict.CAP)
        return await self._prober.probe(self._contestant, work, self._limit_bytes)


async def test_a_run_finds_the_cap_and_every_claim_under_it() -> None:
    prober, results, lines = SimulatedProber(), ClaimResults(), list[str]()
    settings = ClaimSettings(budget_ratio=0.25, threads=1, policies=("load",), max_prompt=4096, repeats=2)
    await run_claims(cast("Prober", prober), settings, results, say=lines.append)
    assert results.cap_bytes is not None
    assert 4128 * 2**20 <= results.cap_bytes <= 1.005 * 4132 * 2**20
    rows = {row.claim: row for row in build_rows(results)}
    assert (rows["largest batch"].all_resident, rows["largest batch"].ended_by) == (1.0, "memory cap")
    assert rows["largest batch"].ours == pytest.approx(24, abs=3)
    assert rows["longest prompt"].ours == pytest.approx(3140, rel=0.1)
    assert {limit for _, _, limit in prober.probes[-3:]} == {results.cap_bytes}
    assert any("a batch of" in note for note in results.notes), "more fitted once than lasts in turns"
    assert [probed.work.batch for probed in results.own[EXACT]] == [18, 18], "an eighth less, twice"
    assert results.shared is results.single


@pytest.mark.parametrize("text", ["100%", "25%,50%", "0%", "a quarter"])
def test_a_budget_that_is_not_one_share_below_all_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_one_budget(text)


def test_a_cap_is_a_size() -> None:
    assert (parse_one_budget("25%"), parse_cap(None), parse_cap("2GiB")) == (0.25, None, 2**31)
    for text in ("50%", "much", "0"):
        with pytest.raises(typer.BadParameter, match="must be a size"):
            parse_cap(text)
