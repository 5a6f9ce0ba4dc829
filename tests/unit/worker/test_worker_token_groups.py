from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from emoe.worker.token_groups import TokenGroups, round_rows


@st.composite
def choices(draw: st.DrawFn) -> torch.Tensor:
    num_tokens, top_k = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    rows = st.lists(st.integers(0, 9), min_size=top_k, max_size=top_k, unique=True)
    return torch.tensor([draw(rows) for _ in range(num_tokens)])


@given(ids_TK=choices(), rounded=st.booleans())
def test_every_choice_comes_back_to_its_own_place(ids_TK: torch.Tensor, rounded: bool) -> None:
    groups = TokenGroups(ids_TK, rounded=rounded)
    hidden_TD = torch.arange(len(ids_TK), dtype=torch.float32)[:, None] * 100
    rows_PD = groups.gather(hidden_TD).clone()
    spans = rows_PD.split(groups.sizes)
    for expert, position in groups.position.items():
        spans[position].add_(float(expert))
    assert torch.equal(groups.scatter(rows_PD)[..., 0], hidden_TD + ids_TK)


@given(ids_TK=choices(), rounded=st.booleans())
def test_spans_are_the_chosen_experts_end_to_end(ids_TK: torch.Tensor, rounded: bool) -> None:
    groups = TokenGroups(ids_TK, rounded=rounded)
    assert sorted(groups.position) == sorted(set(ids_TK.reshape(-1).tolist()))
    assert sorted(groups.position.values()) == list(range(len(groups.sizes)))
    assert sum(groups.sizes) == len(groups.gather(torch.zeros(len(ids_TK), 1)))
    for expert in groups.position:
        assert groups.tokens(expert) == [t for t, row in enumerate(ids_TK.tolist()) if expert in row]
        assert groups.num_tokens[expert] == len(groups.tokens(expert))
    assert groups.ids_TK.tolist() == ids_TK.tolist()


@given(st.lists(st.integers(1, 20_000), min_size=1))
def test_rounded_counts_are_never_less_and_of_few_sizes(counts: list[int]) -> None:
    rounded = round_rows(np.array(counts))
    assert (rounded >= counts).all()
    assert all(size <= 2 * count for size, count in zip(rounded, counts, strict=True))
    assert all(size <= count * 9 / 8 + 8 for size, count in zip(rounded, counts, strict=True))
    assert len(set(round_rows(np.arange(1, 1025)).tolist())) < 48
