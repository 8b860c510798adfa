"""Calibration and thresholds, fitted on out-of-fold logits: each is of a member that did not train on the image."""

import numpy as np
import numpy.typing as npt

from dicomnode.bundle.manifest import Calibration, OperatingPointEntry
from dicomnode.domain.errors import ConfigurationError
from modeling.metrics import BoolArray

Floats = npt.NDArray[np.floating]

LEAST_SLOPE = 0.01
"""At or below this slope the logit has no information; the probability is then nearly the label's frequency."""

NEVER_ILL_RULE = (
    "smallest threshold with specificity of at least 0.9 among images of patients without a finding in any image"
)
NEWTON_STEPS = 50
DERIVED_ON = "NIH ChestX-ray14 training images, out of fold"


def fit_calibration(truth: BoolArray, logits: Floats) -> Calibration:
    """Fit probability = sigmoid(slope * logit + intercept) by maximum likelihood.

    Source: Platt 1999, with his smoothed targets, which keep the fit finite when the classes separate.

    Raises: ConfigurationError without at least one positive and one negative.
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise ConfigurationError("a label without positives, or without negatives, cannot be calibrated")
    targets = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    design = np.stack([np.asarray(logits, dtype=np.float64), np.ones(len(truth))], axis=1)
    slope, intercept = _logistic_fit(design, targets)
    if slope <= LEAST_SLOPE:
        slope, intercept = LEAST_SLOPE, float(np.log(positives / negatives) - LEAST_SLOPE * np.mean(logits))
    return Calibration(slope=slope, intercept=intercept)


def with_frequency(calibration: Calibration, *, fitted: float, wanted: float) -> Calibration:
    """Return the calibration for a population in which the label has another frequency, all else being equal.

    Source: Saerens et al., Neural Computation 14 (2002): only the prior odds change, so only the intercept does.
    """
    shift = np.log(wanted / (1 - wanted)) - np.log(fitted / (1 - fitted))
    return Calibration(slope=calibration.slope, intercept=calibration.intercept + float(shift))


def probabilities(calibration: Calibration, logits: Floats) -> npt.NDArray[np.float64]:
    """Return the calibrated probability of each logit."""
    return _sigmoid(calibration.slope * np.asarray(logits, dtype=np.float64) + calibration.intercept)


def probabilities_of(logits: Floats) -> npt.NDArray[np.float64]:
    """Return the softmax of (N, classes) logits."""
    powers = np.exp(np.asarray(logits, dtype=np.float64) - np.max(logits, axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def operating_points(
    truth: BoolArray, probability: Floats, *, frequency: float, never_ill: BoolArray
) -> dict[str, OperatingPointEntry]:
    """Choose thresholds by five rules; an image is positive when its probability reaches the threshold.

    `frequency`: how often the label is true where the predictive value is to hold; the images here may be enriched.
    `never_ill`: (N,) whether the image is of a patient without a finding in any image; where there is none, the rule
    about them takes all negatives.
    """
    thresholds, sensitivity, specificity = _sweep(truth, probability)
    right, wrong = sensitivity * frequency, (1 - specificity) * (1 - frequency)
    worthwhile = (specificity >= 0.95) & (right >= 0.1 * (right + wrong))
    healthy = np.sort(probability[never_ill & ~truth] if (never_ill & ~truth).any() else probability[~truth])
    spared = np.searchsorted(healthy, thresholds, side="left") / len(healthy)
    chosen = {
        "youden": (int(np.argmax(sensitivity + specificity)), "largest sensitivity + specificity - 1"),
        "sensitivity_95": (_last(sensitivity >= 0.95), "largest threshold with sensitivity of at least 0.95"),
        "specificity_95": (_first(specificity >= 0.95), "smallest threshold with specificity of at least 0.95"),
        "never_ill_90": (_first(spared >= 0.9), NEVER_ILL_RULE),
        "ppv_10": (_first(worthwhile), "smallest threshold with specificity of at least 0.95 and PPV of at least 0.1"),
    }
    return {
        name: OperatingPointEntry(
            threshold=float(thresholds[at]),
            sensitivity=float(sensitivity[at]),
            specificity=float(specificity[at]),
            derived_on=DERIVED_ON,
            chosen_by=rule,
        )
        for name, (at, rule) in chosen.items()
    }


def _sweep(truth: BoolArray, probability: Floats) -> tuple[Floats, Floats, Floats]:
    """Return ascending thresholds, from "all positive" to "none positive", with sensitivity and specificity at each."""
    ascending = np.sort(np.unique(np.asarray(probability, dtype=np.float64)))
    # Between two values, so that rounding on another processor does not move an image across its own threshold.
    thresholds = np.concatenate([[0.0], (ascending[1:] + ascending[:-1]) / 2, [1.0]])
    positive, negative = np.sort(probability[truth]), np.sort(probability[~truth])
    sensitivity = 1 - np.searchsorted(positive, thresholds, side="left") / len(positive)
    specificity = np.searchsorted(negative, thresholds, side="left") / len(negative)
    return thresholds, sensitivity, specificity


def _first(holds: BoolArray) -> int:
    return int(np.flatnonzero(holds)[0])


def _last(holds: BoolArray) -> int:
    return int(np.flatnonzero(holds)[-1])


def _logistic_fit(design: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return (slope, intercept) by Newton's method, slightly damped so that a flat likelihood stays solvable."""
    centre, scale = design[:, 0].mean(), design[:, 0].std() + 1e-9
    scaled = np.stack([(design[:, 0] - centre) / scale, design[:, 1]], axis=1)
    weights = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        fitted = _sigmoid(scaled @ weights)
        curvature = scaled.T @ (scaled * (fitted * (1 - fitted))[:, None]) + 1e-6 * np.eye(2)
        weights += np.clip(np.linalg.solve(curvature, scaled.T @ (targets - fitted)), -1.0, 1.0)
    slope = weights[0] / scale
    return float(slope), float(weights[1] - slope * centre)


def _sigmoid(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(value, -60.0, 60.0))))
