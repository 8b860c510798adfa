"""What a run predicted of the images that its folds did not train on, stored for export and for `cxrnode compare`."""

import numpy as np
from scipy.special import expit

from dicomnode.domain.frame import FloatArray
from modeling.evaluation import predictions
from modeling.network import Network, out_of_fold
from modeling.run import OUT_OF_FOLD, Run, write_arrays


def store_out_of_fold(run: Run, network: Network) -> FloatArray:
    """Keep the (N, outputs) logits of every image whose fold was trained, NaN of the others, and return them."""
    logits = out_of_fold(run, network)
    if network.spread.is_first:
        arrays = {"names": np.array(run.radiographs.names), "folds": run.folds, "logits": logits}
        write_arrays(run.folder / OUT_OF_FOLD, arrays)
        predictions.write_predictions(run.folder / predictions.FILE, _as_predictions(run, logits))
    return logits


def _as_predictions(run: Run, logits: FloatArray) -> predictions.Predictions:
    """Return the predictions of an ensemble of one, of outputs whose label is known of every image."""
    rows = np.flatnonzero(~np.isnan(logits[:, 0]))
    known = np.flatnonzero(~np.isnan(run.labels[rows]).any(axis=0))
    chance = expit(logits[np.ix_(rows, known)].astype(np.float64))
    nothing = np.full(len(rows), "")
    return predictions.Predictions(
        labels=tuple(run.outputs[index] for index in known),
        images=np.array(run.radiographs.names)[rows],
        patients=run.radiographs.patients[rows],
        views=run.radiographs.views[rows],
        sexes=nothing,
        ages=np.full(len(rows), predictions.UNKNOWN_AGE),
        gate=nothing,
        truth=run.labels[np.ix_(rows, known)] > 0.5,
        probability=chance,
        members=chance[:, np.newaxis],
    )
