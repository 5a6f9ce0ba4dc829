"""What the running requests will route next, foretold from what each of them routed so far, summed up as demand.

The engine is looked at between two steps (`look`); forecasting happens elsewhere (`RunningForecast`), for some requests
together: after a prompt has run and whenever another `own_routing_tokens` of one of them are known. Where nothing was
learnt beforehand, a request's own frequencies are taken. Knows neither gRPC nor plans. L layers, E experts, S spans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from emoe.core.experts import FloatGrid
from emoe.core.frequencies import normalise
from emoe.core.own_routing import SPAN_TOKENS, Array
from emoe.worker.engine import Engine
from emoe.worker.own_counts import OwnRouting
from emoe.worker.sequence import Sequence as Request

OWN_WEIGHTS = {None: 0.6, 64: 0.4}
"""How much each span says where nothing was learnt of how they go on."""


class Foresight(Protocol):
    def predict(self, spans_NSLE: Array) -> Array:
        """Frequencies so far over SPAN_TOKENS -> of the coming tokens [N, L, E]."""
        ...


class OwnFrequencies:
    """A request goes on as it went: without anything learnt beforehand."""

    def predict(self, spans_NSLE: Array) -> Array:
        weights = np.array([OWN_WEIGHTS.get(span, 0.0) for span in SPAN_TOKENS], dtype=np.float32)
        return normalise(np.tensordot(spans_NSLE, weights, axes=(1, 0)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunningRequest:
    """`num_coming_tokens`: until it is foretold anew or ends. `routing` where it is time to foretell it."""

    sequence_id: str
    task: str
    num_coming_tokens: int
    routing: OwnRouting | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunningDemand:
    """`demand` [L, E] in tokens, as the predictor's: rows of layers that count sum to the tokens expected."""

    version: int
    demand: FloatGrid
    num_requests: int


def look(engine: Engine) -> list[RunningRequest]:
    """Between two steps. When one is to be foretold, those are too that soon will be: they change the plan together."""
    refresh_tokens = engine.own_routing_tokens
    running = [(s, s.own_counts) for s in engine.running if s.own_counts is not None and s.own_counts.num_tokens]
    due = any(own.is_due for _, own in running)
    return [
        RunningRequest(
            sequence_id=sequence.sequence_id,
            task=sequence.task,
            num_coming_tokens=_num_coming_tokens(sequence, refresh_tokens),
            routing=own.look() if due and (own.is_due or 2 * own.num_new_tokens >= refresh_tokens) else None,
        )
        for sequence, own in running
    ]


class RunningForecast:
    """`sensitivity` of a task: [L], by which its demand is multiplied (s of eMoE's equation 1)."""

    def __init__(
        self, shape: tuple[int, int], foresight: Foresight, sensitivity: Callable[[str], FloatGrid] | None = None
    ) -> None:
        self._foresight = foresight
        self._sensitivity = sensitivity
        self._foretold: dict[str, Array] = {}
        self.last = RunningDemand(version=0, demand=np.zeros(shape), num_requests=0)

    def update(self, running: Sequence[RunningRequest]) -> RunningDemand:
        """A newer version when one was foretold anew, began or ended. Some milliseconds in the first case."""
        due = [(request.sequence_id, request.routing) for request in running if request.routing is not None]
        present = {request.sequence_id for request in running}
        if not due and present >= self._foretold.keys():
            return self.last
        if due:
            spans_NSLE = np.stack([routing.spans() for _, routing in due])
            grids = self._foresight.predict(spans_NSLE)
            self._foretold |= {sequence_id: grid for (sequence_id, _), grid in zip(due, grids, strict=True)}
        self._foretold = {key: grid for key, grid in self._foretold.items() if key in present}
        foretold = [request for request in running if request.sequence_id in self._foretold]
        demand = np.zeros(self.last.demand.shape)
        for request in foretold:
            demand += self._demand_of(request)
        self.last = RunningDemand(version=self.last.version + 1, demand=demand, num_requests=len(foretold))
        return self.last

    def _demand_of(self, request: RunningRequest) -> FloatGrid:
        demand = request.num_coming_tokens * self._foretold[request.sequence_id].astype(np.float64)
        return demand if self._sensitivity is None else demand * self._sensitivity(request.task)[:, None]


def _num_coming_tokens(sequence: Request, refresh_tokens: int) -> int:
    answer = max(1, min(refresh_tokens, sequence.sampling.max_tokens - sequence.num_completion_tokens))
    return answer if sequence.is_decoding else answer + sequence.num_pending
