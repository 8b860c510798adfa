"""The losses of the configuration, on logits, and the targets that carry labels and weights to them.

A target is (N, 2, outputs): labels in [0, 1], and the weight of each in the loss, 0 where a label is not known.
"""

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from dicomnode.domain.frame import FloatArray
from modeling.config import FocalLoss, LossSection, WeightedBinaryCrossEntropy


class WeightedOutputs(keras.losses.Loss):  # type: ignore[misc]
    """The mean over images and outputs of weighted binary cross-entropy, or of the focal loss."""

    def __init__(self, *, gamma: float = 0.0, alpha: float | None = None) -> None:
        super().__init__(name="loss")
        self._gamma, self._alpha = gamma, alpha

    def call(self, y_true: keras.KerasTensor, y_pred: keras.KerasTensor) -> keras.KerasTensor:
        """Return (N,) losses of (N, 2, outputs) targets and (N, outputs) logits."""
        labels, weights = y_true[:, 0], y_true[:, 1]
        logits = ops.cast(y_pred, "float32")
        losses = weights * ops.binary_crossentropy(labels, logits, from_logits=True)
        if self._gamma:
            chance = ops.sigmoid(logits)
            losses = losses * ops.power(labels * (1 - chance) + (1 - labels) * chance, self._gamma)
        if self._alpha is not None:
            losses = losses * (labels * self._alpha + (1 - labels) * (1 - self._alpha))
        return ops.mean(losses, axis=-1)


def build_loss(settings: LossSection) -> WeightedOutputs:
    """Return the loss of the configuration."""
    if isinstance(settings, FocalLoss):
        return WeightedOutputs(gamma=settings.gamma, alpha=settings.alpha)
    return WeightedOutputs()


def targets(labels: FloatArray, frequency: FloatArray, settings: LossSection) -> FloatArray:
    """Return (N, 2, outputs) targets of (N, outputs) labels, NaN where not known.

    `frequency`: (outputs,) each label's among the fold's training images.
    """
    known = ~np.isnan(labels)
    values = np.where(known, labels, 0.0)
    weights = np.ones(labels.shape[1], dtype=np.float32)
    weights[0] = settings.abnormality_weight
    weighing = np.where(known, weights / weights.mean(), 0.0)
    if isinstance(settings, WeightedBinaryCrossEntropy):
        weighing = weighing * (values * (1 - frequency) + (1 - values) * frequency)
    smoothed = values * (1 - settings.label_smoothing) + settings.label_smoothing / 2
    return np.stack([smoothed, weighing], axis=1).astype(np.float32)


def logit_shift(frequency: FloatArray, settings: LossSection) -> FloatArray:
    """Return (outputs,) what the loss adds to the best logit; to be taken off again when training is over.

    The weighted loss is least where the odds are those of the label times (1 - frequency) / frequency.
    """
    if not isinstance(settings, WeightedBinaryCrossEntropy):
        return np.zeros_like(frequency)
    return np.asarray(-prior_logits(frequency), dtype=np.float32)


def label_frequency(labels: FloatArray, drawn: npt.NDArray[np.float64]) -> FloatArray:
    """Return (outputs,) the share of positives among known labels, with half a count added on either side.

    `drawn`: (N,) how often an epoch draws the image.
    """
    known = ~np.isnan(labels) * drawn[:, None]
    positives = np.nansum(labels * known, axis=0)
    return np.asarray((positives + 0.5) / (known.sum(axis=0) + 1.0), dtype=np.float32)


def prior_logits(frequency: FloatArray) -> FloatArray:
    """Return the logits of frequencies."""
    return np.asarray(np.log(frequency / (1 - frequency)), dtype=np.float32)


def cross_entropy(labels: FloatArray, logits: FloatArray) -> float:
    """Return the mean binary cross-entropy over known labels: one measure for runs of every loss."""
    known = ~np.isnan(labels)
    losses = np.logaddexp(0.0, logits) - np.where(known, labels, 0.0) * logits
    return float(losses[known].mean())
