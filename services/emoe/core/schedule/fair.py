"""Tenants share the workers: each has a queue of the same policy, and the one that was served least has its turn.

`TenantCounters` says who was. An admission charges the prompt and the answer as long as foretold; what is longer is
charged as it comes, and what was not written is given back at the end (the variant of VTC that foretells lengths). With
one tenant the policy's own order is all there is; each queue of several judges the workers as if it had them alone.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable

from emoe.core.schedule.cluster import Cluster
from emoe.core.schedule.counters import Account, TenantCounters, Turn
from emoe.core.schedule.policy import Admission, AdmissionPolicy, OnDeferred
from emoe.core.schedule.request import QueuedRequest

ANSWER_TOKEN_WEIGHT = 2.0
"""Of an answer's token, against a prompt's: as in the paper."""
MAX_SPARE_QUEUES = 16
MAX_LOOKS = 8
"""Tenants that one pick tries."""
NUM_LEAST_SERVED = 4
"""Of them, where there are more: the least served, tried by every pick. The others are who comes after those that the
last pick tried in vain, so that each gets a look in the end."""


@dataclasses.dataclass(slots=True)
class _Charge:
    """Of one request that runs."""

    account: Account
    num_prompt_tokens: int
    num_answer_tokens: int

    @property
    def weighted_tokens(self) -> float:
        return self.num_prompt_tokens + ANSWER_TOKEN_WEIGHT * self.num_answer_tokens


class FairAdmission:
    def __init__(self, make: Callable[[], AdmissionPolicy]) -> None:
        self._make = make
        self._spares = [make()]
        """Empty queues, to be used again."""
        self.name = self._spares[0].name
        self._on_deferred: OnDeferred | None = None
        self._queues: dict[str, AdmissionPolicy] = {}
        """Of the tenants that have something waiting."""
        self._tenants: dict[str, str] = {}
        """Request that waits -> tenant."""
        self._charges: dict[str, _Charge] = {}
        """Request that runs -> what its tenant was charged for it."""
        self._counters = TenantCounters()
        self._tried_last: Turn | None = None
        """By the last pick, if it was in vain."""

    def __len__(self) -> int:
        return len(self._tenants)

    @property
    def num_charged(self) -> int:
        """Requests that were picked and have not ended."""
        return len(self._charges)

    @property
    def num_tenants_kept(self) -> int:
        """That have nothing waiting."""
        return self._counters.num_gone

    def served(self, tenant: str) -> float:
        """Weighted tokens, of what runs the foretold ones too, and what idle time cost. KeyError once forgotten."""
        return self._counters[tenant].served

    @property
    def on_deferred(self) -> OnDeferred | None:
        return self._on_deferred

    @on_deferred.setter
    def on_deferred(self, told: OnDeferred | None) -> None:
        self._on_deferred = told
        for queue in (*self._spares, *self._queues.values()):
            queue.on_deferred = told

    def add(self, request: QueuedRequest, now_seconds: float) -> None:
        """One that was picked before, and lost its worker, got nothing: its tenant has all of it back."""
        self.discard(request.request_id)
        if (charge := self._charges.pop(request.request_id, None)) is not None:
            self._counters.charge(charge.account, -charge.weighted_tokens)
        tenant = request.tenant
        if tenant not in self._queues:
            self._counters.come(tenant)
            self._queues[tenant] = self._spares.pop() if self._spares else self._make_queue()
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
            (queue,) = self._queues.values()
            admission = queue.pick(cluster, now_seconds)
        else:
            admission = self._pick_in_turn(cluster, now_seconds)
        if admission is not None:
            self._tried_last = None
            self._charge(admission.request)
        return admission

    def progressed(self, request_id: str, num_tokens: int) -> None:
        """So many tokens of a running request's answer: what is more than foretold is charged."""
        charge = self._charges.get(request_id)
        if charge is not None and num_tokens > charge.num_answer_tokens:
            self._correct(charge, num_tokens)

    def ended(self, request_id: str, num_tokens: int) -> None:
        """A running request, with so many tokens of its answer; of its prompt the worker may have done all."""
        charge = self._charges.pop(request_id, None)
        if charge is not None and num_tokens != charge.num_answer_tokens:
            self._correct(charge, num_tokens)

    def _pick_in_turn(self, cluster: Cluster, now_seconds: float) -> Admission | None:
        turns = self._next_turns()
        for _, tenant in turns:
            admission = self._queues[tenant].pick(cluster, now_seconds)
            if admission is not None:
                return admission
        self._tried_last = turns[-1]
        return None

    def _next_turns(self) -> list[Turn]:
        turns = self._counters.turns
        if len(turns) <= MAX_LOOKS:
            return turns
        start, num = NUM_LEAST_SERVED, MAX_LOOKS - NUM_LEAST_SERVED
        if self._tried_last is not None:
            start = max(start, bisect.bisect_right(turns, self._tried_last))
        others = turns[start : start + num]
        others += turns[NUM_LEAST_SERVED : NUM_LEAST_SERVED + num - len(others)]
        return turns[:NUM_LEAST_SERVED] + others

    def _charge(self, request: QueuedRequest) -> None:
        tenant = request.tenant
        del self._tenants[request.request_id]
        charge = _Charge(self._counters[tenant], request.num_prompt_tokens, request.num_expected_tokens)
        self._charges[request.request_id] = charge
        self._counters.charge(charge.account, charge.weighted_tokens)
        self._leave_if_empty(tenant)

    def _correct(self, charge: _Charge, num_tokens: int) -> None:
        self._counters.charge(charge.account, ANSWER_TOKEN_WEIGHT * (num_tokens - charge.num_answer_tokens))
        charge.num_answer_tokens = num_tokens

    def _leave_if_empty(self, tenant: str) -> None:
        queue = self._queues[tenant]
        if len(queue):
            return
        del self._queues[tenant]
        self._counters.leave(tenant)
        if len(self._spares) < MAX_SPARE_QUEUES:
            self._spares.append(queue)

    def _make_queue(self) -> AdmissionPolicy:
        queue = self._make()
        queue.on_deferred = self._on_deferred
        return queue
