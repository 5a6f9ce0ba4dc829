"""Tenants share the workers: each has a queue of the same policy, and the one that was served least has its turn.

The counters are those of VTC (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024, algorithm 2): a
tenant that comes back is lifted to the least of those that wait, so that idle time cannot be saved up. With one tenant
the policy's own order is all there is; each queue of several judges the workers as if it had them alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from emoe.core.schedule.cluster import Cluster
from emoe.core.schedule.policy import Admission, AdmissionPolicy
from emoe.core.schedule.request import QueuedRequest

ANSWER_TOKEN_WEIGHT = 2.0
"""Of an answer's token, against a prompt's: as in the paper."""
MAX_TENANTS_KEPT = 1024
"""Counters of tenants that have nothing waiting: beyond so many the one that left first is forgotten."""
MAX_SPARE_QUEUES = 16
MAX_LOOKS = 8
"""Tenants that one pick tries."""


class FairAdmission:
    def __init__(self, make: Callable[[], AdmissionPolicy]) -> None:
        self._make = make
        self._spares = [make()]
        """Empty queues, to be used again."""
        self.name = self._spares[0].name
        self._queues: dict[str, AdmissionPolicy] = {}
        """Of the tenants that have something waiting."""
        self._tenants: dict[str, str] = {}
        """Request -> tenant."""
        self._served: dict[str, float] = {}
        """Weighted tokens."""
        self._gone: dict[str, None] = {}
        """Tenants with a counter and nothing waiting, in the order in which they left."""
        self._turns: list[tuple[float, str]] = []
        """A heap of (served, tenant); entries of others than the waiting tenants' present ones are skipped."""

    def __len__(self) -> int:
        return len(self._tenants)

    @property
    def num_tenants_kept(self) -> int:
        """That have nothing waiting."""
        return len(self._gone)

    def add(self, request: QueuedRequest, now_seconds: float) -> None:
        self.discard(request.request_id)
        tenant = request.tenant
        if tenant not in self._queues:
            self._come(tenant)
        self._tenants[request.request_id] = tenant
        self._queues[tenant].add(request, now_seconds)

    def discard(self, request_id: str) -> None:
        tenant = self._tenants.pop(request_id, None)
        if tenant is None:
            return
        self._queues[tenant].discard(request_id)
        self._leave_if_empty(tenant)

    def pick(self, cluster: Cluster, now_seconds: float) -> Admission | None:
        if not self._tenants or cluster.num_free_sequences <= 0:
            return None
        if len(self._queues) == 1:
            return self._pick_from_only(cluster, now_seconds)
        tried: list[str] = []
        admission = None
        while admission is None and len(tried) < MAX_LOOKS and (tenant := self._next_tenant()) is not None:
            heapq.heappop(self._turns)
            admission = self._queues[tenant].pick(cluster, now_seconds) if tenant not in tried else None
            tried.append(tenant)
        for tenant in set(tried):
            heapq.heappush(self._turns, (self._served[tenant], tenant))
        if admission is not None:
            self._charge(admission.request)
        return admission

    def _pick_from_only(self, cluster: Cluster, now_seconds: float) -> Admission | None:
        (queue,) = self._queues.values()
        admission = queue.pick(cluster, now_seconds)
        if admission is not None:
            self._turns.clear()
            self._charge(admission.request)
        return admission

    def _next_tenant(self) -> str | None:
        """Of those that wait the one that was served least; outdated entries go."""
        while self._turns:
            served, tenant = self._turns[0]
            if tenant in self._queues and self._served[tenant] == served:
                return tenant
            heapq.heappop(self._turns)
        return None

    def _charge(self, request: QueuedRequest) -> None:
        tenant = request.tenant
        del self._tenants[request.request_id]
        self._served[tenant] += request.num_prompt_tokens + ANSWER_TOKEN_WEIGHT * request.num_expected_tokens
        heapq.heappush(self._turns, (self._served[tenant], tenant))
        self._leave_if_empty(tenant)

    def _come(self, tenant: str) -> None:
        self._gone.pop(tenant, None)
        first = self._next_tenant()
        least = self._served[first] if first is not None else 0.0
        self._served[tenant] = max(self._served.get(tenant, 0.0), least)
        self._queues[tenant] = self._spares.pop() if self._spares else self._make()
        heapq.heappush(self._turns, (self._served[tenant], tenant))

    def _leave_if_empty(self, tenant: str) -> None:
        queue = self._queues[tenant]
        if len(queue):
            return
        del self._queues[tenant]
        if len(self._spares) < MAX_SPARE_QUEUES:
            self._spares.append(queue)
        self._gone[tenant] = None
        if len(self._gone) > MAX_TENANTS_KEPT:
            forgotten = next(iter(self._gone))
            del self._gone[forgotten], self._served[forgotten]
        if len(self._turns) > 2 * len(self._queues) + MAX_TENANTS_KEPT:
            self._turns = [(self._served[waiting], waiting) for waiting in self._queues]
            heapq.heapify(self._turns)
