"""Choosing among residents where floating point gets in the way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from emoe.worker.families import FAMILIES

RESIDENT = torch.tensor([False, False, True, True, False, False, True, True])
EXTREME = torch.tensor([[900.0, 800.0, 500.0, -500.0, 700.0, 600.0, -900.0, -950.0]])


def router() -> SimpleNamespace:
    return SimpleNamespace(
        top_k=3,
        norm_topk_prob=True,
        topk_method="group_limited_greedy",
        num_group=4,
        topk_group=2,
        routed_scaling_factor=1.0,
        e_score_correction_bias=torch.zeros(8),
    )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_absent_expert_is_never_chosen_however_unlikely_the_residents_are(family: str) -> None:
    weights, ids = FAMILIES[family].reroute(router(), EXTREME, RESIDENT)
    assert RESIDENT[ids].all()
    assert weights.isfinite().all()
