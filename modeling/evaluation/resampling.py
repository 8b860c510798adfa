"""Intervals that respect patients: every measure is a function of image weights, and a bootstrap only changes those."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from modeling.metrics import Estimate, estimate

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
