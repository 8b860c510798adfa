"""Whether rates and distributions differ by more than chance: intervals, and the population stability index.

A difference is no fault by itself: other patients, another machine and a worse model have the same effect on these
numbers. Every measure has its number of images, and no verdict is given on few images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

from dicomnode.domain.wilson import wilson

MODERATE, LARGE = 0.1, 0.25
"""Customary bounds of the population stability index: below the first a distribution is called stable."""

FEWEST = 100
"""With fewer images on either side, the verdict is FEW."""

_LEAST_SHARE = 0.05
"""The least share of the reference in a bin; without it, the rarest scores would dominate the index."""


class Change(StrEnum):
    """The verdict of a comparison. The values are stable, since they stand in answers and in metrics."""

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
        """The share in [0, 1]; None without images."""
        return self.hits / self.images if self.images else None

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the Wilson score interval; [0, 1] without images."""
        return wilson(self.hits, self.images, confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateComparison:
    """Two rates compared: their difference (later minus former), its interval, and the verdict."""

    difference: float | None
    interval: tuple[float, float] | None
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """The distance of a distribution from its reference, as population stability index `psi`.

    `chance`: the value that the index exceeds by chance alone in one of twenty comparisons. `bins`: how many were left
    after joining.
    """

    psi: float | None
    chance: float | None
    bins: int
    change: Change


def compare_rates(later: Rate, former: Rate, *, comparisons: int = 1) -> RateComparison:
    """Compare two rates by the interval of their difference, at 95 % over all `comparisons` (Bonferroni)."""
    if later.value is None or former.value is None or min(later.images, former.images) < FEWEST:
        return RateComparison(difference=None, interval=None, change=Change.FEW)
    low, high = newcombe(later, former, 1 - 0.05 / comparisons)
    difference = later.value - former.value
    return RateComparison(difference=difference, interval=(low, high), change=_rate_change(difference, low, high))


def newcombe(later: Rate, former: Rate, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of the difference of two rates.

    Source: Newcombe, Stat. Med. 17 (1998) 873, method 10.
    """
    a, b = later.value or 0.0, former.value or 0.0
    (a_low, a_high), (b_low, b_high) = later.interval(confidence), former.interval(confidence)
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def shift(observed: Sequence[int], reference: Sequence[int], *, comparisons: int = 1) -> Shift:
    """Compare two histograms of the same bins by the population stability index.

    Neighbouring bins are joined until each holds a twentieth of the reference. If the distributions are equal, the
    index follows approximately a chi-squared distribution, scaled by the numbers of images. An index below `chance` is
    no difference. Source: Yurdakul, Naranjo, J. Risk Model Valid. 14 (2020) 89.
    """
    observed_count, reference_count = sum(observed), sum(reference)
    if min(observed_count, reference_count) < FEWEST:
        return Shift(psi=None, chance=None, bins=0, change=Change.FEW)
    pairs = _joined(observed, reference, _LEAST_SHARE * reference_count)
    if len(pairs) < 2:
        return Shift(psi=None, chance=None, bins=len(pairs), change=Change.UNKNOWN)
    psi = sum(_term(a, b, observed_count, reference_count, len(pairs)) for a, b in pairs)
    chance = _chi_squared(len(pairs) - 1, 1 - 0.05 / comparisons) * (1 / observed_count + 1 / reference_count)
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
    observed_count = reference_count = 0
    for a, b in zip(observed, reference, strict=True):
        observed_count, reference_count = observed_count + a, reference_count + b
        if reference_count >= least:
            pairs.append((observed_count, reference_count))
            observed_count = reference_count = 0
    if (observed_count or reference_count) and pairs:
        last_seen, last_known = pairs.pop()
        pairs.append((last_seen + observed_count, last_known + reference_count))
    return pairs


def _term(observed_count: int, reference_count: int, all_seen: int, all_known: int, bins: int) -> float:
    """Return one bin's part of the index; half a count is added, since an empty bin would make the index infinite."""
    a = (observed_count + 0.5) / (all_seen + 0.5 * bins)
    b = (reference_count + 0.5) / (all_known + 0.5 * bins)
    return (a - b) * math.log(a / b)


def _chi_squared(degrees: int, confidence: float) -> float:
    """Return a quantile of the chi-squared distribution (Wilson and Hilferty's approximation, within 1 %)."""
    z = NormalDist().inv_cdf(confidence)
    part = 2 / (9 * degrees)
    return degrees * (1 - part + z * math.sqrt(part)) ** 3
