"""Which experts the next layer will want, foretold while this one computes, and what came of such guesses.

The next layer's own router is asked about this layer's input: the residual stream changes little between two layers
(Eliseev and Mazur, arXiv 2312.17238, section 3.2). Exact mode reads the likely experts ahead; what is guessed never
shows in the numbers. T tokens, D hidden, K choices a token, E experts.
"""

from __future__ import annotations

from collections.abc import Collection, Container
from typing import Any

import torch

from emoe.core.experts import ExpertGrid, ExpertId

MIN_TOKENS_OF_SLOTS = 2
"""With slots for the experts of fewer tokens, what is read ahead pushes out what the next token needs."""


class NextLayer:
    """`router` is that of `layer`, the one that comes next."""

    def __init__(self, layer: int, router: Any) -> None:
        self._layer = layer
        self._router = router

    def foretell(self, hidden_TD: torch.Tensor) -> list[ExpertId]:
        """From the present layer's input; by how much of the tokens' weight falls on an expert, the most first."""
        # `forward`, as calling the module would run hooks that record what was routed
        _, weights_TK, ids_TK = self._router.forward(hidden_TD)
        num_experts = self._router.weight.shape[0]
        weight_E = torch.bincount(ids_TK.reshape(-1), weights_TK.reshape(-1).float(), minlength=num_experts).tolist()
        wanted = set(ids_TK.reshape(-1).tolist())
        return [ExpertId(self._layer, index) for index in sorted(wanted, key=lambda e: (-weight_E[e], e))]


class Guesses:
    """Loads that were begun before anyone needed them. `num_at_once` bounds those under way; 0 makes none."""

    def __init__(self, grid: ExpertGrid, *, num_slots: int, num_at_once: int) -> None:
        least_slots = MIN_TOKENS_OF_SLOTS * grid.rule.top_k * len(grid.moe_layers)
        self.are_made = num_at_once > 0 and least_slots <= num_slots < grid.num_experts_total
        self.num_begun = 0
        self.num_used = 0
        self._num_at_once = num_at_once
        self._top_k = grid.rule.top_k
        self._num_judged = 0
        self._open: set[ExpertId] = set()
        """Their layer was not reached yet."""
        self._awaited: set[ExpertId] = set()
        """Reached, needed, and still under way."""

    @property
    def chance(self) -> float:
        """That a choice of a token's falls on an expert which was guessed, by what came of the guesses so far."""
        return (self.num_used + 1) / (self._num_judged + 2) / self._top_k

    def may_begin(self, under_way: Container[ExpertId]) -> bool:
        return sum(expert in under_way for expert in self._open) < self._num_at_once

    def begin(self, expert: ExpertId) -> None:
        self.num_begun += 1
        self._open.add(expert)

    def reach(self, layer: int, needed: Collection[int], under_way: Container[ExpertId]) -> list[ExpertId]:
        """The layer has chosen -> the needless guesses of it that are under way."""
        reached = {expert for expert in self._open if expert.layer == layer}
        self._open -= reached
        used = {expert for expert in reached if expert.index in needed}
        self.num_used += len(used)
        self._num_judged += len(reached)
        self._awaited |= {expert for expert in used if expert in under_way}
        return [expert for expert in reached - used if expert in under_way]

    def take_back(self) -> None:
        """A needless one, of which not a byte was read."""
        self.num_begun -= 1
        self._num_judged -= 1

    def arrive(self, expert: ExpertId) -> None:
        self._awaited.discard(expert)

    def fail(self, expert: ExpertId) -> bool:
        """-> whether it was begun as a guess."""
        was_guess = expert in self._open or expert in self._awaited
        self._awaited.discard(expert)
        self.forget(expert)
        return was_guess

    def forget(self, expert: ExpertId) -> None:
        """It left its slot before its layer was reached."""
        self._open.discard(expert)
