"""The base model's linear layers in oneDNN's order: the same outputs in no more memory; what is shared stays."""

from __future__ import annotations

import pytest
import torch

from emoe.worker import onednn
from emoe.worker.base_linears import PackedLinear, pack_linears
from emoe.worker.trial import sharing_weights

packs = pytest.mark.skipif(not onednn.can_pack(), reason="no bfloat16 products of this processor, or torch lacks them")


class Small(torch.nn.Module):
    """An embedding, projections with and without bias, and a head that may be the embedding's."""

    def __init__(self, *, tied: bool, width: int = 64) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(128, width)
        self.inner = torch.nn.ModuleList([torch.nn.Linear(width, width, bias=bias) for bias in (True, False)])
        self.head = torch.nn.Linear(width, 128, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(token_ids)
        for linear in self.inner:
            hidden = hidden + linear(hidden)
        out: torch.Tensor = self.head(hidden)
        return out


def small(*, tied: bool = False, width: int = 64, dtype: torch.dtype = torch.bfloat16) -> Small:
    torch.manual_seed(0)
    return Small(tied=tied, width=width).to(dtype).eval().requires_grad_(requires_grad=False)


@packs
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 7)])
def test_a_packed_model_computes_the_same(shape: tuple[int, int]) -> None:
    plain, packed = small(), small()
    assert pack_linears(packed) == 3
    token_ids = torch.randint(128, shape, generator=torch.Generator().manual_seed(1))
    expected = plain(token_ids)
    torch.testing.assert_close(packed(token_ids), expected, rtol=0.0, atol=0.02 * float(expected.abs().max()))


@packs
def test_no_plain_weight_is_left_beside_a_packed_one() -> None:
    model = small()
    before = sum(parameter.nbytes for parameter in model.parameters())
    pack_linears(model)
    linears = [module for module in model.modules() if isinstance(module, PackedLinear)]
    packed = sum(onednn.num_bytes(linear.weight) for linear in linears)
    biases = sum(linear.bias.nbytes for linear in linears if linear.bias is not None)
    assert packed + biases + sum(parameter.nbytes for parameter in model.parameters()) == before


@packs
def test_a_tied_head_stays_the_embeddings() -> None:
    model = small(tied=True)
    assert pack_linears(model) == 2
    assert model.head.weight is model.embed.weight


@packs
def test_a_weight_that_packing_would_pad_stays_plain() -> None:
    model = small(width=48)
    weight = model.head.weight.detach()
    assert onednn.num_bytes(onednn.pack(weight)) > weight.nbytes
    pack_linears(model)
    assert type(model.head) is torch.nn.Linear


@packs
def test_a_copy_that_shares_weights_shares_the_packed_ones() -> None:
    model = small()
    pack_linears(model)
    assert [*map(id, sharing_weights(model).buffers())] == [*map(id, model.buffers())]
    assert len([*model.buffers()]) == 4


def test_float32_stays_plain() -> None:
    assert pack_linears(small(dtype=torch.float32)) == 0


def test_where_nothing_can_be_packed_all_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "can_pack", lambda: False)
    assert pack_linears(small()) == 0
