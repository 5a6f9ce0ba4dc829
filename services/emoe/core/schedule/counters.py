"""What each tenant was served, as VTC counts it, and in whose turn those that wait are.

The counters are those of VTC (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024, algorithm 2): a
tenant that comes back is lifted to the least of those that wait, or to the one that left last where nobody waits, so
that idle time cannot be saved up. Knows nothing of requests; what is counted is the caller's.
"""

from __future__ import annotations

import bisect
import dataclasses

MAX_TENANTS_KEPT = 1024
"""Counters of tenants that have nothing waiting: beyond so many the one that left first is forgotten."""

Turn = tuple[float, str]
"""What the tenant was served, and its name."""


@dataclasses.dataclass(slots=True, eq=False)
class Account:
    """One that was forgotten meanwhile may still be charged: that changes nothing for the tenant's next one."""

    tenant: str
    served: float = 0.0
    """Weighted tokens."""
    waits: bool = False


class TenantCounters:
    def __init__(self) -> None:
        self.turns: list[Turn] = []
        """Of the tenants that have something waiting, least served first."""
        self._accounts: dict[str, Account] = {}
        self._gone: dict[str, None] = {}
        """Tenants with an account and nothing waiting, in the order in which they left."""
        self._left_last: Account | None = None

    @property
    def num_gone(self) -> int:
        return len(self._gone)

    def __getitem__(self, tenant: str) -> Account:
        return self._accounts[tenant]

    def come(self, tenant: str) -> None:
        """It had nothing waiting, and has now."""
        self._gone.pop(tenant, None)
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = Account(tenant)
        if self.turns:
            account.served = max(account.served, self.turns[0][0])
        elif self._left_last is not None:
            account.served = max(account.served, self._left_last.served)
        account.waits = True
        bisect.insort(self.turns, (account.served, tenant))

    def leave(self, tenant: str) -> None:
        """It has nothing waiting any more."""
        account = self._left_last = self._accounts[tenant]
        account.waits = False
        del self.turns[self._turn_of(account)]
        self._gone[tenant] = None
        if len(self._gone) > MAX_TENANTS_KEPT:
            forgotten = next(iter(self._gone))
            del self._gone[forgotten], self._accounts[forgotten]

    def charge(self, account: Account, weighted_tokens: float) -> None:
        """Less than nothing gives back what was charged too much."""
        if account.waits:
            del self.turns[self._turn_of(account)]
            account.served += weighted_tokens
            bisect.insort(self.turns, (account.served, account.tenant))
        else:
            account.served += weighted_tokens

    def _turn_of(self, account: Account) -> int:
        return bisect.bisect_left(self.turns, (account.served, account.tenant))
