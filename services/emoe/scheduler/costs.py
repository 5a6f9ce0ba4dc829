"""What steps of each worker were last measured to take, so that one that has not measured yet is not a stranger."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Any

from emoe.core.schedule.costs import FIRST_GUESS, StepCosts

MAX_WORKERS = 1024
_FIELDS = tuple(field.name for field in dataclasses.fields(StepCosts))


class CostMemory:
    """The latest figures of the workers that reported some last; workers' ids may change with every pod."""

    def __init__(self) -> None:
        self.num_observed = 0
        self._costs: dict[str, StepCosts] = {}
        self._middle: StepCosts | None = None

    def observe(self, worker_id: str, costs: StepCosts) -> None:
        if self._costs.get(worker_id) == costs:
            return
        self.num_observed += 1
        self._costs.pop(worker_id, None)
        self._costs[worker_id] = costs
        if len(self._costs) > MAX_WORKERS:
            del self._costs[next(iter(self._costs))]
        self._middle = None

    def guess(self, worker_id: str) -> StepCosts:
        """For a worker that reports none: its own of before, else the median of all, else `FIRST_GUESS`."""
        if own := self._costs.get(worker_id):
            return own
        if self._middle is None and self._costs:
            self._middle = _median(self._costs.values())
        return self._middle or FIRST_GUESS

    def to_json(self) -> dict[str, Any]:
        return {worker_id: dataclasses.asdict(costs) for worker_id, costs in self._costs.items()}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """ValueError, and nothing changes, when `to_json` of this version did not write it."""
        try:
            costs = {str(worker_id): _parse(fields) for worker_id, fields in stored.items()}
        except (AttributeError, TypeError) as error:
            raise ValueError(f"its costs lack a field or have one of the wrong kind ({error!r})") from error
        if len(costs) > MAX_WORKERS:
            raise ValueError(f"it has costs of {len(costs)} workers, more than {MAX_WORKERS}")
        self._costs, self._middle = costs, None


def _median(known: Any) -> StepCosts:
    costs = list(known)
    fields = {name: statistics.median(getattr(one, name) for one in costs) for name in _FIELDS}
    return StepCosts(**fields | {"step_tokens": int(fields["step_tokens"])})


def _parse(fields: Mapping[str, Any]) -> StepCosts:
    costs = StepCosts(**fields)
    if not all(
        type(value) in (int, float) and math.isfinite(value) and value >= 0 for value in dataclasses.astuple(costs)
    ):
        raise ValueError(f"its costs {dict(fields)} are not seconds")
    if type(costs.step_tokens) is not int or costs.step_tokens < 1:
        raise ValueError(f"its steps have {costs.step_tokens!r} tokens")
    return costs
