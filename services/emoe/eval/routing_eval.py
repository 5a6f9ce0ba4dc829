"""How much of recorded routing each strategy would have found resident: `emoe eval --routing`.

Prompts are judged by what was learnt from other prompts alone: split into folds by prompt, never by token; and once
more by category, so that a prompt's whole category is unknown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from emoe.core.errors import InvalidRequestError
from emoe.core.own_routing import Array
from emoe.eval.decisions import Decisions, find_decisions
from emoe.eval.recorded import RecordedRouting
from emoe.eval.routing_strategies import STRATEGIES

Say = Callable[[str], None]
Folds = npt.NDArray[np.int64]

BASELINE, HINDSIGHT = "global-frequency", "oracle"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingSettings:
    """`resident_ratios`: shares of each layer's experts. One choice after `after_tokens`, and refreshed every
    `refresh_tokens` from there on; answers shorter than `min_tokens` are left out."""

    resident_ratios: tuple[float, ...] = (0.25,)
    after_tokens: int = 32
    refresh_tokens: int = 64
    min_tokens: int = 96
    folds: int = 10
    seed: int = 0
    strategies: tuple[str, ...] = tuple(STRATEGIES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingRow:
    """`coverage`: of a prompt's choices, the share whose expert was resident; the mean of the prompts. `hit_ratio`: of
    all choices, so that long answers count for more. `coverage_gap_closed`: of the way from the global frequency to
    hindsight."""

    strategy: str
    unseen: str
    """What of the judged prompts was never seen: themselves, or their whole category."""
    refresh_tokens: int | None
    resident_ratio: float
    coverage: float
    hit_ratio: float
    coverage_gap_closed: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingReport:
    routing: str
    num_prompts: int
    num_tokens: int
    num_layers: int
    num_experts: int
    top_k: int
    settings: RoutingSettings
    rows: tuple[RoutingRow, ...]


def evaluate_routing(routing: RecordedRouting, settings: RoutingSettings, *, name: str, say: Say) -> RoutingReport:
    """InvalidRequestError when too few prompts are long enough to learn from some and judge the others."""
    once = _decisions(routing, settings, None)
    rows: list[RoutingRow] = []
    for refresh_tokens in (None, settings.refresh_tokens):
        decisions = once if refresh_tokens is None else _decisions(routing, settings, refresh_tokens)
        for unseen, folds in _all_folds(decisions, settings):
            rows += _evaluate(decisions, folds, settings, unseen=unseen, refresh_tokens=refresh_tokens, say=say)
    return RoutingReport(
        routing=name,
        num_prompts=len(once),
        num_tokens=int(once.num_tokens.sum()),
        num_layers=routing.num_layers,
        num_experts=routing.num_experts,
        top_k=routing.top_k,
        settings=settings,
        rows=tuple(rows),
    )


def _decisions(routing: RecordedRouting, settings: RoutingSettings, refresh_tokens: int | None) -> Decisions:
    found = find_decisions(
        routing,
        after_tokens=settings.after_tokens,
        refresh_tokens=refresh_tokens,
        min_tokens=settings.min_tokens,
    )
    num_prompts = len(set(found.prompts.tolist()))
    if num_prompts < 2:
        raise InvalidRequestError(
            f"{num_prompts} answers of {settings.min_tokens} tokens or more: at least 2 are needed, "
            "to learn from one and judge the other; lower --min-tokens"
        )
    return found


def _all_folds(decisions: Decisions, settings: RoutingSettings) -> Iterator[tuple[str, Folds]]:
    yield "prompt", _fold_by(decisions.prompts, settings)
    if len(set(decisions.categories.tolist())) > 1:
        yield "category", _fold_by(decisions.categories, settings)


def _fold_by(group_N: npt.NDArray[np.int64] | npt.NDArray[np.str_], settings: RoutingSettings) -> Folds:
    groups, inverse = np.unique(group_N, return_inverse=True)
    fold_of_group = np.random.default_rng(settings.seed).permutation(len(groups)) % min(settings.folds, len(groups))
    return np.asarray(fold_of_group[inverse], dtype=np.int64)


def _evaluate(
    decisions: Decisions,
    folds: Folds,
    settings: RoutingSettings,
    *,
    unseen: str,
    refresh_tokens: int | None,
    say: Say,
) -> list[RoutingRow]:
    rows = []
    for strategy in settings.strategies:
        when = "once" if refresh_tokens is None else f"every {refresh_tokens} tokens"
        say(f"{strategy}, {when}, unseen {unseen}")
        scores = _score_folds(decisions, folds, strategy, seed=settings.seed)
        for ratio in settings.resident_ratios:
            covered = covered_shares(scores, decisions.futures, ratio)
            rows.append(
                RoutingRow(
                    strategy=strategy,
                    unseen=unseen,
                    refresh_tokens=refresh_tokens,
                    resident_ratio=ratio,
                    coverage=_mean_of_prompts(covered, decisions),
                    hit_ratio=float(np.average(covered, weights=decisions.num_tokens)),
                )
            )
    return _with_gaps(rows)


def _score_folds(decisions: Decisions, folds: Folds, name: str, *, seed: int) -> Array:
    scores = np.empty_like(decisions.futures)
    for fold in np.unique(folds):
        strategy = STRATEGIES[name](seed)
        strategy.fit(decisions.select(folds != fold))
        scores[folds == fold] = strategy.score(decisions.select(folds == fold))
    return scores


def covered_shares(scores_NLE: Array, futures_NLE: Array, resident_ratio: float) -> Array:
    """[N]: the share of the future's choices among the best-scored experts of each layer, layers alike."""
    num_resident = max(1, round(resident_ratio * scores_NLE.shape[2]))
    best = np.argsort(-scores_NLE, axis=2, kind="stable")[..., :num_resident]
    return np.asarray(np.take_along_axis(futures_NLE, best, axis=2).sum(axis=2).mean(axis=1))


def _mean_of_prompts(covered_N: Array, decisions: Decisions) -> float:
    prompts, inverse = np.unique(decisions.prompts, return_inverse=True)
    tokens = np.bincount(inverse, weights=decisions.num_tokens, minlength=len(prompts))
    covered = np.bincount(inverse, weights=covered_N * decisions.num_tokens, minlength=len(prompts))
    return float((covered / tokens).mean())


def _with_gaps(rows: list[RoutingRow]) -> list[RoutingRow]:
    coverage = {(row.strategy, row.resident_ratio): row.coverage for row in rows}
    done = []
    for row in rows:
        low, high = (coverage.get((name, row.resident_ratio)) for name in (BASELINE, HINDSIGHT))
        closed = (row.coverage - low) / (high - low) if low is not None and high is not None and high > low else None
        done.append(dataclasses.replace(row, coverage_gap_closed=closed))
    return done
