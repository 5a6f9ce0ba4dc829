"""What a profile says, a row a task: for the table, and for whoever wants to know whether task-awareness can pay."""

from __future__ import annotations

import dataclasses

import numpy as np

from emoe.core.experts import FloatGrid
from emoe.store.profile import Profile, TaskProfile

RESIDENT_RATIO = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileRow:
    """`coverage_ratio`: of the choices of the answers' tokens, those that fall on the best quarter of each layer's
    experts, by the task's own frequencies and, `mean_coverage_ratio`, by the mean of the tasks. With every MoE layer
    routed at random: `random_similarity_ratio`, `random_perplexity_ratio`. `sensitive_layers`: for how many s is 1."""

    task: str
    num_requests: int
    prompt_tokens: float
    answer_tokens: float
    answer_p90_tokens: float
    coverage_ratio: float
    mean_coverage_ratio: float
    random_similarity_ratio: float | None
    random_perplexity_ratio: float | None
    sensitive_layers: str


def summarise(profile: Profile) -> tuple[ProfileRow, ...]:
    layers = list(profile.moe_layers)
    mean = np.mean([task.answer_frequencies for task in profile.tasks.values()], axis=0)[layers]
    return tuple(_row(name, task, profile, mean) for name, task in sorted(profile.tasks.items()))


def _row(name: str, task: TaskProfile, profile: Profile, mean: FloatGrid) -> ProfileRow:
    own = task.answer_frequencies[list(profile.moe_layers)]
    sensitivity = task.sensitivity
    return ProfileRow(
        task=name,
        num_requests=task.num_requests,
        prompt_tokens=task.prompt_tokens.mean,
        answer_tokens=task.answer_tokens.mean,
        answer_p90_tokens=task.answer_tokens.p90,
        coverage_ratio=_coverage(own, own),
        mean_coverage_ratio=_coverage(own, mean),
        random_similarity_ratio=None if sensitivity is None else sensitivity.similarity[-1],
        random_perplexity_ratio=None if sensitivity is None else sensitivity.perplexity_ratio[-1],
        sensitive_layers="-"
        if sensitivity is None
        else f"{int(sensitivity.sensitive_layers(profile.sensitivity_threshold).sum())} of {len(own)}",
    )


def _coverage(wanted_ME: FloatGrid, scores_ME: FloatGrid) -> float:
    num_resident = max(1, round(RESIDENT_RATIO * wanted_ME.shape[1]))
    best = np.argsort(-scores_ME, axis=1, kind="stable")[:, :num_resident]
    return float(np.take_along_axis(wanted_ME, best, axis=1).sum(axis=1).mean())
