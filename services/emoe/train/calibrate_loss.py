"""How far the student's next tokens are from the teacher's: Kullback-Leibler divergence, in nats a token.

A part of the tokens at a time where the vocabulary is large, so that their logits are never all in memory.
T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 1 << 25
"""At once, of each of the two."""


def divergence(
    head: torch.nn.Module, student_TD: torch.Tensor, teacher_TD: torch.Tensor, weights_T: torch.Tensor
) -> torch.Tensor:
    """The weighted mean over tokens with a weight."""
    kept_T = torch.nonzero(weights_T)[:, 0]
    student_TD, teacher_TD = student_TD.index_select(0, kept_T), teacher_TD.index_select(0, kept_T)
    weights_T = weights_T.index_select(0, kept_T)
    size = max(1, MAX_LOGITS // _vocab_size(head))
    parts = list(zip(student_TD.split(size), teacher_TD.split(size), weights_T.split(size), strict=True))
    if len(parts) == 1:
        return _weighted_sum(head, *parts[0]) / weights_T.sum()
    sums = [checkpoint(_weighted_sum, head, *part, use_reentrant=False) for part in parts]
    return torch.stack(sums).sum() / weights_T.sum()


def _weighted_sum(
    head: torch.nn.Module, student_TD: torch.Tensor, teacher_TD: torch.Tensor, weights_T: torch.Tensor
) -> torch.Tensor:
    with torch.no_grad():
        teacher_TV = head(teacher_TD).float().log_softmax(-1)
    student_TV = head(student_TD).float().log_softmax(-1)
    divergence_TV = F.kl_div(student_TV, teacher_TV, reduction="none", log_target=True)
    return (divergence_TV.sum(-1) * weights_T).sum()


def _vocab_size(head: torch.nn.Module) -> int:
    weight = head.weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]
