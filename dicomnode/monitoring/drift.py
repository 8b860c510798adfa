"""Whether rates and distributions differ by more than chance: intervals, and the population stability index.

A difference is no fault by itself: other patients, another machine and a worse model look alike in these numbers. So
every measure comes with how many images it stands on, and says nothing where they are few.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

from dicomnode.domain.wilson import wilson

MODERATE, LARGE = 0.1, 0.25
"""The customary bounds of the population stability index."""

FEWEST = 100
"""Of fewer images on either side nothing is said."""

_LEAST_SHARE = 0.05
"""A bin holds this much of the reference at least, or the rarest decide."""


class Change(StrEnum):
    """What a comparison says. The values are stable: they stand in answers and in metrics."""

    UNKNOWN = "no reference"
    FEW = "too few images"
    NONE = "no difference beyond chance"
    SLIGHT = "slight difference"
    MODERATE = "moderate difference"
    LARGE = "large difference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share of images, `hits` of `images`."""

    hits: int
    images: int

    @property
    def value(self) -> float | None:
        """The share; None of no images."""
        return self.hits / self.images if self.images else None

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the Wilson score interval; all of [0, 1] of no images."""
        return wilson(self.hits, self.images, confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateComparison:
    """A rate against another: their difference (later less former) with its interval, and what it says."""

    difference: float | None
    interval: tuple[float, float] | None
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """How far a distribution is from its reference. `chance`: what chance alone exceeds that rarely."""

    psi: float | None
    chance: float | None
    bins: int
    change: Change


def compare_rates(later: Rate, former: Rate, *, comparisons: int = 1) -> RateComparison:
    """Compare two rates by the interval of their difference, at 95 % shared by so many comparisons."""
    if later.value is None or former.value is None or min(later.images, former.images) < FEWEST:
        return RateComparison(difference=None, interval=None, change=Change.FEW)
    low, high = newcombe(later, former, 1 - 0.05 / comparisons)
    difference = later.value - former.value
    return RateComparison(difference=difference, interval=(low, high), change=_rate_change(difference, low, high))


def newcombe(later: Rate, former: Rate, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a difference of rates.

    Source: Newcombe, Stat. Med. 17 (1998) 873, method 10.
    """
    a, b = later.value or 0.0, former.value or 0.0
    (a_low, a_high), (b_low, b_high) = later.interval(confidence), former.interval(confidence)
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def shift(observed: Sequence[int], reference: Sequence[int], *, comparisons: int = 1) -> Shift:
    """Compare two histograms of the same bins by the population stability index.

    Bins are joined until each holds a twentieth of the reference. Without a true difference the index is about
    chi-squared over the numbers of images; what this exceeds in one of twenty sets of `comparisons` is `chance`, and an
    index below it says nothing. Source: Yurdakul, Naranjo, J. Risk Model Valid. 14 (2020) 89.
    """
    seen, known = sum(observed), sum(reference)
    if min(seen, known) < FEWEST:
        return Shift(psi=None, chance=None, bins=0, change=Change.FEW)
    pairs = _joined(observed, reference, _LEAST_SHARE * known)
    if len(pairs) < 2:
        return Shift(psi=None, chance=None, bins=len(pairs), change=Change.UNKNOWN)
    psi = sum(_term(a, b, seen, known, len(pairs)) for a, b in pairs)
    chance = _chi_squared(len(pairs) - 1, 1 - 0.05 / comparisons) * (1 / seen + 1 / known)
    return Shift(psi=psi, chance=chance, bins=len(pairs), change=_shift_change(psi, chance))


def _rate_change(difference: float, low: float, high: float) -> Change:
    if low <= 0 <= high:
        return Change.NONE
    size = abs(difference)
    return Change.LARGE if size >= 0.2 else Change.MODERATE if size >= 0.05 else Change.SLIGHT


def _shift_change(psi: float, chance: float) -> Change:
    if psi <= chance:
        return Change.NONE
    return Change.LARGE if psi >= LARGE else Change.MODERATE if psi >= MODERATE else Change.SLIGHT


def _joined(observed: Sequence[int], reference: Sequence[int], least: float) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    seen = known = 0
    for a, b in zip(observed, reference, strict=True):
        seen, known = seen + a, known + b
        if known >= least:
            pairs.append((seen, known))
            seen = known = 0
    if (seen or known) and pairs:
        last_seen, last_known = pairs.pop()
        pairs.append((last_seen + seen, last_known + known))
    return pairs


def _term(seen: int, known: int, all_seen: int, all_known: int, bins: int) -> float:
    """Return one bin's part of the index; half a count is added to each, or an empty one would make it infinite."""
    a = (seen + 0.5) / (all_seen + 0.5 * bins)
    b = (known + 0.5) / (all_known + 0.5 * bins)
    return (a - b) * math.log(a / b)


def _chi_squared(degrees: int, confidence: float) -> float:
    """Return a quantile of the chi-squared distribution (Wilson and Hilferty's approximation, within 1 %)."""
    z = NormalDist().inv_cdf(confidence)
    part = 2 / (9 * degrees)
    return degrees * (1 - part + z * math.sqrt(part)) ** 3
