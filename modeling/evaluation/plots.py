"""Pictures of an evaluation as PNG; drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve

from modeling.drawing import DPI, GREY, STYLE
from modeling.evaluation.curves import reliability_bins, roc_points
from modeling.evaluation.predictions import Predictions
from modeling.evaluation.results import EvaluationResults
from modeling.metrics import BoolArray, Estimate, auc

_COLUMNS = 5
BLUE, ORANGE = "#0072b2", "#d55e00"
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d", "#b8a800")
"""Told apart under every common colour vision deficiency (Okabe and Ito)."""


def draw_plots(folder: Path, predictions: Predictions, measured: EvaluationResults) -> dict[str, Path]:
    """Write all plots and return them by caption."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "ROC curves": ("roc.png", _roc),
        "Precision-recall curves; the dotted line is the label's prevalence": ("precision-recall.png", _pr),
        "Reliability: observed frequency by predicted probability; the bars are 95 % intervals": (
            "reliability.png",
            _reliability,
        ),
        "Distribution of the probability among images with and without the label": ("scores.png", _scores),
    }
    pictures = {}
    with mpl.rc_context(STYLE):
        for caption, (name, draw) in drawn.items():
            pictures[caption] = _save(folder / name, _grid(predictions, measured, draw))
        pictures["Images per label"] = _save(folder / "label-counts.png", _counts(measured))
        pictures["AUC of the ensemble, of its members, and of the view alone"] = _save(
            folder / "auc.png", _auc_overview(measured)
        )
    return pictures


def intervals(
    rows: Sequence[str], series: Mapping[str, Sequence[Estimate | None]], axis_label: str, reference: float
) -> Figure:
    """Return a figure of values with intervals: one line per row, one colour per series."""
    figure = Figure(figsize=(8.0, 1.1 + 0.2 * len(rows) * (1 + len(series) * 0.45)), layout="constrained")
    axes = figure.add_subplot()
    for at, (name, estimates) in enumerate(series.items()):
        offset = (at - (len(series) - 1) / 2) * 0.7 / max(1, len(series))
        known = [(row + offset, estimate) for row, estimate in enumerate(estimates) if estimate is not None]
        values = np.array([estimate.value for _, estimate in known])
        errors = (
            np.array([[estimate.value - estimate.low, estimate.high - estimate.value] for _, estimate in known])
            .reshape(-1, 2)
            .T
        )
        axes.errorbar(
            values,
            [row for row, _ in known],
            xerr=np.maximum(errors, 0),
            fmt="o",
            ms=4,
            lw=1.2,
            color=COLOURS[at % len(COLOURS)],
            label=name,
        )
    axes.axvline(reference, color=GREY, lw=0.8, ls=":")
    axes.set_yticks(range(len(rows)), [row.replace("_", " ") for row in rows])
    # Rows without a value keep their place.
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(axis_label)
    if len(series) > 1:
        figure.legend(loc="outside upper center", ncols=min(4, len(series)))
    return figure


def save_intervals(
    path: Path, rows: Sequence[str], series: Mapping[str, Sequence[Estimate | None]], axis_label: str, reference: float
) -> Path:
    """Draw `intervals` into a file."""
    with mpl.rc_context(STYLE):
        return _save(path, intervals(rows, series, axis_label, reference))


def save_roc(path: Path, predictions: Predictions) -> Path:
    """Draw the ROC curve of every label that has positives and negatives into a file."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 6.0), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
        for index, label in enumerate(predictions.labels):
            truth, probability = predictions.truth[:, index], predictions.probability[:, index]
            if truth.any() and not truth.all():
                false, found = roc_points(truth, probability)
                style = "-" if index < len(COLOURS) else "--"
                name = f"{label.replace('_', ' ')}, AUC {auc(truth, probability):.3f}"
                axes.plot(false, found, style, lw=1.2, color=COLOURS[index % len(COLOURS)], label=name)
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal", title="Held-out images")
        axes.legend(loc="lower right", fontsize=7)
        return _save(path, figure)


def _save(path: Path, figure: Figure) -> Path:
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def _grid(predictions: Predictions, measured: EvaluationResults, draw: Any) -> Figure:
    labels = predictions.labels
    rows = -(-len(labels) // _COLUMNS)
    figure = Figure(figsize=(13.5, 2.75 * rows), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes, (index, label) in zip(grid, enumerate(labels), strict=False):
        axes.set_title(label.replace("_", " "))
        truth, probability = predictions.truth[:, index], predictions.probability[:, index]
        if truth.any() and not truth.all():
            draw(axes, truth, probability, measured.labels[label])
        else:
            axes.text(0.5, 0.5, "one class only", ha="center", va="center", color=GREY, transform=axes.transAxes)
    for axes in grid[len(labels) :]:
        axes.set_axis_off()
    named = {name: line for axes in grid for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if named and draw is _roc:
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named))
    return figure


def _roc(axes: Axes, truth: BoolArray, probability: Any, result: Any) -> None:
    false, true = roc_points(truth, probability)
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    axes.plot(false, true, color=BLUE, lw=1.4)
    colours = iter(COLOURS[1:])
    for name, point in result.operating_points.items():
        rates = point.rates
        if rates["sensitivity"] is None or rates["specificity"] is None:
            continue
        axes.plot(
            1 - rates["specificity"].value, rates["sensitivity"].value, "o", ms=4, color=next(colours), label=name
        )
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    text = f"AUC {result.auc}" if result.auc else f"{result.positives} positives: no AUC"
    axes.text(0.98, 0.04, text.replace(" (", "\n("), ha="right", transform=axes.transAxes, fontsize=8)


def _pr(axes: Axes, truth: BoolArray, probability: Any, result: Any) -> None:
    precision, recall, _ = precision_recall_curve(truth, probability)
    axes.axhline(truth.mean(), color=GREY, lw=0.8, ls=":")
    axes.step(recall, precision, where="post", color=BLUE, lw=1.2)
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    text = f"AUPRC {result.auprc}" if result.auprc else f"{result.positives} positives"
    axes.text(0.98, 0.94, text.replace(" (", "\n("), ha="right", va="top", transform=axes.transAxes, fontsize=8)


def _reliability(axes: Axes, truth: BoolArray, probability: Any, result: Any) -> None:
    """Draw bins of equally many images with Wilson's intervals."""
    bins = reliability_bins(truth, probability)
    predicted, observed = (np.array([getattr(each, name) for each in bins]) for name in ("predicted", "observed"))
    errors = np.array([(each.observed - each.low, each.high - each.observed) for each in bins]).T
    top = min(1.0, 1.05 * max(0.02, *(max(each.predicted, each.high) for each in bins)))
    axes.plot([0, top], [0, top], color=GREY, lw=0.8, ls=":")
    axes.errorbar(predicted, observed, yerr=errors, fmt="o-", ms=3.5, lw=1, color=BLUE)
    axes.set(xlabel="predicted", ylabel="observed", xlim=(0, top), ylim=(0, top))
    lines = [f"ECE {result.ece.value:.3f}"]
    if result.calibration_slope and result.calibration_intercept:
        lines.append(f"slope {result.calibration_slope.value:.2f}")
        lines.append(f"intercept {result.calibration_intercept.value:+.2f}")
    axes.text(0.04, 0.96, "\n".join(lines), va="top", transform=axes.transAxes, fontsize=8)


def _scores(axes: Axes, truth: BoolArray, probability: Any, result: Any) -> None:
    edges = np.linspace(0, max(float(probability.max()), 0.02), 31).tolist()
    shades = ((~truth, GREY, f"without ({result.negatives})"), (truth, ORANGE, f"with ({result.positives})"))
    for rows, colour, name in shades:
        axes.hist(
            probability[rows], edges, weights=np.full(rows.sum(), 1 / rows.sum()), color=colour, alpha=0.6, label=name
        )
    axes.set(xlabel="probability", ylabel="share of images")
    axes.legend(loc="upper right")


def _counts(measured: EvaluationResults) -> Figure:
    names = list(measured.labels)
    positives = [measured.labels[name].positives for name in names]
    figure = Figure(figsize=(8.0, 0.9 + 0.26 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh([name.replace("_", " ") for name in names], positives, color=BLUE)
    axes.bar_label(bars, [f"{count} ({count / measured.images:.1%})" for count in positives], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"images with the label, of {measured.images}")
    axes.margins(x=0.15)
    return figure


def _auc_overview(measured: EvaluationResults) -> Figure:
    names = list(measured.labels)
    ensemble = [measured.labels[name].auc for name in names]
    view = [measured.labels[name].view_only_auc for name in names]
    figure = intervals(names, {"ensemble": ensemble, "view alone": view}, "AUC (95 % interval)", 0.5)
    axes = figure.axes[0]
    for row, name in enumerate(names):
        members = measured.labels[name].members
        if members is not None:
            axes.plot(members.aucs, [row - 0.175] * len(members.aucs), "|", ms=8, color="#111111", mew=1.0)
    return figure
