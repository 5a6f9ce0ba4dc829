"""How much a task's answers hang on right routing: layers from the input side are routed at random, one more a time.

After eMoE, section 4.3. A misrouted token keeps the weights that its router gave; only the experts are others. Weights
of random scores would be those of a router that is unsure too, and where the chosen weights are not normalised they
would shrink what all experts add: then not routing alone were wrong. All experts are resident, prompt and answer are
misrouted alike, and the reference answer is what is judged.
M layers with experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from emoe.core.experts import FloatGrid
from emoe.eval.recording import num_run, pack_steps
from emoe.eval.rows import EncodedRow
from emoe.eval.scoring import Piece, PieceScore, ScoringModel
from emoe.store.profile import Sensitivity

MAX_LOGIT_BYTES = 512 * 1024**2
LOGIT_BYTES = 12
"""Of one token's logit: as computed, in float32, and once more for the loss."""
DECIMALS = 5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RowSensitivity:
    """Of one answer of `num_judged` tokens. Entry n of `nll` [M + 1], in nats: with the first n MoE layers misrouted;
    entry n of `similarity` [M]: with the first n + 1, against none."""

    similarity: FloatGrid
    nll: FloatGrid
    num_judged: int


def measure_rows(
    model: ScoringModel, rows: Mapping[int, EncodedRow], *, seed: int
) -> Iterator[tuple[int, RowSensitivity]]:
    """Each row's as it is found, with its number. A row's random experts hang on its number and `seed` alone."""
    depths = len(model.grid.moe_layers) + 1
    tried = [(number, depth) for number in rows for depth in range(depths)]
    max_tokens = min(model.step_tokens, MAX_LOGIT_BYTES // (LOGIT_BYTES * model.vocab_size))
    found: dict[int, list[PieceScore]] = {}
    for part in pack_steps(
        tried, cost=lambda one: num_run(rows[one[0]]), max_items=model.num_rows, max_cost=max_tokens
    ):
        pieces = [_piece(rows[number], place, depth, seed + number) for place, (number, depth) in enumerate(part)]
        for (number, _), score in zip(part, model.score(pieces), strict=True):
            found.setdefault(number, []).append(score)
            if len(found[number]) == depths:
                yield number, _compare(found.pop(number))


def summarise_rows(rows: Sequence[RowSensitivity]) -> Sensitivity | None:
    """Similarity: the mean of the rows. Perplexity: of all their tokens. None without rows."""
    if not rows:
        return None
    nll = np.sum([row.nll for row in rows], axis=0) / sum(row.num_judged for row in rows)
    return Sensitivity(
        similarity=_rounded(np.mean([row.similarity for row in rows], axis=0)),
        perplexity_ratio=_rounded(np.exp(nll[1:] - nll[0])),
    )


def _piece(row: EncodedRow, place: int, depth: int, seed: int) -> Piece:
    return Piece(
        row=place,
        token_ids=row.token_ids,
        begin=0,
        end=num_run(row),
        judged_from=row.num_prompt_tokens,
        random_layers=depth,
        random_seed=seed,
    )


def _compare(scores: Sequence[PieceScore]) -> RowSensitivity:
    undisturbed, *disturbed = scores
    return RowSensitivity(
        similarity=np.array([_cosine(undisturbed.mean_state, score.mean_state) for score in disturbed]),
        nll=np.array([score.nll.sum() for score in scores]),
        num_judged=len(undisturbed.nll),
    )


def _cosine(one_D: npt.NDArray[np.float32], other_D: npt.NDArray[np.float32]) -> float:
    norms = float(np.linalg.norm(one_D)) * float(np.linalg.norm(other_D))
    return float(one_D @ other_D) / norms if norms > 0 else 0.0


def _rounded(values: FloatGrid) -> tuple[float, ...]:
    return tuple(round(float(value), DECIMALS) for value in values)
