"""One PullExperts call: which expert is sent now, and which are read meanwhile.

Stands between the service and the shared reads. Knows the order asked for; neither gRPC nor the wire's format.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence

from emoe.core.experts import ExpertId
from emoe.loader.reads import ExpertReads, Lease, LoadedExpert

READ_AHEAD_EXPERTS = 4


async def pull(experts: Sequence[ExpertId], reads: ExpertReads) -> AsyncGenerator[tuple[ExpertId, LoadedExpert]]:
    """Each expert in the order asked for; its bytes are held until the next is asked for."""
    ahead: deque[Lease] = deque()
    try:
        for position, expert in enumerate(experts):
            if not ahead:
                # Waiting while holding another lease could be waiting for a pull that waits for this one.
                ahead.append(await reads.acquire(expert))
            _read_ahead(experts[position + len(ahead) :], ahead, reads)
            yield expert, await ahead[0].loaded()
            ahead.popleft().release()
    finally:
        for lease in ahead:
            lease.release()


def _read_ahead(experts: Sequence[ExpertId], ahead: deque[Lease], reads: ExpertReads) -> None:
    for expert in experts[: READ_AHEAD_EXPERTS + 1 - len(ahead)]:
        lease = reads.acquire_ahead(expert)
        if lease is None:
            return
        ahead.append(lease)
