"""The desk between arriving requests and the workers: what waits, what runs, who is let in and who gives way.

One state machine for the service's dispatcher and for the simulator: it has no clock and does no I/O. A request that
has arrived waits, runs, or has left: refused, or ended in exactly one way.
"""

from __future__ import annotations

import dataclasses

from emoe.core.schedule.cluster import Cluster
from emoe.core.schedule.decisions import DecisionKind, DecisionLog
from emoe.core.schedule.fair import FairAdmission
from emoe.core.schedule.policy import Admission, AdmissionPolicy
from emoe.core.schedule.rate import TokenRate
from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.shares import TenantShares
from emoe.core.schedule.writing import DecisionWriter

MIN_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 30.0
FIRST_RETRY_SECONDS = 1.0
"""Before a rate was measured."""
LOOK_SECONDS = 0.02
"""A policy may hold requests for time to pass rather than for an event: it is asked again after so long."""
PROGRESS_TOKENS = 8
"""So many tokens of an answer pass before its place in the cluster's forecasts is corrected."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    request_id: str
    reason: str
    retry_after_seconds: float


@dataclasses.dataclass(slots=True)
class _Running:
    request: QueuedRequest
    worker_id: str
    num_tokens: int = 0
    """Of the answer so far."""
    num_tokens_told: int = 0
    """As the cluster knows."""
    has_begun: bool = False


class Desk:
    """`decisions` is None where nobody wants a record. All times are seconds on the caller's one clock.

    `admit` is to be asked after every arrival, first token, end and worker's report, and every LOOK_SECONDS while
    requests wait."""

    def __init__(
        self,
        *,
        policy: AdmissionPolicy,
        cluster: Cluster,
        max_requests: int,
        max_bytes: int,
        decisions: DecisionLog | None = None,
    ) -> None:
        self._policy = policy
        self._fair = policy if isinstance(policy, FairAdmission) else None
        """It counts what each tenant gets."""
        self._cluster = cluster
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._writer = DecisionWriter(decisions, cluster) if decisions is not None else None
        policy.on_deferred = self._write_deferred if decisions is not None else None
        self._waiting: dict[str, QueuedRequest] = {}
        self._running: dict[str, _Running] = {}
        self._shares = TenantShares(max_requests=max_requests, max_bytes=max_bytes)
        self._waiting_bytes = 0
        self._waiting_tokens = 0
        self._rate = TokenRate()
        self.num_admitted = 0
        self.num_refused = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting_bytes(self) -> int:
        return self._waiting_bytes

    @property
    def num_entries(self) -> int:
        """In all tables of requests: 0 when nothing waits or runs."""
        num_charged = self._fair.num_charged if self._fair is not None else 0
        return len(self._waiting) + len(self._running) + len(self._policy) + len(self._shares) + num_charged

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting or request_id in self._running

    def arrive(self, request: QueuedRequest, now_seconds: float) -> tuple[Refused, ...]:
        """Empty: it waits. Otherwise who gave way: the newcomer, or others whose tenants have more of the queue."""
        self._look(now_seconds)
        refused: list[Refused] = []
        while bound := self._exceeded(request):
            loser = self._shares.gives_way(request)
            refused.append(self._refuse(loser, bound, now_seconds))
            if loser is request:
                return tuple(refused)
        self._shares.add(request)
        self._wait(request, now_seconds)
        return tuple(refused)

    def requeue(self, request: QueuedRequest, now_seconds: float, *, reason: str = "") -> None:
        """Its worker died or was full. It was let in before: the bounds do not apply, and it gives way to nobody."""
        self._look(now_seconds)
        running = self._running.pop(request.request_id, None)
        if running is not None:
            self._cluster.end(request.request_id, now_seconds)
        self._wait(request, now_seconds)
        worker_id = running.worker_id if running is not None else ""
        self._write(DecisionKind.REQUEUED, request, now_seconds, reason=reason, worker_id=worker_id)

    def admit(self, now_seconds: float) -> list[Admission]:
        """All that may start now, each started in the cluster."""
        self._look(now_seconds)
        admissions = []
        while self._waiting and (admission := self._policy.pick(self._cluster, now_seconds)) is not None:
            self._start(admission, now_seconds)
            admissions.append(admission)
        return admissions

    def first_token(self, request_id: str, now_seconds: float) -> None:
        running = self._running.get(request_id)
        if running is None or running.has_begun:
            return
        self._look(now_seconds)
        running.has_begun = True
        self._rate.add(running.request.num_prompt_tokens, is_busy=bool(self._waiting))
        self._cluster.first_token(request_id, now_seconds)

    def progressed(self, request_id: str, num_tokens: int, now_seconds: float) -> None:
        """Tokens of the answer so far."""
        running = self._running.get(request_id)
        if running is None or num_tokens <= running.num_tokens:
            return
        self._look(now_seconds)
        self._rate.add(num_tokens - running.num_tokens, is_busy=bool(self._waiting))
        running.num_tokens = num_tokens
        if num_tokens >= running.num_tokens_told + PROGRESS_TOKENS:
            running.num_tokens_told = num_tokens
            self._cluster.progressed(request_id, num_tokens, now_seconds)
            if self._fair is not None:
                self._fair.progressed(request_id, num_tokens)

    def end(self, request_id: str, now_seconds: float, kind: DecisionKind, *, reason: str = "") -> None:
        """However it ends, waiting or running, it is out of every table. Whoever has left already is no error."""
        self._look(now_seconds)
        worker_id = ""
        if (running := self._running.pop(request_id, None)) is not None:
            self._cluster.end(request_id, now_seconds)
            if self._fair is not None:
                self._fair.ended(request_id, running.num_tokens)
            request, worker_id = running.request, running.worker_id
        elif (waiting := self._waiting.get(request_id)) is not None:
            request = waiting
            self._policy.discard(request_id)
            self._unwait(request)
        else:
            return
        self._write(kind, request, now_seconds, reason=reason, worker_id=worker_id)

    def retry_after_seconds(self, now_seconds: float) -> float:
        """The tokens that wait, at the rate that the cluster last had while requests waited, between two bounds."""
        self._look(now_seconds)
        rate = self._rate.tokens_per_second
        if rate is None:
            return FIRST_RETRY_SECONDS
        return min(max(self._waiting_tokens / rate, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)

    def _look(self, now_seconds: float) -> None:
        if now_seconds != self._rate.last_seconds:
            self._rate.look(now_seconds, is_busy=bool(self._waiting))

    def _exceeded(self, newcomer: QueuedRequest) -> str:
        """Which bound it would exceed. An empty queue always has room for one: it may start at once."""
        if not self._waiting:
            return ""
        if len(self._waiting) >= self._max_requests:
            return f"{len(self._waiting)} requests are waiting, the most that this scheduler holds"
        if self._waiting_bytes + newcomer.size_bytes > self._max_bytes:
            return f"the waiting requests take {self._waiting_bytes} bytes, of {self._max_bytes} at most"
        return ""

    def _refuse(self, loser: QueuedRequest, reason: str, now_seconds: float) -> Refused:
        if loser.request_id in self._waiting:
            reason = f"{reason}; tenant {loser.tenant!r} has most of them, and its newest gives way"
            self._policy.discard(loser.request_id)
            self._unwait(loser)
        self.num_refused += 1
        seconds = self.retry_after_seconds(now_seconds)
        self._write(DecisionKind.REFUSED, loser, now_seconds, reason=f"{reason}; try again in {seconds:.1f} s")
        return Refused(request_id=loser.request_id, reason=reason, retry_after_seconds=seconds)

    def _wait(self, request: QueuedRequest, now_seconds: float) -> None:
        self._waiting[request.request_id] = request
        self._waiting_bytes += request.size_bytes
        self._waiting_tokens += request.num_prompt_tokens + request.num_expected_tokens
        self._policy.add(request, now_seconds)

    def _unwait(self, request: QueuedRequest) -> None:
        del self._waiting[request.request_id]
        self._shares.discard(request)
        self._waiting_bytes -= request.size_bytes
        self._waiting_tokens -= request.num_prompt_tokens + request.num_expected_tokens

    def _start(self, admission: Admission, now_seconds: float) -> None:
        request = admission.request
        self._unwait(request)
        self._running[request.request_id] = _Running(request, admission.worker_id)
        self._cluster.start(request, admission.worker_id, now_seconds)
        self.num_admitted += 1
        if self._writer is not None:
            self._writer.write(
                DecisionKind.ADMITTED,
                request,
                now_seconds,
                num_waiting=len(self._waiting),
                reason=admission.reason,
                worker_id=admission.worker_id,
                predicted_ttft_seconds=admission.predicted_ttft_seconds,
                coverage=admission.coverage,
            )

    def _write_deferred(self, request: QueuedRequest, now_seconds: float, why: str) -> None:
        self._write(DecisionKind.DEFERRED, request, now_seconds, reason=why)

    def _write(
        self, kind: DecisionKind, request: QueuedRequest, now_seconds: float, *, reason: str, worker_id: str = ""
    ) -> None:
        if self._writer is not None:
            self._writer.write(
                kind, request, now_seconds, num_waiting=len(self._waiting), reason=reason, worker_id=worker_id
            )
