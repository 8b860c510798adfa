"""Predictions of images by the member that did not train on them, and their discrimination."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from dicomnode.bundle.manifest import LabelEntry
from dicomnode.domain.frame import FloatArray
from modeling.calibration import probabilities
from modeling.evaluation import predictions
from modeling.evaluation.intervals import Resampler
from modeling.evaluation.populations import by_history, gap_between
from modeling.evaluation.results import HistoryResult, OverfittingResult
from modeling.metrics import Estimate, auc, bootstrap_aucs, estimate, label_aucs, mean_auc
from modeling.network import Network, held_out_logits, load_fold, out_of_fold
from modeling.nih import Radiographs
from modeling.run import OUT_OF_FOLD, Run, write_arrays


def store_out_of_fold(run: Run, network: Network) -> FloatArray:
    """Store the (N, outputs) logits of every image whose fold was trained, NaN of the others, and return them."""
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
        sources=np.array([f"{side} px" for side in run.radiographs.source_px[rows]]),
        truth=run.labels[np.ix_(rows, known)] > 0.5,
        probability=chance,
        members=chance[:, np.newaxis],
    )


BOOTSTRAP_ROUNDS = 2000
IN_SAMPLE_IMAGES, OVERFITTING_ROUNDS = 2000, 500
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """Discrimination on one group of images; None where there are too few positives or negatives.

    `aucs` and `positives` follow the outputs and count only images whose source informs of the label. `mean_findings`
    is the mean over the outputs after the first that have an AUC in the group.
    """

    name: str
    images: int
    patients: int
    positives: tuple[int, ...]
    aucs: tuple[Estimate | None, ...]
    mean_findings: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfFoldReport:
    """All groups, the first being all images, and baselines that see no image.

    `view_only`, `source_only`: per label, the AUC of guessing from the view (AP or PA) or from the source resolution
    alone, on the images that `GroupResult` counts. `source_shift`: per label, the largest distance between two sources'
    mean logits of negative images, in standard deviations: how strongly an output separates the sources.
    `confounded`: findings that some source nearly lacks; `mean_unconfounded`: the mean AUC of the other findings.
    """

    outputs: tuple[str, ...]
    groups: tuple[GroupResult, ...]
    view_only: tuple[float, ...]
    source_only: tuple[float, ...]
    source_shift: tuple[float, ...]
    confounded: tuple[str, ...]
    mean_unconfounded: Estimate | None


def build_report(
    radiographs: Radiographs, outputs: tuple[str, ...], judged: FloatArray, logits: FloatArray, *, seed: int
) -> OutOfFoldReport:
    """Return the report on (N, outputs) out-of-fold logits and labels; NaN where a source is not informative."""
    everything = np.ones(len(logits), dtype=bool)
    chosen = {ALL: everything}
    for side in np.unique(radiographs.source_px):
        chosen[f"{side} px"] = radiographs.source_px == side
    for view in np.unique(radiographs.views):
        chosen[str(view)] = radiographs.views == view
    known = ~np.isnan(radiographs.labels[:, : len(outputs)])
    confounded = np.asarray((np.isnan(judged) & known).any(axis=0)).reshape(-1)
    distinct = {name: rows for name, rows in chosen.items() if name == ALL or not rows.all()}
    return OutOfFoldReport(
        outputs=outputs,
        groups=tuple(_group(name, rows, radiographs, judged, logits, seed) for name, rows in distinct.items()),
        view_only=_blind_baseline(judged, radiographs.views),
        source_only=_blind_baseline(judged, radiographs.source_px.astype(str)),
        source_shift=tuple(
            _source_shift(radiographs.labels[:, c] < 0.5, logits[:, c], radiographs.source_px)
            for c in range(len(outputs))
        ),
        confounded=tuple(name for name, is_confounded in zip(outputs, confounded, strict=True) if is_confounded),
        mean_unconfounded=_mean_of(np.flatnonzero(~confounded[1:]) + 1, radiographs, judged, logits, seed),
    )


def history_of(run: Run, logits: FloatArray, entry: LabelEntry, confounded: Sequence[str]) -> HistoryResult | None:
    """Return the abnormality's out-of-fold results by the patients' histories, of (N, outputs) logits.

    `entry`: the first output's, with its calibration and operating points. `confounded`: findings to leave out of the
    mean.
    """
    whole = _as_predictions(run, logits)
    if whole.labels[0] != run.outputs[0]:
        return None
    kept = [at for at, label in enumerate(whole.labels) if label not in confounded]
    probability = whole.probability[:, kept]
    rows = ~np.isnan(logits[:, 0])
    probability[:, 0] = probabilities(entry.calibration, logits[rows, 0])
    chosen = replace(
        whole,
        labels=tuple(whole.labels[at] for at in kept),
        truth=whole.truth[:, kept],
        probability=probability,
        members=probability[:, np.newaxis],
    )
    ever_ill = frozenset(chosen.patients[chosen.truth.any(axis=1)].tolist())
    thresholds = {name: point.threshold for name, point in entry.operating_points.items()}
    resampler = Resampler(chosen.patients, rounds=BOOTSTRAP_ROUNDS, seed=run.config.train.seed)
    return by_history(chosen, ever_ill, thresholds, resampler)


def overfitting_of(run: Run, network: Network, logits: FloatArray) -> OverfittingResult:
    """Return the members' AUCs on a sample of their own training images against those out of fold.

    `logits`: (N, outputs) out-of-fold logits of a finished run.
    """
    count, folds = len(run.folds), run.config.train.folds
    random = np.random.default_rng((run.config.train.seed, 2))
    sample = np.sort(random.permutation(count)[:IN_SAMPLE_IMAGES])
    scores = np.full((count, folds, len(run.outputs)), np.nan)
    for fold in range(folds):
        load_fold(run, network, fold)
        trained = sample[run.folds[sample] != fold]
        scores[trained, fold] = held_out_logits(run, network, trained)
        scores[run.folds == fold, fold] = logits[run.folds == fold]
    in_sample = np.zeros(count, dtype=bool)
    in_sample[sample] = True
    resampler = Resampler(run.radiographs.patients, rounds=OVERFITTING_ROUNDS, seed=run.config.train.seed)
    found: dict[str, dict[str, Estimate | None]] = {"in_sample": {}, "out_of_fold": {}, "gap": {}}
    for at, name in enumerate(run.outputs):
        truth, known = run.labels[:, at] > 0.5, ~np.isnan(run.labels[:, at])
        inside = [in_sample & known & (run.folds != fold) for fold in range(folds)]
        outside = [known & (run.folds == fold) for fold in range(folds)]
        estimates = gap_between(truth, scores[:, :, at], inside, outside, resampler)
        for measure, value in zip(found, estimates, strict=True):
            found[measure][name] = value
    return OverfittingResult(images=len(sample), **found)


def _mean_of(
    columns: npt.NDArray[np.int64], radiographs: Radiographs, judged: FloatArray, logits: FloatArray, seed: int
) -> Estimate | None:
    if not len(columns):
        return None
    labels, scores = judged[:, columns], logits[:, columns]
    values = label_aucs(labels, scores)
    drawn = bootstrap_aucs(labels, scores, radiographs.patients, rounds=BOOTSTRAP_ROUNDS, seed=seed)
    drawn[:, np.isnan(values)] = np.nan
    return estimate(mean_auc(values), np.array([mean_auc(row) for row in drawn]))


def _group(
    name: str,
    rows: npt.NDArray[np.bool_],
    radiographs: Radiographs,
    judged: FloatArray,
    logits: FloatArray,
    seed: int,
) -> GroupResult:
    labels, scores, patients = judged[rows], logits[rows], radiographs.patients[rows]
    values = label_aucs(labels, scores)
    drawn = bootstrap_aucs(labels, scores, patients, rounds=BOOTSTRAP_ROUNDS, seed=seed)
    drawn[:, np.isnan(values)] = np.nan
    means = np.array([mean_auc(row) for row in drawn[:, 1:]])
    return GroupResult(
        name=name,
        images=len(labels),
        patients=len(set(patients)),
        positives=tuple(int(count) for count in np.nansum(labels, axis=0)),
        aucs=tuple(estimate(float(values[c]), drawn[:, c]) for c in range(labels.shape[1])),
        mean_findings=estimate(mean_auc(values[1:]), means),
    )


def _blind_baseline(judged: FloatArray, group: npt.NDArray[np.str_]) -> tuple[float, ...]:
    """Return, per label, the AUC of scoring each image by how frequent the label is in its group."""
    aucs = []
    for column in judged.T:
        known = ~np.isnan(column)
        truth, names = column[known] > 0.5, group[known]
        frequency = {name: float(truth[names == name].mean()) for name in np.unique(names)}
        aucs.append(auc(truth, np.array([frequency[name] for name in names])))
    return tuple(aucs)


def _source_shift(negative: npt.NDArray[np.bool_], logits: FloatArray, source_px: npt.NDArray[np.int64]) -> float:
    means = [logits[negative & (source_px == source)].mean() for source in np.unique(source_px)]
    return float((max(means) - min(means)) / logits[negative].std())
