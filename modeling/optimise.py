"""One gradient step, its learning rate, and the optimiser's state as arrays that can be stored."""

import math

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from dicomnode.domain.frame import FloatArray
from modeling.config import TrainSection

State = list[npt.NDArray[np.generic]]


class FoldOptimiser:
    """AdamW on binary cross-entropy over all outputs of one head.

    The compiled step is kept while the head's weights and the optimiser's moments are swapped between folds.
    """

    def __init__(self, head: keras.Model, settings: TrainSection) -> None:
        self._head = head
        self._optimiser = keras.optimizers.AdamW(
            settings.learning_rate, weight_decay=settings.weight_decay, global_clipnorm=settings.clip_norm
        )
        self._optimiser.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
        self._optimiser.build(head.trainable_variables)
        weights = np.ones(head.output.shape[-1], dtype=np.float32)
        weights[0] = settings.abnormality_weight
        self._output_weights = tf.constant(weights / weights.mean())
        self._compiled = tf.function(self._step, reduce_retracing=True)

    def state(self) -> State:
        """Return copies of the head's variables, then the optimiser's."""
        return [np.array(variable) for variable in self._variables()]

    def restore(self, state: State) -> None:
        """Put a former `state` back."""
        for variable, value in zip(self._variables(), state, strict=True):
            variable.assign(value)

    def step(self, features: FloatArray, labels: FloatArray, *, learning_rate: float) -> float:
        """Take one step on a batch and return its loss."""
        self._optimiser.learning_rate.assign(learning_rate)
        return float(self._compiled(tf.constant(features, dtype=tf.float32), tf.constant(labels)))

    def _step(self, features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = self._head(features, training=True)
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
            loss = tf.reduce_mean(losses * self._output_weights)
        variables = self._head.trainable_variables
        self._optimiser.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    def _variables(self) -> list[keras.Variable]:
        return [*self._head.variables, *self._optimiser.variables]


def scheduled_rate(progress: float, settings: TrainSection) -> float:
    """Return the learning rate at `progress` in [0, 1] of the run: linear warm-up, then half a cosine to zero."""
    warmup = settings.warmup_fraction
    if progress < warmup:
        return settings.learning_rate * progress / warmup
    done = (progress - warmup) / (1 - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def prior_logits(labels: FloatArray) -> FloatArray:
    """Return (outputs,) the logit of each label's frequency, with half a count added on either side."""
    positives = labels.sum(axis=0)
    return np.asarray(np.log((positives + 0.5) / (len(labels) - positives + 0.5)), dtype=np.float32)
