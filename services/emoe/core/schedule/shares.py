"""How much of the queue each tenant takes, and whose newest request gives way when the queue is full.

A tenant's share is its dominant one (Ghodsi et al., NSDI 2011): the larger of its part of the places and its part of
the bytes. Kept for tenants that wait and forgotten with their last request, so a client that makes up names adds
nothing that lasts.
"""

from __future__ import annotations

import dataclasses
import heapq

from emoe.core.schedule.request import QueuedRequest

_MIN_HEAP = 64


@dataclasses.dataclass(slots=True)
class _Tenant:
    num_bytes: int = 0
    requests: dict[str, QueuedRequest] = dataclasses.field(default_factory=dict)
    """In order of arrival."""


class TenantShares:
    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._tenants: dict[str, _Tenant] = {}
        self._heap: list[tuple[float, str]] = []
        """(-share, tenant), never less than a tenant's share; what has shrunk since is put right when it comes up."""

    def __len__(self) -> int:
        return len(self._tenants)

    @property
    def num_outdated(self) -> int:
        """Entries beyond one a tenant."""
        return max(0, len(self._heap) - len(self._tenants))

    def add(self, request: QueuedRequest) -> None:
        tenant = self._tenants.setdefault(request.tenant, _Tenant())
        tenant.requests[request.request_id] = request
        tenant.num_bytes += request.size_bytes
        heapq.heappush(self._heap, (-self._share(tenant), request.tenant))
        if len(self._heap) > _MIN_HEAP + 2 * len(self._tenants):
            self._heap = [(-self._share(one), name) for name, one in self._tenants.items()]
            heapq.heapify(self._heap)

    def discard(self, request: QueuedRequest) -> None:
        tenant = self._tenants.get(request.tenant)
        if tenant is None or tenant.requests.pop(request.request_id, None) is None:
            return
        tenant.num_bytes -= request.size_bytes
        if not tenant.requests:
            del self._tenants[request.tenant]

    def gives_way(self, newcomer: QueuedRequest) -> QueuedRequest:
        """The newest of the tenant with the most; the newcomer where no other tenant has more than its own would."""
        largest = self._largest()
        if largest is None:
            return newcomer
        own = self._tenants.get(newcomer.tenant, _Tenant())
        with_it = self._share_of(len(own.requests) + 1, own.num_bytes + newcomer.size_bytes)
        if largest is own or self._share(largest) <= with_it:
            return newcomer
        return largest.requests[next(reversed(largest.requests))]

    def _largest(self) -> _Tenant | None:
        while self._heap:
            share, name = self._heap[0]
            tenant = self._tenants.get(name)
            if tenant is None:
                heapq.heappop(self._heap)
            elif self._share(tenant) == -share:
                return tenant
            else:
                heapq.heapreplace(self._heap, (-self._share(tenant), name))
        return None

    def _share(self, tenant: _Tenant) -> float:
        return self._share_of(len(tenant.requests), tenant.num_bytes)

    def _share_of(self, num_requests: int, num_bytes: int) -> float:
        return max(num_requests / self._max_requests, num_bytes / self._max_bytes)
