"""ROC curves in few points, and reliability in bins of equally many images, for plots and for the bundle."""

import heapq
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_curve

from dicomnode.bundle.manifest import Curves, OperatingPointEntry, ReliabilityBin, RocCurve
from dicomnode.domain.wilson import wilson
from modeling.evaluation.intervals import Resampler, Values
from modeling.evaluation.measures import rates_at, sensitivity_at
from modeling.metrics import BoolArray, Estimate

BINS = 10
POINTS = 64
NEIGHBOURHOOD = 0.02
"""Distance, along the curve, of the two neighbours that are kept beside each point of `kept`."""

_DECIMALS = 5


def roc_points(truth: BoolArray, probability: Values) -> tuple[Values, Values]:
    """Return false positive rate and sensitivity at every threshold, from (0, 0) to (1, 1)."""
    false, found, _ = roc_curve(truth, probability, drop_intermediate=False)
    return np.asarray(false, dtype=np.float64), np.asarray(found, dtype=np.float64)


def thinned(
    false: Values, found: Values, kept: Iterable[tuple[float, float]] = (), *, at_most: int = POINTS
) -> npt.NDArray[np.int64]:
    """Return the indices of the points that represent a curve best.

    Its ends are kept, and the points nearest to `kept` with a neighbour on either side.

    Points are removed one by one, always the point that forms the smallest triangle with its neighbours, until
    `at_most` remain. The result consists of points of the curve, so it still rises and keeps nearly the same area.
    Source: Visvalingam and Whyatt, Cartographic Journal 30 (1993) 46.
    """
    fixed, x, y = _fixed(false, found, kept), false.tolist(), found.tolist()
    before, after = list(range(-1, len(x) - 1)), list(range(1, len(x) + 1))

    def triangle(at: int) -> float:
        a, c = before[at], after[at]
        return abs(float((x[at] - x[a]) * (y[c] - y[a]) - (x[c] - x[a]) * (y[at] - y[a])))

    areas = {at: triangle(at) for at in range(len(x)) if at not in fixed}
    heap = [(area, at) for at, area in areas.items()]
    heapq.heapify(heap)
    while areas and len(areas) + len(fixed) > at_most:
        area, at = heapq.heappop(heap)
        if areas.get(at) != area:
            continue
        del areas[at]
        after[before[at]], before[after[at]] = after[at], before[at]
        for beside in {before[at], after[at]} & areas.keys():
            areas[beside] = triangle(beside)
            heapq.heappush(heap, (areas[beside], beside))
    return np.array(sorted(fixed | areas.keys()))


def reliability_bins(
    truth: BoolArray, probability: Values, *, frequency: float | None = None, bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Return bins of equally many images by probability; bins of equal width would be mostly empty for a rare label.

    `frequency`: how often the label is true in the population for which the probabilities are calibrated. If it differs
    here, images with and without the label are weighted to that frequency, as in Saerens et al. (2002).
    """
    here = float(truth.mean())
    wanted = here if frequency is None else frequency
    positive, negative = wanted / here, (1 - wanted) / (1 - here)
    parts = np.array_split(np.argsort(probability, kind="stable"), min(bins, len(truth)))
    made = [_bin(truth[part], probability[part], positive, negative) for part in parts]
    return tuple(sorted(made, key=lambda made_bin: made_bin.predicted))


def curves_of(
    truth: BoolArray,
    probability: Values,
    points: Mapping[str, OperatingPointEntry],
    resampler: Resampler,
    rows: BoolArray,
    *,
    frequency: float,
    derived_on: str,
) -> Curves:
    """Return an output's curves; `truth` and `probability` are those of `rows` of the resampler's images."""
    false, found = roc_points(truth, probability)
    chosen = thinned(false, found, [(1 - point.specificity, point.sensitivity) for point in points.values()])
    false, found = false[chosen].round(_DECIMALS), found[chosen].round(_DECIMALS)
    drawn = resampler.values(sensitivity_at(truth, probability, false), rows)
    low, high = np.nanpercentile(drawn[1:], (2.5, 97.5), axis=0).round(_DECIMALS)
    return Curves(
        derived_on=derived_on,
        images=len(truth),
        patients=resampler.patients_among(rows),
        roc=RocCurve(
            false_positive_rate=tuple(false.tolist()),
            sensitivity=tuple(found.tolist()),
            # On a vertical part of the curve several sensitivities share a false positive rate; the bootstrap has one
            # of them.
            low=tuple(np.minimum(low, found).tolist()),
            high=tuple(np.maximum(high, found).tolist()),
        ),
        reliability=reliability_bins(truth, probability, frequency=frequency),
    )


def with_intervals(
    point: OperatingPointEntry, truth: BoolArray, probability: Values, resampler: Resampler, rows: BoolArray
) -> OperatingPointEntry:
    """Return the operating point with the intervals of its sensitivity and specificity."""
    rates = rates_at(truth, probability >= point.threshold, resampler, rows)
    intervals = {
        "sensitivity_interval": _around(point.sensitivity, rates["sensitivity"]),
        "specificity_interval": _around(point.specificity, rates["specificity"]),
    }
    return point.model_copy(update=intervals)


def _around(value: float, estimate: Estimate | None) -> tuple[float, float] | None:
    return None if estimate is None else (min(value, estimate.low), max(value, estimate.high))


def _fixed(false: Values, found: Values, kept: Iterable[tuple[float, float]]) -> set[int]:
    """Return the places of a curve's ends, and of the points nearest to some with a neighbour on either side."""
    along = false + found
    nearest = {int(np.argmin(np.abs(false - x) + np.abs(found - y))) for x, y in kept}
    fixed = {0, len(false) - 1, *nearest}
    for at in nearest:
        fixed.add(int(np.searchsorted(along, along[at] - NEIGHBOURHOOD)))
        fixed.add(min(int(np.searchsorted(along, along[at] + NEIGHBOURHOOD)), len(false) - 1))
    return fixed


def _bin(truth: BoolArray, probability: Values, positive: float, negative: float) -> ReliabilityBin:
    """Return one bin, in which images with the label weigh `positive` and those without it `negative`."""
    weights = np.where(truth, positive, negative)
    share = float(truth.mean())
    low, high = wilson(int(truth.sum()), len(truth))
    observed, low, high = (
        round(odds * positive / (odds * positive + (1 - odds) * negative), _DECIMALS) for odds in (share, low, high)
    )
    return ReliabilityBin(
        predicted=round(float(weights @ probability / weights.sum()), _DECIMALS),
        observed=observed,
        low=min(low, observed),
        high=max(high, observed),
        images=len(truth),
    )
