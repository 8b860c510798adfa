"""The same measures by sex, age band, view and source, and how far apart the groups are."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dicomnode.domain.terminology import ABNORMALITY
from modeling.evaluation.intervals import Resampler, Values, estimate_of
from modeling.evaluation.measures import RATES, auc, confusion, rates
from modeling.evaluation.predictions import Predictions
from modeling.evaluation.results import Axis, Gap, Group, GroupLabel
from modeling.metrics import MIN_POSITIVES, BoolArray, Estimate

MEAN_OF_FINDINGS = "mean of findings"
MEASURES = ("auc", "sensitivity", "specificity")
_AGE_BANDS = ((0, 17), (18, 39), (40, 59), (60, 79), (80, 120))
_GroupCurves = dict[str, dict[str, Values]]
"""Bootstrap values, the sample's own first, by label and measure; a measure is absent where too few images have it."""


def subgroups(predictions: Predictions, thresholds: Mapping[str, float], resampler: Resampler) -> dict[str, Axis]:
    """Return the measures by sex, age band, view and source; `thresholds` are the labels' default ones."""
    attributes = {
        "sex": predictions.sexes,
        "age": _bands(predictions.ages),
        "view": predictions.views,
        "source": predictions.sources,
    }
    return {name: _axis(predictions, values, thresholds, resampler) for name, values in attributes.items()}


def _bands(ages: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
    names = np.full(len(ages), "", dtype="U8")
    for low, high in _AGE_BANDS:
        names[(ages >= low) & (ages <= high)] = f"{low}-{high}" if high < _AGE_BANDS[-1][1] else f"{low}+"
    return names


def _axis(
    predictions: Predictions, values: npt.NDArray[np.str_], thresholds: Mapping[str, float], resampler: Resampler
) -> Axis:
    names = sorted({str(value) for value in values if value}, key=lambda name: (len(name.split("-")[0]), name))
    rows_of = {name: values == name for name in names}
    curves = {name: _curves(predictions, rows, thresholds, resampler) for name, rows in rows_of.items()}
    _add_means(curves)
    groups: dict[str, Group] = {}
    for name, rows in rows_of.items():
        mean = curves[name][MEAN_OF_FINDINGS].get("auc")
        groups[name] = Group(
            images=int(rows.sum()),
            patients=len(np.unique(predictions.patients[rows])),
            labels={
                label: _group_label(int(predictions.truth[rows, at].sum()), curves[name][label])
                for at, label in enumerate(predictions.labels)
            },
            mean_of_findings=None if mean is None else estimate_of(mean),
        )
    everywhere = (*predictions.labels, MEAN_OF_FINDINGS)
    gaps = {label: found for label in everywhere if (found := _gaps(label, curves))}
    return Axis(unknown=int((values == "").sum()), groups=groups, gaps=gaps)


def _curves(
    predictions: Predictions, rows: BoolArray, thresholds: Mapping[str, float], resampler: Resampler
) -> _GroupCurves:
    found: _GroupCurves = {}
    for at, label in enumerate(predictions.labels):
        truth, probability = predictions.truth[rows, at], predictions.probability[rows, at]
        positives, negatives = int(truth.sum()), int((~truth).sum())
        measured: dict[str, Values] = {}
        if min(positives, negatives) >= MIN_POSITIVES:
            measured["auc"] = resampler.values(auc(truth, probability), rows)
        at_point = rates(resampler.values(confusion(truth, probability >= thresholds[label]), rows))
        if positives >= MIN_POSITIVES:
            measured["sensitivity"] = at_point[:, RATES.index("sensitivity")]
        if negatives >= MIN_POSITIVES:
            measured["specificity"] = at_point[:, RATES.index("specificity")]
        found[label] = measured
    return found


def _group_label(positives: int, curves: Mapping[str, Values]) -> GroupLabel:
    estimates: dict[str, Estimate | None] = {
        name: estimate_of(curves[name]) if name in curves else None for name in MEASURES
    }
    return GroupLabel(
        positives=positives,
        auc=estimates["auc"],
        sensitivity=estimates["sensitivity"],
        specificity=estimates["specificity"],
    )


def _add_means(curves: Mapping[str, _GroupCurves]) -> None:
    """Add the mean over the findings that every measurable group can measure, so that groups compare like with like."""
    measurable = [group for group in curves.values() if any("auc" in by_measure for by_measure in group.values())]
    labels = [
        label
        for label in (measurable[0] if measurable else ())
        if label != ABNORMALITY and all("auc" in group[label] for group in measurable)
    ]
    for group in curves.values():
        group[MEAN_OF_FINDINGS] = {}
    if labels:
        for group in measurable:
            group[MEAN_OF_FINDINGS] = {"auc": np.mean([group[label]["auc"] for label in labels], axis=0)}


def _gaps(label: str, curves: Mapping[str, _GroupCurves]) -> dict[str, Gap]:
    gaps = {}
    for measure in MEASURES:
        by_group = {name: group[label][measure] for name, group in curves.items() if measure in group[label]}
        if len(by_group) < 2:
            continue
        best = max(by_group, key=lambda name: float(by_group[name][0]))
        worst = min((name for name in by_group if name != best), key=lambda name: float(by_group[name][0]))
        difference = estimate_of(by_group[best] - by_group[worst])
        if difference is not None:
            gaps[measure] = Gap(best=best, worst=worst, difference=difference)
    return gaps
