"""One worker's part in the cluster: what it can take, what it costs there, what waits and runs there.

Each change of it is written to its row of the table, from which a policy looks over all workers at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.running import Running
from emoe.core.schedule.slack import SlackBook
from emoe.core.schedule.table import WorkerTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """What a worker can take now. `coverage`: the share of a task's demand that its resident experts meet."""

    worker_id: str
    free_sequences: int
    max_tokens_per_sequence: int
    costs: StepCosts
    coverage: Mapping[str, float] = dataclasses.field(default_factory=dict)


LEAD_STEPS = 0.5
"""Full steps of prompts that are still to be done where another one is let in: its worker never idles between them, and
the order is kept in the queue, not there."""


class WorkerLoad:
    """`prompt_tokens` are those that wait for their prefill to end, `context_tokens` those of what decodes.
    `clear_seconds`: when the prompts that wait are expected to be done."""

    __slots__ = (
        "clear_seconds",
        "context_tokens",
        "costs",
        "coverage",
        "free_sequences",
        "max_tokens",
        "num_decoding",
        "num_prefilling",
        "prompt_tokens",
        "room_tokens",
        "row",
        "slack",
        "step_seconds",
        "table",
        "tpot_counts",
        "worker_id",
        "young_slack",
    )

    def __init__(self, report: WorkerReport, table: WorkerTable, row: int) -> None:
        self.worker_id = report.worker_id
        self.table = table
        self.row = row
        """Its place in the table; negative once it has left."""
        self.num_prefilling = self.num_decoding = self.prompt_tokens = self.context_tokens = 0
        self.clear_seconds = 0.0
        self.slack = SlackBook()
        self.young_slack = SlackBook()
        self.tpot_counts: dict[float, int] = {}
        """Per-token target -> how many that decode have it."""
        self.coverage: Mapping[str, float] = {}
        self.update(report)

    def update(self, report: WorkerReport) -> None:
        self.free_sequences = report.free_sequences
        self.max_tokens = report.max_tokens_per_sequence
        self.costs = report.costs
        if report.coverage != self.coverage:
            self.table.cover(self.row, self.coverage, report.coverage)
            self.coverage = dict(report.coverage)
        self.write_all()

    def start(self, running: Running, now_seconds: float) -> None:
        request = running.request
        self.free_sequences -= 1
        self.clear_seconds = now_seconds + self.wait_seconds(request, now_seconds)
        self.prompt_tokens += request.num_prompt_tokens
        self.num_prefilling += 1
        delay = self.delay_seconds(request)
        self.slack.delay(delay)
        self.young_slack.delay(delay)
        self.put_slack(running, now_seconds)
        self.write()

    def first_token(self, running: Running, now_seconds: float) -> None:
        running.first_token_seconds = now_seconds
        running.progressed(1)
        self._count_decoding(running, 1)
        self._prompt_done(running.request, now_seconds)
        self.put_slack(running, now_seconds)
        self.write()

    def progressed(self, running: Running, num_tokens: int, now_seconds: float) -> None:
        self.context_tokens += running.progressed(num_tokens)
        self.look_at_decoding()
        self.put_slack(running, now_seconds)
        self.write()

    def end(self, running: Running, now_seconds: float) -> None:
        self.free_sequences += 1
        if running.first_token_seconds is None:
            self._prompt_done(running.request, now_seconds)
        else:
            self._count_decoding(running, -1)
        self.slack.drop(running.request.request_id)
        self.young_slack.drop(running.request.request_id)
        self.write()

    def _count_decoding(self, running: Running, change: int) -> None:
        request = running.request
        self.num_decoding += change
        self.context_tokens += change * (request.num_prompt_tokens + running.num_tokens)
        if request.tpot_seconds is not None:
            count = self.tpot_counts.pop(request.tpot_seconds, 0) + change
            if count:
                self.tpot_counts[request.tpot_seconds] = count
        self.look_at_decoding()

    def _prompt_done(self, request: QueuedRequest, now_seconds: float) -> None:
        self.num_prefilling -= 1
        self.prompt_tokens -= request.num_prompt_tokens
        self.clear_seconds = now_seconds + self.prefill_seconds(self.prompt_tokens)

    def put_slack(self, running: Running, now_seconds: float) -> None:
        """What prompts still wait there will delay it, too."""
        first, ahead = running.first_token_seconds, 0.0
        if first is None:
            first = self.clear_seconds
        elif self.prompt_tokens:
            ahead = max(0.0, self.clear_seconds - now_seconds)
            ahead = min(self.costs.prompt_token_seconds * self.prompt_tokens, ahead)
        name = running.request.request_id
        slack, young = running.slack_seconds(now_seconds, self.step_seconds, first)
        self.slack.put(name, slack - ahead)
        self.young_slack.put(name, young - ahead)

    def prefill_seconds(self, num_prompt_tokens: int) -> float:
        """`StepCosts.prefill_seconds` beside what decodes there."""
        num_steps = math.ceil(num_prompt_tokens / self.room_tokens)
        return num_steps * self.step_seconds + self.costs.prompt_token_seconds * num_prompt_tokens

    def wait_seconds(self, request: QueuedRequest, now_seconds: float) -> float:
        """From now to its first token, if it started now."""
        backlog = max(0.0, self.clear_seconds - now_seconds)
        return backlog + self.prefill_seconds(request.num_prompt_tokens) + self.missed_seconds(request)

    def missed_seconds(self, request: QueuedRequest) -> float:
        missed = self.costs.missed_token_seconds
        if not missed:
            return 0.0
        return (1.0 - self.coverage.get(request.task, 0.0)) * missed * request.num_prompt_tokens

    def delay_seconds(self, request: QueuedRequest) -> float:
        """What its prompt adds to the steps of those that run there."""
        return self.costs.prompt_token_seconds * request.num_prompt_tokens + self.missed_seconds(request)

    def look_at_decoding(self) -> None:
        """After a change of the sequences that decode there, their lengths or their targets."""
        costs = self.costs
        self.step_seconds = (
            costs.base_seconds
            + costs.sequence_seconds * self.num_decoding
            + costs.context_token_seconds * self.context_tokens
        )
        self.room_tokens = max(1, costs.step_tokens - self.num_decoding)

    def write(self) -> None:
        """What changes with the requests there."""
        row = self.row
        if row < 0:
            return
        table, costs, step = self.table, self.costs, self.step_seconds
        table.free[row] = self.free_sequences
        table.prompts[row] = self.prompt_tokens
        table.clear[row] = self.clear_seconds
        table.slack[row] = self.slack.least_seconds()
        table.young_slack[row] = self.young_slack.least_seconds()
        table.step[row] = step
        table.room[row] = self.room_tokens
        table.tpot[row] = min(self.tpot_counts) if self.tpot_counts else math.inf
        if self.free_sequences > 0:
            lead = LEAD_STEPS * (step + costs.prompt_token_seconds * self.room_tokens)
            table.ready[row] = self.clear_seconds - lead
        else:
            table.ready[row] = math.inf
        table.next_step[row] = step + costs.sequence_seconds if self.num_decoding else -math.inf

    def write_all(self) -> None:
        table, row, costs = self.table, self.row, self.costs
        table.limit[row] = self.max_tokens
        table.prompt_seconds[row] = costs.prompt_token_seconds
        table.context_seconds[row] = costs.context_token_seconds
        table.missed_seconds[row] = costs.missed_token_seconds
        num_sequences = max(1, self.free_sequences + self.num_prefilling + self.num_decoding)
        table.rows[row] = num_sequences
        table.full_step[row] = costs.base_seconds + costs.sequence_seconds * num_sequences
        self.look_at_decoding()
        self.write()
