"""What every run of an evaluation shares: the model, what was learnt beforehand, the rows as all experts answer them.

Runs requests through the model with a strategy and says how far it is. Does not know what is compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from emoe.core.planning import PLANNERS
from emoe.eval.memory import PromptMemory, embed_prompt
from emoe.eval.profile import RoutingProfile, frequency
from emoe.eval.rows import EncodedRow
from emoe.eval.scoring import ScoringModel
from emoe.eval.strategies import AllResident, Known, Variant
from emoe.eval.streams import ResidencyStrategy, Running, Stream, run_with

Say = Callable[[str], None]
Rows = Mapping[str, Sequence[EncodedRow]]
SAY_EVERY_SECONDS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """`num_together` requests share residents where requests run together; these are chosen every `refresh_tokens`.

    `first_token_waits`: as `Stream` has it.
    """

    num_together: int = 8
    refresh_tokens: int = 64
    first_token_waits: bool = False
    planner: str = "global"
    seed: int = 0

    def stream(self, requests: list[Running], *, num_together: int | None = None) -> Stream:
        return Stream(requests=requests, num_together=num_together, first_token_waits=self.first_token_waits)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Harness:
    """`full`: the judged rows, run with all experts resident. `memory` may lack where no strategy needs it."""

    model: ScoringModel
    profile: RoutingProfile
    memory: PromptMemory | None
    full: Mapping[EncodedRow, Running]
    conditions: Conditions
    say: Say

    @classmethod
    def open(
        cls,
        model: ScoringModel,
        judged: Rows,
        *,
        profile: RoutingProfile,
        memory: PromptMemory | None,
        conditions: Conditions,
        say: Say,
    ) -> Harness:
        """Runs the rows with all experts resident, once."""
        rows = [row for part in judged.values() for row in part]
        streams = [conditions.stream([Running(row=row, task=row.task)]) for row in rows]
        everybody = AllResident()
        run_all(
            model,
            [(stream, everybody) for stream in streams],
            refresh_tokens=conditions.refresh_tokens,
            say=say,
            what="all experts resident",
        )
        return cls(
            model=model,
            profile=profile,
            memory=memory,
            full={request.row: request for stream in streams for request in stream.requests},
            conditions=conditions,
            say=say,
        )

    def known(self, *, num_slots: int) -> Known:
        return Known(
            profile=self.profile,
            memory=self.memory,
            grid=self.model.grid,
            num_slots=num_slots,
            planner=PLANNERS[self.conditions.planner],
            seed=self.conditions.seed,
        )

    def begin(self, row: EncodedRow, *, task: str | None = None) -> Running:
        """A request that knows what a strategy may: `task` as it is named to the system, the row's own unless given."""
        full = self.full[row]
        return Running(
            row=row,
            task=task or row.task,
            future=tuple(full.phases),
            embedding=embed_prompt(self.model, row),
            first_gate=frequency(full.phases[0])[self.model.grid.moe_layers[0]],
        )

    def run(self, streams: Sequence[tuple[Stream, ResidencyStrategy]], variant: Variant, *, what: str) -> None:
        with _calibrated(self.model, variant):
            run_all(self.model, streams, refresh_tokens=self.conditions.refresh_tokens, say=self.say, what=what)


def run_all(
    model: ScoringModel,
    streams: Sequence[tuple[Stream, ResidencyStrategy]],
    *,
    refresh_tokens: int,
    say: Say,
    what: str,
) -> None:
    """To their ends, saying how far it is."""
    num_all = sum(len(stream.requests) for stream, _ in streams)
    said_at = time.monotonic()
    for num_done, _ in enumerate(run_with(streams, model, refresh_tokens=refresh_tokens), start=1):
        if num_done == num_all or time.monotonic() - said_at >= SAY_EVERY_SECONDS:
            said_at = time.monotonic()
            say(f"{what}: {num_done} of {num_all}")


@contextlib.contextmanager
def _calibrated(model: ScoringModel, variant: Variant) -> Iterator[None]:
    model.calibrated = variant.calibrated
    try:
        yield
    finally:
        model.calibrated = False
