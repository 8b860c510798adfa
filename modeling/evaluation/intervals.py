"""Intervals that respect patients, and DeLong's test of two AUCs on the same images.

Every measure is a function of image weights, and a bootstrap changes only the weights.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from modeling.metrics import BoolArray, Estimate, Scores, estimate

Values = npt.NDArray[np.float64]
Weights = npt.NDArray[np.float64]
Statistic = Callable[[Weights], Values]
"""Weights (rounds, images), how often each image counts, to values (rounds,) or (rounds, k); NaN where undefined."""

_CELLS_AT_ONCE = 2_000_000


class Resampler:
    """Draws whole patients with replacement; the same draws for every measure, so that differences are paired.

    Images of one patient resemble each other, so drawing images would make the intervals too narrow.
    """

    def __init__(self, patients: npt.NDArray[np.str_], *, rounds: int, seed: int) -> None:
        """Draw `rounds` samples of the patients; `patients` (images,) names each image's."""
        names, self._patient = np.unique(patients, return_inverse=True)
        random = np.random.default_rng(seed)
        even = np.full(len(names), 1 / len(names))
        drawn = random.multinomial(len(names), even, size=rounds).astype(np.uint16)
        # Row 0 is the sample itself: its value is the estimate, and comes from the same code as the interval.
        self._counts = np.concatenate([np.ones((1, len(names)), dtype=np.uint16), drawn])
        self.rounds, self.patients = rounds, len(names)
        self.image_weights: Values | None = None

    def weighted(self, image_weights: Values) -> "Resampler":
        """Return the same draws with each image counted `image_weights` (images,) times."""
        copied = copy(self)
        copied.image_weights = image_weights
        return copied

    def patients_among(self, rows: npt.NDArray[np.bool_]) -> int:
        """Return of how many patients the images of `rows` are."""
        return len(np.unique(self._patient[rows]))

    def values(self, statistic: Statistic, rows: npt.NDArray[np.bool_] | None = None) -> Values:
        """Return (1 + rounds, …) values of the statistic, the sample's own first, over all images or only `rows`."""
        patient = self._patient if rows is None else self._patient[rows]
        step = max(1, _CELLS_AT_ONCE // max(1, len(patient)))
        parts = []
        for start in range(0, len(self._counts), step):
            weights = self._counts[start : start + step][:, patient].astype(np.float64)
            if self.image_weights is not None:
                weights *= self.image_weights if rows is None else self.image_weights[rows]
            with np.errstate(divide="ignore", invalid="ignore"):
                parts.append(statistic(weights))
        return np.concatenate(parts)

    def estimate(self, statistic: Statistic, rows: npt.NDArray[np.bool_] | None = None) -> Estimate | None:
        """Return the statistic with its 95 % interval, or None where it is undefined."""
        return estimate_of(self.values(statistic, rows))


def estimate_of(values: Values) -> Estimate | None:
    """Return the first of the values with the central 95 % of the others; without others the interval is empty."""
    own = float(values[0])
    if np.isnan(own):
        return None
    return estimate(own, values[1:]) or Estimate(value=own, low=own, high=own)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedAucs:
    """Two AUCs, the standard error of their difference (second minus first), and the two-sided p-value.

    The test takes images as independent; where patients have several, the clustered bootstrap is the one to trust.
    """

    first: float
    second: float
    standard_error: float
    p_value: float

    @property
    def difference(self) -> float:
        """Return second minus first."""
        return self.second - self.first


def compare_aucs(truth: BoolArray, first: Scores, second: Scores) -> PairedAucs:
    """Compare two scores of the same images; there must be two positives and two negatives at least."""
    aucs, covariance = auc_covariance(truth, np.stack([first, second]))
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    error = float(np.sqrt(max(variance, 0.0)))
    difference = abs(float(aucs[1] - aucs[0]))
    # Rounding leaves a variance near 1e-18 for identical rankings.
    certain = error < 1e-9
    p_value = (1.0 if difference < 1e-9 else 0.0) if certain else float(2 * norm.sf(difference / error))
    return PairedAucs(first=float(aucs[0]), second=float(aucs[1]), standard_error=error, p_value=p_value)


def auc_covariance(
    truth: BoolArray, scores: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the AUCs (k,) of `scores` (k, images) and their covariance (k, k)."""
    positive, negative = scores[:, truth], scores[:, ~truth]
    m, n = positive.shape[1], negative.shape[1]
    together = np.concatenate([positive, negative], axis=1)
    ranks = rankdata(together, axis=1)
    # How often each positive outranks the negatives, and each negative is outranked by the positives.
    by_positive = (ranks[:, :m] - rankdata(positive, axis=1)) / n
    by_negative = 1 - (ranks[:, m:] - rankdata(negative, axis=1)) / m
    covariance = np.atleast_2d(np.cov(by_positive)) / m + np.atleast_2d(np.cov(by_negative)) / n
    return by_positive.mean(axis=1), covariance
