"""Measures as functions of image weights, so that one formula gives the value and its interval.

Measures of one label come first; then rates averaged over many labels: micro, macro, weighted and samples averages, as
scikit-learn names them. Macro and weighted averages take the labels that have a positive and a negative; weights are
the positives. As in scikit-learn, a rate without a denominator counts as 0 in an average.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modeling.evaluation.intervals import Resampler, Statistic, Values, Weights, estimate_of
from modeling.metrics import BoolArray, Estimate

Probabilities = npt.NDArray[np.float64]

ECE_BINS = 10
_NEWTON_STEPS = 100
_LEAST = 1e-7
RATES = ("sensitivity", "specificity", "ppv", "npv", "f1")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranking:
    """The images in ascending order of score; `starts` is where each distinct score begins."""

    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    truth: BoolArray

    def masses(self, weights: Weights) -> tuple[Values, Values]:
        """Return the weight of positives and of negatives at each distinct score, (rounds, scores)."""
        ordered = weights[:, self.order]
        positive = np.add.reduceat(ordered * self.truth, self.starts, axis=1)
        return positive, np.add.reduceat(ordered, self.starts, axis=1) - positive


def auc(truth: BoolArray, scores: npt.NDArray[np.floating]) -> Statistic:
    """Return the area under the ROC curve, ties counting half."""
    ranking = _rank(truth, scores)

    def statistic(weights: Weights) -> Values:
        positive, negative = ranking.masses(weights)
        below = np.cumsum(negative, axis=1) - negative
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        return np.asarray((positive * (below + negative / 2)).sum(axis=1) / pairs)

    return statistic


def sensitivity_at(
    truth: BoolArray, scores: npt.NDArray[np.floating], false_positive_rates: npt.NDArray[np.floating]
) -> Statistic:
    """Return the sensitivity (rounds, rates) at each false positive rate, on straight lines between thresholds."""
    ranking = _rank(truth, scores)

    def statistic(weights: Weights) -> Values:
        positive, negative = (_cumulated(masses) for masses in ranking.masses(weights))
        rows = zip(negative, positive, strict=True)
        return np.stack([np.interp(false_positive_rates, false, found) for false, found in rows])

    return statistic


def average_precision(truth: BoolArray, scores: npt.NDArray[np.floating]) -> Statistic:
    """Return the area under the precision-recall curve as the mean precision at each positive, not interpolated."""
    ranking = _rank(truth, scores)

    def statistic(weights: Weights) -> Values:
        positive, negative = ranking.masses(weights)
        found = np.cumsum(positive[:, ::-1], axis=1)
        flagged = found + np.cumsum(negative[:, ::-1], axis=1)
        precision = found / np.where(flagged > 0, flagged, 1)
        return np.asarray((positive[:, ::-1] * precision).sum(axis=1) / positive.sum(axis=1))

    return statistic


def brier(truth: BoolArray, probability: Probabilities) -> Statistic:
    """Return the mean squared error of the probability."""
    squared = (probability - truth) ** 2
    return lambda weights: np.asarray(weights @ squared / weights.sum(axis=1))


def expected_calibration_error(truth: BoolArray, probability: Probabilities, bins: int = ECE_BINS) -> Statistic:
    """Return the mean distance between probability and frequency over bins of equal width, weighted by their images."""
    member = np.eye(bins)[np.minimum((probability * bins).astype(int), bins - 1)]
    excess = member * (probability - truth)[:, None]
    return lambda weights: np.asarray(np.abs(weights @ excess).sum(axis=1) / weights.sum(axis=1))


def calibration_line(truth: BoolArray, probability: Probabilities) -> Statistic | None:
    """Return (slope, intercept) of a logistic regression of the truth on the probability's logit; 1 and 0 are ideal.

    None when the classes are separable or absent, so that no line fits. Other weights than one each take a single
    Newton step from the sample's fit: the one-step bootstrap, equal to the full refit to first order.
    """
    clipped = np.clip(probability, _LEAST, 1 - _LEAST)
    design = np.stack([np.log(clipped / (1 - clipped)), np.ones(len(truth))], axis=1)
    fitted = _logistic_fit(design, truth)
    if fitted is None:
        return None
    expected = _sigmoid(design @ fitted)
    score = design * (truth - expected)[:, None]
    products = (design[:, :, None] * design[:, None, :] * (expected * (1 - expected))[:, None, None]).reshape(-1, 4)

    def statistic(weights: Weights) -> Values:
        information = (weights @ products).reshape(-1, 2, 2)
        # A draw of one class, or of one probability, has no line of its own.
        information[np.linalg.det(information) <= 0] = np.nan
        return np.asarray(fitted + np.linalg.solve(information, (weights @ score)[:, :, None])[:, :, 0])

    return statistic


def confusion(truth: BoolArray, flagged: BoolArray) -> Statistic:
    """Return (true positives, false positives, false negatives, true negatives)."""
    cells = np.stack([truth & flagged, ~truth & flagged, truth & ~flagged, ~truth & ~flagged], axis=1)
    return lambda weights: np.asarray(weights @ cells.astype(np.float64))


def share_of(chosen: BoolArray) -> Statistic:
    """Return the share of images that are chosen."""
    return lambda weights: np.asarray(weights @ chosen.astype(np.float64) / weights.sum(axis=1))


def rates(counts: Values) -> Values:
    """Return sensitivity, specificity, PPV, NPV and F1 (…, 5) of confusion counts (…, 4); NaN where undefined."""
    hit, false, missed, rejected = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = (
            hit / (hit + missed),
            rejected / (rejected + false),
            hit / (hit + false),
            rejected / (rejected + missed),
            2 * hit / (2 * hit + false + missed),
        )
    return np.stack(parts, axis=-1)


def _rank(truth: BoolArray, scores: npt.NDArray[np.floating]) -> _Ranking:
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    return _Ranking(order=order, starts=starts, truth=truth[order])


def _cumulated(masses: Values) -> Values:
    """Return the share of each row's mass at or above each score, from the highest on, beginning with none."""
    found = np.cumsum(masses[:, ::-1], axis=1)
    return np.pad(found / found[:, -1:], ((0, 0), (1, 0)))


def _logistic_fit(design: Values, truth: BoolArray) -> Values | None:
    """Return the maximum-likelihood weights, or None when Newton's method does not reach a maximum."""
    centre, scale = float(design[:, 0].mean()), float(design[:, 0].std())
    if scale < _LEAST:
        return None
    scaled = (design - [centre, 0.0]) / [scale, 1.0]
    weights = np.zeros(2)
    for _ in range(_NEWTON_STEPS):
        expected = _sigmoid(scaled @ weights)
        curvature = (scaled * (expected * (1 - expected))[:, None]).T @ scaled
        gradient = scaled.T @ (truth - expected)
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        weights += np.clip(step, -2.0, 2.0)
        if np.max(np.abs(step)) < 1e-9:
            # Separable classes creep towards infinity: there the information vanishes.
            slope = weights[0] / scale
            return np.array([slope, weights[1] - slope * centre]) if np.linalg.det(curvature) > 1e-6 else None
    return None


def _sigmoid(value: Values) -> Values:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * value)))


KINDS = ("micro", "macro", "weighted", "samples")


def averages(truth: BoolArray, flagged: BoolArray, resampler: Resampler) -> dict[str, dict[str, Estimate | None]]:
    """Return each kind of average of each rate; `truth`, `flagged`: (images, labels)."""
    per_image = np.nan_to_num(rates(_counts_per_image(truth, flagged)))
    cells = np.stack([truth & flagged, ~truth & flagged, truth & ~flagged, ~truth & ~flagged], axis=-1)
    flat = cells.reshape(len(truth), -1).astype(np.float64)
    usable = truth.any(axis=0) & ~truth.all(axis=0)

    def statistic(weights: Weights) -> Values:
        counts = (weights @ flat).reshape(len(weights), truth.shape[1], 4)
        per_label = np.nan_to_num(rates(counts))[:, usable]
        positives = (counts[:, usable, 0] + counts[:, usable, 2])[:, :, None]
        return np.stack(
            [
                rates(counts.sum(axis=1)),
                per_label.sum(axis=1) / usable.sum(),
                (per_label * positives).sum(axis=1) / positives.sum(axis=1),
                weights @ per_image / weights.sum(axis=1, keepdims=True),
            ],
            axis=1,
        )

    values = resampler.values(statistic)
    return {kind: {rate: estimate_of(values[:, k, r]) for r, rate in enumerate(RATES)} for k, kind in enumerate(KINDS)}


def rates_at(
    truth: BoolArray, flagged: BoolArray, resampler: Resampler, rows: BoolArray | None = None
) -> dict[str, Estimate | None]:
    """Return one label's rates with intervals; `truth` and `flagged` are those of `rows`."""
    values = rates(resampler.values(confusion(truth, flagged), rows))
    return {rate: estimate_of(values[:, index]) for index, rate in enumerate(RATES)}


def _counts_per_image(truth: BoolArray, flagged: BoolArray) -> Values:
    cells = (truth & flagged, ~truth & flagged, truth & ~flagged, ~truth & ~flagged)
    return np.stack([cell.sum(axis=1) for cell in cells], axis=-1).astype(np.float64)
