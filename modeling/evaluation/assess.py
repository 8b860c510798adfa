"""All measures of a bundle's predictions on labelled images."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dicomnode.bundle.manifest import LabelEntry, Manifest
from dicomnode.domain.terminology import ABNORMALITY
from modeling.evaluation import measures
from modeling.evaluation.intervals import Resampler, Values, estimate_of
from modeling.evaluation.measures import averages, rates_at
from modeling.evaluation.pointing import BoxedMap, localisation
from modeling.evaluation.populations import (
    Target,
    TrainedFolds,
    by_history,
    matched,
    overfitting,
    without_confounded,
)
from modeling.evaluation.predictions import Predictions
from modeling.evaluation.results import (
    AucRange,
    ConfusionMatrix,
    EvaluationResults,
    HistoryResult,
    LabelResult,
    MeanResult,
    MemberAucs,
    PointResult,
    Rates,
    SweepRow,
)
from modeling.evaluation.subgroups import subgroups
from modeling.metrics import MIN_POSITIVES, BoolArray, Estimate, auc

FIRST_SYSTEM = "first_system_0.5"
_SWEEP = tuple(round(0.40 + 0.01 * step, 2) for step in range(30))
Stage = Callable[[str], None]
"""Called with a description of the present step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """Further groupings of an evaluation, each None when it is not asked for.

    `ever_ill`: patients with a finding in any row of the label table. `target`: the population to match. `trained`:
    the folds of the bundle's own run.
    """

    ever_ill: frozenset[str] | None = None
    target: Target | None = None
    trained: TrainedFolds | None = None


def assess(
    predictions: Predictions,
    maps: Sequence[BoxedMap],
    manifest: Manifest,
    extras: Extras,
    *,
    rounds: int,
    seed: int,
    stage: Stage,
) -> EvaluationResults:
    """Measure everything; thresholds and calibration are the bundle's own, none is fitted on these images."""
    resampler = Resampler(predictions.patients, rounds=rounds, seed=seed)
    entries = {label.name: label for label in manifest.labels}
    labels: dict[str, LabelResult] = {}
    curves: dict[str, dict[str, Values]] = {}
    for index, name in enumerate(predictions.labels):
        stage(f"measuring {name}")
        labels[name], curves[name] = _label(predictions, index, entries[name], resampler)
    stage("averaging over the findings")
    averaged = _averages(predictions, manifest, resampler)
    aucs = {name: values["auc"] for name, values in curves.items() if values}
    stage("comparing subgroups")
    default = _default_thresholds(manifest)
    return EvaluationResults(
        images=len(predictions.images),
        patients=resampler.patients,
        gate=dict(sorted(Counter(predictions.gate.tolist()).items())),
        labels=labels,
        mean_of_findings=_mean(labels, curves),
        auc_range=_range(labels),
        unconfounded=without_confounded(predictions, aucs),
        history=_history(predictions, extras, entries, resampler),
        matched=None if extras.target is None else matched(predictions, extras.target, default, resampler),
        overfitting=None if extras.trained is None else overfitting(predictions, extras.trained, resampler),
        averages=averaged,
        threshold_sweep=_sweep(predictions),
        subgroups=subgroups(predictions, default, resampler),
        localisation=localisation(maps, rounds=rounds, seed=seed),
    )


def _history(
    predictions: Predictions, extras: Extras, entries: Mapping[str, LabelEntry], resampler: Resampler
) -> HistoryResult | None:
    if extras.ever_ill is None or ABNORMALITY not in entries:
        return None
    thresholds = {name: threshold for name, (threshold, _) in thresholds_of(entries[ABNORMALITY]).items()}
    return by_history(predictions, extras.ever_ill, thresholds, resampler)


def _range(labels: Mapping[str, LabelResult]) -> AucRange | None:
    known = {
        name: result.auc.value for name, result in labels.items() if result.auc is not None and name != ABNORMALITY
    }
    if not known:
        return None
    lowest, highest = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    values = list(known.values())
    return AucRange(
        lowest=lowest,
        minimum=known[lowest],
        highest=highest,
        maximum=known[highest],
        mean=float(np.mean(values)),
        median=float(np.median(values)),
    )


def thresholds_of(entry: LabelEntry) -> dict[str, tuple[float, str]]:
    """Return the label's thresholds and how they were chosen: the bundle's, and the first system's 0.5."""
    points = {
        name: (point.threshold, f"{point.chosen_by}; {point.derived_on}")
        for name, point in entry.operating_points.items()
    }
    return points | {FIRST_SYSTEM: (0.5, "the first system's fixed threshold")}


def measurable(truth: BoolArray) -> bool:
    """Tell whether there are enough positives and negatives for an AUC."""
    return min(int(truth.sum()), int((~truth).sum())) >= MIN_POSITIVES


def _label(
    predictions: Predictions, index: int, entry: LabelEntry, resampler: Resampler
) -> tuple[LabelResult, dict[str, Values]]:
    """Return the label's result, and the bootstrap's AUCs for the means over labels."""
    truth, probability = predictions.truth[:, index], predictions.probability[:, index]
    curves: dict[str, Values] = {}
    if measurable(truth):
        curves = {
            "auc": resampler.values(measures.auc(truth, probability)),
            "auprc": resampler.values(measures.average_precision(truth, probability)),
            "view": resampler.values(measures.auc(truth, _frequency_in_view(truth, predictions))),
        }
    line = measures.calibration_line(truth, probability)
    fitted = None if line is None or not measurable(truth) else resampler.values(line)
    points = {
        name: _point(truth, probability >= threshold, threshold, chosen_by, resampler)
        for name, (threshold, chosen_by) in thresholds_of(entry).items()
    }
    result = LabelResult(
        positives=int(truth.sum()),
        negatives=int((~truth).sum()),
        auc=_known(curves, "auc"),
        members=_members(truth, predictions.members[:, :, index]) if curves else None,
        view_only_auc=_known(curves, "view"),
        auprc=_known(curves, "auprc"),
        brier=resampler.estimate(measures.brier(truth, probability)),
        ece=resampler.estimate(measures.expected_calibration_error(truth, probability)),
        calibration_slope=None if fitted is None else estimate_of(fitted[:, 0]),
        calibration_intercept=None if fitted is None else estimate_of(fitted[:, 1]),
        operating_points=points,
    )
    return result, curves


def _point(truth: BoolArray, flagged: BoolArray, threshold: float, chosen_by: str, resampler: Resampler) -> PointResult:
    return PointResult(
        threshold=threshold,
        chosen_by=chosen_by,
        rates=rates_at(truth, flagged, resampler),
        confusion=ConfusionMatrix(
            true_positives=int((truth & flagged).sum()),
            false_positives=int((~truth & flagged).sum()),
            false_negatives=int((truth & ~flagged).sum()),
            true_negatives=int((~truth & ~flagged).sum()),
        ),
        called=resampler.estimate(measures.share_of(flagged)),
    )


def _known(curves: dict[str, Values], name: str) -> Estimate | None:
    return estimate_of(curves[name]) if curves else None


def _members(truth: BoolArray, members: Values) -> MemberAucs:
    """Return the members' AUCs; `members`: (images, members)."""
    return _spread([auc(truth, members[:, member]) for member in range(members.shape[1])])


def _spread(aucs: Sequence[float]) -> MemberAucs:
    sd = float(np.std(aucs, ddof=1)) if len(aucs) > 1 else 0.0
    return MemberAucs(aucs=tuple(aucs), mean=float(np.mean(aucs)), sd=sd)


def _frequency_in_view(truth: BoolArray, predictions: Predictions) -> Values:
    """Return for each image how frequent the label is among images of its view, unknown being a view too."""
    _, view = np.unique(predictions.views, return_inverse=True)
    return np.asarray((np.bincount(view, weights=truth) / np.bincount(view))[view])


def _mean(labels: dict[str, LabelResult], curves: dict[str, dict[str, Values]]) -> MeanResult:
    names = tuple(name for name, values in curves.items() if values and name != ABNORMALITY)

    def mean_of(kind: str) -> Estimate | None:
        return estimate_of(np.mean([curves[name][kind] for name in names], axis=0)) if names else None

    members = [result.aucs for name in names if (result := labels[name].members) is not None]
    return MeanResult(
        labels=names,
        auc=mean_of("auc"),
        members=_spread([float(value) for value in np.mean(members, axis=0)]) if members else None,
        view_only_auc=mean_of("view"),
        auprc=mean_of("auprc"),
    )


def _averages(predictions: Predictions, manifest: Manifest, resampler: Resampler) -> dict[str, dict[str, Rates]]:
    """Return, per operating point that all findings have, the averages over the findings; abnormality is not one."""
    entries = {label.name: label for label in manifest.labels}
    findings = [at for at, name in enumerate(predictions.labels) if name != ABNORMALITY]
    points = [thresholds_of(entries[predictions.labels[at]]) for at in findings]
    common = [name for name in (points[0] if points else ()) if all(name in thresholds for thresholds in points)]
    truth, probability = predictions.truth[:, findings], predictions.probability[:, findings]
    return {
        name: averages(truth, probability >= np.array([thresholds[name][0] for thresholds in points]), resampler)
        for name in common
    }


def _sweep(predictions: Predictions) -> tuple[SweepRow, ...]:
    if ABNORMALITY not in predictions.labels:
        return ()
    index = predictions.labels.index(ABNORMALITY)
    truth, probability = predictions.truth[:, index], predictions.probability[:, index]
    rows = []
    for threshold in _SWEEP:
        counts = measures.confusion(truth, probability >= threshold)(np.ones((1, len(truth))))[0]
        values = dict(zip(measures.RATES, measures.rates(counts).tolist(), strict=True))
        rows.append(
            SweepRow(
                threshold=threshold,
                accuracy=float((counts[0] + counts[3]) / counts.sum()),
                rates={rate: None if np.isnan(value) else value for rate, value in values.items()},
            )
        )
    return tuple(rows)


def _default_thresholds(manifest: Manifest) -> dict[str, float]:
    point = manifest.default_operating_point
    return {label.name: label.operating_points[point].threshold for label in manifest.labels}
