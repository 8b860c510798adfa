"""DeLong's test of two AUCs measured on the same images.

Source: DeLong et al., Biometrics 1988; midranks as in Sun and Xu, IEEE Signal Processing Letters 2014.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from modeling.metrics import BoolArray

Scores = npt.NDArray[np.floating]


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
