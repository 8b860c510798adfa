"""How probabilities are binned where their distribution is compared: fine where rare findings lie."""

from collections.abc import Iterable

SCORE_BOUNDS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0,
)  # fmt: skip
"""The bins' upper bounds, which belong to them."""


def score_bound(probability: float) -> float:
    """Return the upper bound of the bin that holds a probability."""
    return next((bound for bound in SCORE_BOUNDS if probability <= bound), SCORE_BOUNDS[-1])


def score_counts(probabilities: Iterable[float]) -> tuple[int, ...]:
    """Return how many probabilities are in each bin."""
    counts = dict.fromkeys(SCORE_BOUNDS, 0)
    for probability in probabilities:
        counts[score_bound(probability)] += 1
    return tuple(counts.values())
