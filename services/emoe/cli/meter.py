"""Turns what loader and scheduler say, look after look, into rates. Keeps the counters of the look before."""

from __future__ import annotations

import time
from collections.abc import Callable

from emoe.cli.view import Counters, QueueView, SystemView, WorkerView, build_rates


class Meter:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._earlier: dict[str, Counters] = {}
        self._earlier_seconds = clock()

    def look(self, *, num_experts: int | None, queue: QueueView | None, workers: tuple[WorkerView, ...]) -> SystemView:
        """A view whose rates cover the time since the last call."""
        now = self._clock()
        elapsed = now - self._earlier_seconds
        rates = {
            worker.worker_id: build_rates(worker.counters, self._earlier.get(worker.worker_id), elapsed_seconds=elapsed)
            for worker in workers
        }
        self._earlier = {worker.worker_id: worker.counters for worker in workers}
        self._earlier_seconds = now
        return SystemView(num_experts=num_experts, queue=queue, workers=workers, rates=rates)
