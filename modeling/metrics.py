"""Discrimination with intervals that respect patients, in numpy."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from dicomnode.domain.frame import FloatArray

BoolArray = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.floating]

MIN_POSITIVES = 30
"""An AUC of fewer positives (or negatives) is too uncertain to be reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def auc(truth: BoolArray, scores: Scores) -> float:
    """Return the area under the ROC curve: how often a positive outranks a negative, ties counting half.

    NaN without at least one of each.
    """
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    rank_sum = float(rankdata(scores)[truth].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def label_aucs(labels: FloatArray, scores: FloatArray) -> npt.NDArray[np.float64]:
    """Return each output's AUC, NaN for those with fewer than `MIN_POSITIVES` on either side.

    `labels`, `scores`: (N, outputs); images whose label is NaN are left out for that output.
    """
    values = np.full(labels.shape[1], np.nan)
    for index in range(labels.shape[1]):
        judged = ~np.isnan(labels[:, index])
        truth = labels[judged, index] > 0.5
        if min(truth.sum(), (~truth).sum()) >= MIN_POSITIVES:
            values[index] = auc(truth, scores[judged, index])
    return values


def mean_auc(aucs: npt.NDArray[np.float64]) -> float:
    """Return the mean over the outputs that have an AUC, NaN when none has."""
    known = aucs[~np.isnan(aucs)]
    return float(known.mean()) if known.size else float("nan")


def bootstrap_aucs(
    labels: FloatArray, scores: FloatArray, patients: npt.NDArray[np.str_], *, rounds: int, seed: int
) -> npt.NDArray[np.float64]:
    """Return (rounds, outputs) AUCs of samples that draw whole patients with replacement.

    Images of one patient resemble each other, so drawing images would make the interval too narrow.
    """
    random = np.random.default_rng(seed)
    order = np.argsort(patients, kind="stable")
    groups = np.split(order, np.flatnonzero(patients[order][1:] != patients[order][:-1]) + 1)
    drawn = np.empty((rounds, labels.shape[1]), dtype=np.float64)
    for index in range(rounds):
        rows = np.concatenate([groups[g] for g in random.integers(len(groups), size=len(groups))])
        drawn[index] = label_aucs(labels[rows], scores[rows])
    return drawn


def estimate(value: float, drawn: npt.NDArray[np.float64]) -> Estimate | None:
    """Return the value with the central 95 % of its bootstrap distribution, or None when there is none."""
    known = drawn[~np.isnan(drawn)]
    if np.isnan(value) or not known.size:
        return None
    low, high = np.percentile(known, (2.5, 97.5))
    return Estimate(value=value, low=float(low), high=float(high))
