"""Outputs whose label is confounded with the source of the images.

If one source is rich in a label that the other sources nearly lack, the network learns to recognise the source, for
instance by its sharpness or compression, instead of the finding. The AUC of such an output is high and has no clinical
meaning. Its row of the last layer is therefore fitted again on the informative sources alone: those in which the label
is frequent enough.

Source: Kirichenko et al., "Last layer re-training is sufficient for robustness to spurious correlations", ICLR 2023.
"""

import logging

import keras
import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from dicomnode.domain.frame import FloatArray
from modeling.augment import network_inputs
from modeling.devices import PREDICTED_AT_ONCE
from modeling.network import Network, load_fold, store_output_layer
from modeling.run import Run

log = logging.getLogger(__name__)

LEAST_DEVIATION = 1e-3
PLAIN = 2
"""Dimensions of features that all outputs share."""


def judged_labels(labels: FloatArray, source_px: npt.NDArray[np.int64], least_frequency: float) -> FloatArray:
    """Return the (N, outputs) labels, NaN also where the image's source is not informative of the label.

    A source is not informative of a label that is less than `least_frequency` times as frequent in it as in the source
    where the label is most frequent.
    """
    judged = labels.copy()
    rows = [source_px == source for source in np.unique(source_px)]
    known = [np.maximum((~np.isnan(labels[chosen])).sum(axis=0), 1) for chosen in rows]
    frequency = np.stack([np.nansum(labels[chosen], axis=0) / count for chosen, count in zip(rows, known, strict=True)])
    uninformative = frequency < least_frequency * frequency.max(axis=0)
    for chosen, labels_of in zip(rows, uninformative, strict=True):
        judged[np.ix_(chosen, labels_of)] = np.nan
    return judged


def refit_confounded_outputs(run: Run, network: Network) -> tuple[str, ...]:
    """Fit the rows of confounded outputs again in every fold, store them, and return the outputs' names."""
    settings = run.config.confounding
    judged = judged_labels(run.labels, run.radiographs.source_px, settings.least_source_frequency)
    confounded = np.flatnonzero((np.isnan(judged) & ~np.isnan(run.labels)).any(axis=0))
    names = tuple(run.outputs[index] for index in confounded)
    if not names:
        return ()
    log.info("fitting the last layer again for %s, confounded with the source", ", ".join(names))
    rows = np.flatnonzero((~np.isnan(judged[:, confounded])).any(axis=1))
    for fold in range(run.config.train.folds):
        load_fold(run, network, fold)
        kernel, bias = network.head.get_layer("logits").get_weights()
        training = rows[run.folds[rows] != fold]
        pooled = _pooled_features(run, network, training)
        for index in confounded:
            truth = judged[training, index]
            known = ~np.isnan(truth)
            # A read-out by position has features of its own for each output.
            own = pooled if pooled.ndim == PLAIN else pooled[:, :, index]
            kernel[:, index], bias[index] = fit_row(own[known], truth[known] > 0.5, settings.inverse_ridge)
        store_output_layer(run, fold, kernel, bias)
    return names


def fit_row(pooled: FloatArray, truth: npt.NDArray[np.bool_], inverse_ridge: float) -> tuple[FloatArray, float]:
    """Return the weights (features,) and bias of one output by ridge-penalised logistic regression.

    The smaller `inverse_ridge`, the stronger the penalty on standardised features.
    """
    mean, deviation = pooled.mean(axis=0), pooled.std(axis=0) + LEAST_DEVIATION
    model = LogisticRegression(C=inverse_ridge, max_iter=500).fit((pooled - mean) / deviation, truth)
    weights = np.asarray(model.coef_[0] / deviation, dtype=np.float32)
    return weights, float(model.intercept_[0] - mean @ weights)


def _pooled_features(run: Run, network: Network, rows: npt.NDArray[np.int64]) -> FloatArray:
    """Return the (rows, features) or (rows, features, outputs) input of the last layer under the present weights."""
    head = keras.Model(network.head.input, network.head.get_layer("pooled").output)
    batches = (rows[at : at + PREDICTED_AT_ONCE] for at in range(0, len(rows), PREDICTED_AT_ONCE))
    images = (network_inputs(run.radiographs.pixels[batch], run.config.input.side) for batch in batches)
    return np.concatenate([network.predict(head, batch) for batch in images]).astype(np.float32)
