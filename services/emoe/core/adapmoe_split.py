"""How many slots each layer gets, so that the layers' gains add up to the most: exact, whatever the gains.

The dynamic programme behind AdapMoE's cache split. Where each layer's gains fall, the largest ones are taken, which is
the same and needs no table. Elsewhere a Lagrange multiplier, the price of a slot, first rules out most numbers of
slots: one that loses more at that price than the best split known stays below the bound is in no best split.
L layers, T slots of one layer (from 0), S slots in all.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from emoe.core.experts import FloatGrid

Counts = npt.NDArray[np.int64]

ROUNDING = 1e-12
"""Of the largest gain: differences below are of the floats, not of the gains."""
_NUM_PRICES = 64
"""Halvings of the range in which the price is sought; any price gives a right answer, a good one a fast one."""


def split_slots(gains_LT: FloatGrid, num_slots: int) -> Counts:
    """[L]: at most `num_slots` in all. `gains[l, t]`: what layer l gains by slot t + 1 after t, negative for a loss."""
    num_slots = min(num_slots, gains_LT.size)
    rises = np.diff(gains_LT, axis=1).max(initial=0.0)
    if rises <= ROUNDING * np.abs(gains_LT).max(initial=0.0):
        return _take_largest(np.minimum.accumulate(gains_LT, axis=1), num_slots)
    worth_LT = np.concatenate([np.zeros((len(gains_LT), 1)), gains_LT.cumsum(axis=1)], axis=1)
    best_LT = np.maximum.accumulate(worth_LT, axis=1)
    low_L, high_L = _narrow(best_LT, num_slots)
    return low_L + _run_programme(best_LT, low_L, high_L, num_slots - int(low_L.sum()))


def _take_largest(falling_LT: FloatGrid, num_slots: int) -> Counts:
    """Equal gains in the order of layers; no loss is taken."""
    order = np.argsort(-falling_LT, axis=None, kind="stable")[: min(num_slots, int((falling_LT >= 0).sum()))]
    return np.bincount(order // falling_LT.shape[1], minlength=len(falling_LT)).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class _Priced:
    """The best numbers of slots [L] at a price: `few` and `many` are the ends of equals."""

    few: Counts
    many: Counts
    bound: float
    """No split of the slots is worth more."""


def _narrow(worth_LT: FloatGrid, num_slots: int) -> tuple[Counts, Counts]:
    """The fewest and the most slots that each layer has in any best split."""
    price = _find_price(worth_LT, num_slots)
    priced = _at_price(worth_LT, price, num_slots)
    known = worth_LT[np.arange(len(worth_LT)), _fill(priced, num_slots)].sum()
    gap = max(0.0, priced.bound - known) + ROUNDING * max(abs(priced.bound), worth_LT.max(initial=0.0))
    net_LT = worth_LT - price * np.arange(worth_LT.shape[1])
    is_left = net_LT >= net_LT.max(axis=1, keepdims=True) - gap
    return is_left.argmax(axis=1), worth_LT.shape[1] - 1 - is_left[:, ::-1].argmax(axis=1)


def _find_price(worth_LT: FloatGrid, num_slots: int) -> float:
    """The lowest found at which no more slots are wanted than there are."""
    low, high = 0.0, float(worth_LT[:, 1:].max(initial=0.0)) + 1.0
    if int(_at_price(worth_LT, low, num_slots).few.sum()) <= num_slots:
        return low
    for _ in range(_NUM_PRICES):
        middle = (low + high) / 2
        fits = int(_at_price(worth_LT, middle, num_slots).few.sum()) <= num_slots
        low, high = (low, middle) if fits else (middle, high)
    return high


def _at_price(worth_LT: FloatGrid, price: float, num_slots: int) -> _Priced:
    net_LT = worth_LT - price * np.arange(worth_LT.shape[1])
    best_L = net_LT.max(axis=1)
    return _Priced(
        few=net_LT.argmax(axis=1),
        many=worth_LT.shape[1] - 1 - net_LT[:, ::-1].argmax(axis=1),
        bound=float(best_L.sum()) + price * num_slots,
    )


def _fill(priced: _Priced, num_slots: int) -> Counts:
    """A split that is allowed, and good: more slots for the first layers that are worth the price with them."""
    room = num_slots - int(priced.few.sum())
    if room < 0:
        return np.zeros_like(priced.few)
    wanted_L = priced.many - priced.few
    given_L = np.clip(room - (wanted_L.cumsum() - wanted_L), 0, wanted_L)
    return np.asarray(priced.few + given_L)


def _run_programme(worth_LT: FloatGrid, low_L: Counts, high_L: Counts, num_slots: int) -> Counts:
    """[L]: slots beyond `low`. best(l, s) = max over t of best(l - 1, s - t) + worth(l, low + t)."""
    best_S = np.zeros(1)
    chosen: list[Counts] = []
    for worth_T, low, high in zip(worth_LT, low_L.tolist(), high_L.tolist(), strict=True):
        own = worth_T[low : high + 1]
        padded = np.pad(best_S, len(own) - 1, constant_values=-np.inf)
        # windows[s, j] is best(s - (len(own) - 1 - j)): the last column is to give this layer nothing more.
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(own))[: num_slots + 1] + own[::-1]
        picked_S = windows.argmax(axis=1)
        best_S = np.take_along_axis(windows, picked_S[:, None], axis=1)[:, 0]
        chosen.append(len(own) - 1 - picked_S)
    slots = int(best_S.argmax())
    counts = np.zeros(len(worth_LT), dtype=np.int64)
    for layer in reversed(range(len(chosen))):
        counts[layer] = chosen[layer][slots]
        slots -= counts[layer]
    return counts
