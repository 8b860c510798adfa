"""Rates over many labels at once: micro, macro, weighted and samples averages, as scikit-learn names them.

Macro and weighted averages take the labels that have a positive and a negative; weights are the positives. As in
scikit-learn, a rate without a denominator counts as 0 in an average.
"""

import numpy as np

from modeling.evaluation.measures import RATES, confusion, rates
from modeling.evaluation.resampling import Resampler, Values, Weights, estimate_of
from modeling.metrics import BoolArray, Estimate

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
