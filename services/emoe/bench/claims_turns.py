"""Contestants under their caps take turns at their work, so that what the machine does beside it falls on all alike.

Each has a process that stays, and waits while another works. One that dies of its cap in a turn is started anew with a
smaller batch: that it fitted once was luck.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

from emoe.bench.claims_probe import Contestant, DoesNotFitError, Probed, Prober, Runner, Work

MAX_STARTS = 3
Taken = dict[Contestant, list[Probed]]
Note = Callable[[str], None]


async def take_turns(
    prober: Prober, works: Mapping[Contestant, Work], limit_bytes: int | None, *, repeats: int, note: Note
) -> Taken:
    """Each one's rounds; fewer, or none, of one that died: a note says so. `Probed.work` is what it was asked."""
    smaller = dict(works)
    for start in range(MAX_STARTS):
        taken, died = await _rounds(prober, smaller, limit_bytes, repeats)
        if not died or start == MAX_STARTS - 1:
            break
        for contestant in died:
            batch = smaller[contestant].batch * 7 // 8
            if not batch:
                note(f"{contestant.name}: did not survive its turns at one prompt; left out")
                del smaller[contestant]
                continue
            note(f"{contestant.name}: a batch of {smaller[contestant].batch} fitted once but not in turns; {batch} now")
            smaller[contestant] = dataclasses.replace(smaller[contestant], batch=batch)
    return {contestant: rounds for contestant, rounds in taken.items() if len(rounds) == repeats}


async def _rounds(
    prober: Prober, works: Mapping[Contestant, Work], limit_bytes: int | None, repeats: int
) -> tuple[Taken, list[Contestant]]:
    """Ends with the first that dies: all begin again, so that rounds stay pairs."""
    taken: Taken = {contestant: [] for contestant in works}
    names = list(works)
    if not names:
        return taken, []
    async with contextlib.AsyncExitStack() as stack:
        runners: dict[Contestant, Runner] = {}
        for contestant, work in works.items():
            runners[contestant] = await stack.enter_async_context(prober.started(contestant, work, limit_bytes))
            try:
                await runners[contestant].run(work)
            except DoesNotFitError:
                return taken, [contestant]
        for number in range(1, repeats + 1):
            first = number % len(names)
            for contestant in names[first:] + names[:first]:
                try:
                    taken[contestant].append(await runners[contestant].run(works[contestant], number))
                except DoesNotFitError:
                    return taken, [contestant]
    return taken, []
