"""How long a task's answers are, as a bounded sketch: quantiles, the mean, and what is still to come of a running one.

Buckets of whole lengths, as wide as a relative error allows (DDSketch, Masson et al., PVLDB 12(12), 2019), in two
Fenwick trees (1994), one of weights, one of tokens: each call costs some nine steps. Newer lengths weigh more (forward
decay, Cormode et al., ICDE 2009), counted in observations: a sketch has no clock.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

RELATIVE_ERROR = 0.02
"""Of a quantile, at most. Lengths below 25 tokens are exact."""
MAX_LENGTH = 2**20
"""Longer ones count as such."""
HALF_LIFE = 500.0
"""After so many newer ones, a length weighs half."""
_FORMAT = "length sketch 1"
_TAIL_QUANTILE = 0.9
_LARGEST_SCALE = 1e12
_SEED_POINTS = 16
_SMALLEST_SHARE = 1e-9
"""Less of the whole weight is what rounding left."""


def _first_lengths() -> list[int]:
    """Of the buckets: one spans a..b where (b - a) / (b + a) is within the error. One more ends the last."""
    firsts, ratio = [0, 1], (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
    while firsts[-1] <= MAX_LENGTH:
        firsts.append(math.floor(firsts[-1] * ratio) + 1)
    return firsts


_FIRSTS = _first_lengths()
_NUM_BUCKETS = len(_FIRSTS) - 1
_TOP_STEP = 1 << (_NUM_BUCKETS.bit_length() - 1)


class _Tree:
    """A Fenwick tree over the buckets: weight and tokens of all below any of them, in steps as many as its bits."""

    __slots__ = ("_last", "_tokens_before", "_weight_before", "num_tokens", "tokens", "weight", "weights")

    def __init__(self) -> None:
        self.weights = [0.0] * _NUM_BUCKETS
        self.tokens = [0.0] * _NUM_BUCKETS
        self.weight = self.num_tokens = 0.0
        self._weight_before = [0.0] * (_NUM_BUCKETS + 1)
        self._tokens_before = [0.0] * (_NUM_BUCKETS + 1)
        self._last = 0

    def add(self, bucket: int, weight: float, num_tokens: float) -> None:
        self.weights[bucket] += weight
        self.tokens[bucket] += num_tokens
        self.weight += weight
        self.num_tokens += num_tokens
        self._last = max(self._last, bucket)
        weight_before, tokens_before, place = self._weight_before, self._tokens_before, bucket + 1
        while place <= _NUM_BUCKETS:
            weight_before[place] += weight
            tokens_before[place] += num_tokens
            place += place & -place

    def from_on(self, bucket: int) -> tuple[float, float]:
        """Weight and tokens of this bucket and all above."""
        weight, num_tokens = self.weight, self.num_tokens
        while bucket:
            weight -= self._weight_before[bucket]
            num_tokens -= self._tokens_before[bucket]
            bucket &= bucket - 1
        return weight, num_tokens

    def find(self, weight: float) -> int:
        """The first bucket up to which the weights reach `weight`; the last one with some at most."""
        place, step, before = 0, _TOP_STEP, self._weight_before
        while step:
            after = place + step
            if after <= _NUM_BUCKETS and before[after] < weight:
                place, weight = after, weight - before[after]
            step >>= 1
        return min(place, self._last)

    def divided(self, by: float) -> _Tree:
        tree = _Tree()
        for bucket, (weight, num_tokens) in enumerate(zip(self.weights, self.tokens, strict=True)):
            if weight:
                tree.add(bucket, weight / by, num_tokens / by)
        return tree


class LengthSketch:
    """`half_life` is a number of observations; infinity forgets nothing."""

    def __init__(self, *, half_life: float = HALF_LIFE) -> None:
        if not half_life > 0:
            raise ValueError(f"a half-life of {half_life} observations is none")
        self.half_life = half_life
        self._growth = 2.0 ** (1.0 / half_life)
        self._scale = 1.0
        """What the newest observation weighs beside the stored weights; it grows instead of all others shrinking."""
        self._tree = _Tree()

    def observe(self, num_tokens: int, *, weight: float = 1.0) -> None:
        self._scale *= self._growth
        if self._scale > _LARGEST_SCALE:
            self._rescale()
        self._add(num_tokens, weight * self._scale)

    def seed(self, *, mean: float, p50: float, p90: float, p99: float, weight: float) -> None:
        """As if `weight` newest observations had been so distributed: from a profile, before anything was seen."""
        upper = ((p50, p90, 0.4), (p90, p99, 0.09))
        rest = mean - sum(share * (low + high) / 2 for low, high, share in upper)
        # Quantiles leave two things open, by which the mean comes right: where the lower half begins, or, when that is
        # not enough, how long the longest are.
        least = min(p50, max(0.0, (rest - 0.01 * p99) * 4 - p50))
        longest = max(p99, (rest - p50 / 2) / 0.01)
        for low, high, share in ((least, p50, 0.5), *upper, (longest, longest, 0.01)):
            for number in range(_SEED_POINTS):
                length = low + (high - low) * (number + 0.5) / _SEED_POINTS
                self._add(round(length), weight * share / _SEED_POINTS * self._scale)

    def merge(self, other: LengthSketch) -> None:
        """Each side's newest observation weighs as much as the other's."""
        for bucket, (weight, tokens) in other._buckets().items():
            self._tree.add(bucket, weight * self._scale, tokens * self._scale)

    @property
    def weight(self) -> float:
        """Observations that it stands on, the newest as one each; at most 1.45 half-lives."""
        return self._tree.weight / self._scale

    @property
    def mean(self) -> float:
        """ValueError while empty, as of `quantile` and `expected_remaining`."""
        self._require_some()
        return self._tree.num_tokens / self._tree.weight

    def quantile(self, share: float) -> float:
        """The smallest length that at least `share` of the weight does not exceed, within `RELATIVE_ERROR`."""
        self._require_some()
        bucket = self._tree.find(max(share, _SMALLEST_SHARE) * self._tree.weight)
        first, last = _FIRSTS[bucket], _FIRSTS[bucket + 1] - 1
        return 2 * first * last / (first + last) if last else 0.0

    def expected_within(self, limit: int) -> float:
        """E[min(L, limit)]: of an answer that is cut there."""
        self._require_some()
        num_above, sum_above = self._above(_bucket_of(limit), limit)
        return (self._tree.num_tokens - sum_above + num_above * limit) / self._tree.weight

    def expected_remaining(self, num_so_far: int) -> float:
        """E[L - n | L > n]: tokens still to come of an answer that has `num_so_far` and has not ended.

        eMoE (section 4.4) counts the mean down and begins anew at 5 % of it. Beyond all that was seen, an answer goes
        on as the longest tenth of them did."""
        self._require_some()
        bucket = _bucket_of(num_so_far)
        num_above, sum_above = self._above(bucket, num_so_far)
        if num_above > _SMALLEST_SHARE * self._tree.weight:
            return max(1.0, sum_above / num_above - num_so_far)
        tail = _bucket_of(round(self.quantile(_TAIL_QUANTILE)))
        num_tail, sum_tail = self._tree.from_on(tail)
        return max(1.0, sum_tail / num_tail - _FIRSTS[tail])

    def to_json(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "half_life": self.half_life if math.isfinite(self.half_life) else None,
            "buckets": [[_FIRSTS[bucket], *kept] for bucket, kept in self._buckets().items()],
        }

    @classmethod
    def from_json(cls, stored: object) -> LengthSketch:
        """ValueError says why it is none, or one of another version's."""
        if not isinstance(stored, Mapping) or stored.get("format") != _FORMAT:
            raise ValueError(f"it is no {_FORMAT!r}")
        try:
            half_life = math.inf if stored["half_life"] is None else float(stored["half_life"])
            sketch = cls(half_life=half_life)
            for first, weight, tokens in stored["buckets"]:
                sketch._restore(first, float(weight), float(tokens))
        except (KeyError, TypeError) as error:
            raise ValueError(f"it lacks a field or has one of the wrong kind ({error!r})") from error
        return sketch

    def _restore(self, first: object, weight: float, tokens: float) -> None:
        bucket = _bucket_of(first) if type(first) is int else 0
        if type(first) is not int or first != _FIRSTS[bucket] or self._tree.weights[bucket]:
            raise ValueError(f"its bucket {first!r} is none, or stands there twice")
        low, high = weight * _FIRSTS[bucket], weight * (_FIRSTS[bucket + 1] - 1)
        if not (0 < weight < math.inf and low * (1 - 1e-9) <= tokens <= high * (1 + 1e-9)):
            raise ValueError(f"its bucket {first} has weight {weight} and tokens {tokens}, which cannot be")
        self._tree.add(bucket, weight, tokens)

    def _add(self, num_tokens: int, weight: float) -> None:
        length = min(max(num_tokens, 0), MAX_LENGTH)
        bucket = _bucket_of(length)
        self._tree.add(bucket, weight, weight * length)

    def _above(self, bucket: int, num_so_far: int) -> tuple[float, float]:
        """Weight and tokens of lengths above; within one bucket, lengths count as evenly spread."""
        num_above, sum_above = self._tree.from_on(bucket + 1)
        first, last = _FIRSTS[bucket], _FIRSTS[bucket + 1] - 1
        if last > num_so_far:
            part = self._tree.weights[bucket] * (last - num_so_far) / (last - first + 1)
            return num_above + part, sum_above + part * (num_so_far + 1 + last) / 2
        return num_above, sum_above

    def _buckets(self) -> dict[int, tuple[float, float]]:
        """Those with weight, in units of the newest observation's."""
        kept = zip(self._tree.weights, self._tree.tokens, strict=True)
        return {
            bucket: (weight / self._scale, tokens / self._scale)
            for bucket, (weight, tokens) in enumerate(kept)
            if weight
        }

    def _rescale(self) -> None:
        self._tree = self._tree.divided(self._scale)
        self._scale = 1.0

    def _require_some(self) -> None:
        if not self._tree.weight:
            raise ValueError("no length was observed yet")


def _bucket_of(length: int) -> int:
    return min(bisect_right(_FIRSTS, length), _NUM_BUCKETS) - 1
