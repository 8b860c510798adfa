"""The report of one evaluation, in one HTML file with its tables and pictures."""

import base64
import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from dicomnode.bundle.manifest import Manifest
from dicomnode.bundle.reader import Bundle
from modeling.evaluation.assess import thresholds_of
from modeling.evaluation.measures import ECE_BINS, KINDS, RATES
from modeling.evaluation.predictions import Predictions
from modeling.evaluation.results import EvaluationResults, MemberAucs, TrainingOverlap
from modeling.evaluation.subgroups import MEASURES
from modeling.metrics import MIN_POSITIVES, Estimate
from modeling.preparation.problems import Problem, counted

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1e23; max-width: 76rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { max-width: 56rem; } .note { color: #596069; }
.wide { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .7rem; text-align: right; border-bottom: 1px solid #e3e6ea; white-space: nowrap; }
th { border-bottom: 2px solid #9aa1aa; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; } figure { margin: 1.2rem 0; } figcaption { color: #596069; font-size: 13px; }
"""
NOTHING = "\N{EN DASH}"


class Document:
    """HTML in the order in which it is added; all text is escaped."""

    def __init__(self, title: str) -> None:
        """Begin a document under this title."""
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, *, note: bool = False) -> None:
        """Add a paragraph, quieter if it is a note."""
        self._parts.append(f'<p class="note">{escape(text)}</p>' if note else f"<p>{escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Add a table; its first column is text, the others are figures."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
        self._parts.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        )

    def pictures(self, captioned: Mapping[str, Path]) -> None:
        """Put PNG files into the document, each with its caption."""
        for caption, path in captioned.items():
            encoded = base64.b64encode(path.read_bytes()).decode()
            text = escape(caption)
            self._parts.append(
                f'<figure><img alt="{text}" src="data:image/png;base64,{encoded}">'
                f"<figcaption>{text}</figcaption></figure>"
            )

    def write(self, path: Path) -> None:
        """Write the file."""
        head = f'<meta charset="utf-8"><title>{escape(self._title)}</title><style>{_STYLE}</style>'
        body = "\n".join(self._parts)
        path.write_text(f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n')


def shown(estimate: Estimate | None) -> str:
    """Return a value with its interval, or a dash."""
    if estimate is None:
        return NOTHING
    joint = " to " if estimate.low < 0 else "-"
    return f"{estimate.value:.3f} ({estimate.low:.3f}{joint}{estimate.high:.3f})"


def brief(value: Estimate | float | None) -> str:
    """Return a value without its interval, or a dash."""
    if value is None:
        return NOTHING
    return f"{value.value if isinstance(value, Estimate) else value:.3f}"


_NAMED_OF_A_KIND = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInputs:
    """What a report states besides the measures. `title`: of the evaluation, "" for none."""

    title: str
    problems: tuple[Problem, ...]
    overlap: TrainingOverlap | None
    outside_split: int
    rounds: int


def write_report(
    path: Path, bundle: Bundle, measured: EvaluationResults, inputs: ReportInputs, pictures: Mapping[str, Path]
) -> None:
    """Write the report: the images read and the problems, every measure, every figure."""
    identity = bundle.identity
    title = f": {inputs.title}" if inputs.title else ""
    document = Document(f"{identity.name} {identity.version}: evaluation{title}")
    document.paragraph("Research use only. Not a medical device.", note=True)
    _summary(document, bundle, measured, inputs.rounds)
    _input(document, measured, inputs.problems, inputs.outside_split)
    _overlap(document, inputs.overlap)
    _discrimination(document, measured)
    _history(document, measured)
    _overfitting(document, measured)
    document.pictures(pictures)
    _calibration(document, measured)
    _points(document, measured)
    _confusion(document, measured)
    _averages(document, measured)
    _sweep(document, measured)
    _matched(document, measured)
    _subgroups(document, measured, bundle.manifest.default_operating_point)
    _localisation(document, measured)
    document.write(path)


def write_sheets(folder: Path, predictions: Predictions, manifest: Manifest) -> None:
    """Write a table for each label: every image with its actual label, probability, and outcome at each point.

    Rows are ordered by probability, the highest first; outcomes are TP, FP, FN and TN.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = {entry.name: entry for entry in manifest.labels}
    for at, label in enumerate(predictions.labels):
        points = {name: threshold for name, (threshold, _) in thresholds_of(entries[label]).items()}
        truth, probability = predictions.truth[:, at], predictions.probability[:, at]
        file_name = "".join(character if character.isalnum() else "_" for character in label)
        with (folder / f"{file_name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("image", "patient", "view", "actual", "probability", *points))
            for row in np.argsort(-probability, kind="stable"):
                about = (predictions.images[row], predictions.patients[row], predictions.views[row])
                outcomes = [_outcome(bool(truth[row]), probability[row] >= point) for point in points.values()]
                writer.writerow((*about, int(truth[row]), f"{probability[row]:.6g}", *outcomes))


def _outcome(actual: bool, flagged: bool) -> str:  # noqa: FBT001 - the two cells of a confusion matrix
    return ("TP" if flagged else "FN") if actual else ("FP" if flagged else "TN")


def _overlap(document: Document, overlap: TrainingOverlap | None) -> None:
    if overlap is None:
        document.paragraph(
            "The bundle holds no digests of its training images, so whether some of them are among these is unknown.",
            note=True,
        )
    elif overlap.trained_on:
        document.paragraph(
            f"Warning: the bundle was trained on {overlap.trained_on} of these {overlap.images} images. Every figure "
            "below is too good."
        )
    else:
        document.paragraph("None of these images is among the bundle's training images, by name or by pixels.")


def _history(document: Document, measured: EvaluationResults) -> None:
    history = measured.history
    if history is None:
        return
    document.heading("Abnormality of ever-ill and never-ill patients")
    rows = [
        (
            f"negatives of {group} patients",
            str(history.patients[group]),
            str(history.negatives[group]),
            shown(history.auc[group]),
            *(shown(by_group[group]) for by_group in history.specificity.values()),
        )
        for group in history.negatives
    ]
    header = ("group", "patients", "negatives", "AUC", *(f"specificity at {name}" for name in history.specificity))
    document.table(header, rows)
    document.paragraph(
        f"A patient was ever ill when any row of the label table names a finding. All {history.positives} positives "
        "are of ever-ill patients; each AUC compares them with the negatives of one group. Mean AUC of the findings "
        f"among images of ever-ill patients: {shown(history.findings_ever_ill)}.",
        note=True,
    )


def _overfitting(document: Document, measured: EvaluationResults) -> None:
    found = measured.overfitting
    if found is None:
        return
    document.heading("In-sample against out-of-fold")
    rows = [
        (_name(label), shown(found.in_sample[label]), shown(found.out_of_fold[label]), shown(found.gap[label]))
        for label in found.gap
    ]
    document.table(("label", "in-sample AUC", "out-of-fold AUC", "gap"), rows)
    document.paragraph(
        f"Mean over the members, on {found.images} images of the run: of each member on images that it trained on, and "
        "on images of its fold.",
        note=True,
    )


def _confusion(document: Document, measured: EvaluationResults) -> None:
    document.heading("Confusion matrices")
    rows = []
    for label, result in measured.labels.items():
        for name, point in result.operating_points.items():
            cells = point.confusion
            counts = (cells.true_positives, cells.false_positives, cells.false_negatives, cells.true_negatives)
            rows.append((f"{_name(label)}: {name}", *map(str, counts), shown(point.called)))
    header = ("label and operating point", "TP", "FP", "FN", "TN", "share of images called positive")
    document.table(header, rows)


def _matched(document: Document, measured: EvaluationResults) -> None:
    found = measured.matched
    if found is None:
        return
    document.heading("Reweighted to the target population")
    margins = [
        (f"{margin}: {category}", f"{share:.3f}")
        for margin, shares in found.target.items()
        for category, share in shares.items()
    ]
    document.table(("margin", "share"), margins)
    rows = [
        (_name(label), shown(found.auc[label]), shown(found.called[label]), *map(shown, found.rates[label].values()))
        for label in found.auc
    ]
    document.table(("label", "AUC", "called positive", *map(_rate, RATES)), rows)
    document.paragraph(
        f"The images are weighted so that all margins have these shares; they count as {found.effective_images:.0f} "
        f"equally weighted images. Mean AUC of the findings: {shown(found.mean_of_findings)}. Rates are at the "
        "bundle's default operating point.",
        note=True,
    )


def _summary(document: Document, bundle: Bundle, measured: EvaluationResults, rounds: int) -> None:
    mean = measured.mean_of_findings
    document.paragraph(
        f"{measured.images} images of {measured.patients} patients, read by an ensemble of {bundle.manifest.members} "
        f"(bundle {bundle.identity.bundle_hash[:12]}). Mean AUC of {len(mean.labels)} findings: {shown(mean.auc)}; of "
        f"the members alone {_members(mean.members)}; of guessing from the view alone {brief(mean.view_only_auc)}."
        + _spread_of_aucs(measured)
    )
    document.paragraph(
        f"Parentheses hold 95 % intervals of {rounds} bootstrap samples of whole patients. A dash: too few images, "
        f"since an AUC needs at least {MIN_POSITIVES} images with and {MIN_POSITIVES} without the label. "
        "Calibration and thresholds are the bundle's own; nothing was fitted on these images. "
        f"The bundle was trained on: {bundle.manifest.provenance.data}. Where its training patients are among these "
        "images, every figure is too good; a bundle's own card gives its out-of-fold figures.",
        note=True,
    )


def _spread_of_aucs(measured: EvaluationResults) -> str:
    text = ""
    spread, unconfounded = measured.auc_range, measured.unconfounded
    if spread is not None:
        text += (
            f" AUC of the findings: minimum {spread.minimum:.3f} ({_name(spread.lowest)}), median {spread.median:.3f}, "
            f"maximum {spread.maximum:.3f} ({_name(spread.highest)})."
        )
    if unconfounded is not None and unconfounded.confounded:
        text += (
            f" Without findings confounded with the source ({', '.join(map(_name, unconfounded.confounded))}): mean of "
            f"{len(unconfounded.labels)} {shown(unconfounded.auc)}."
        )
    return text


def _input(document: Document, measured: EvaluationResults, problems: Sequence[Problem], outside_split: int) -> None:
    document.heading("What was read")
    gate = ", ".join(f"{name} {count}" for name, count in measured.gate.items())
    document.paragraph(
        f"{outside_split} labelled images lie outside the split asked for. Images were read whatever the pixel gate "
        f"decided; its verdicts: {gate}."
    )
    if not problems:
        document.paragraph("Every labelled image was read; no file was without a label.")
        return
    document.table(("problem", "count"), [(kind, str(count)) for kind, count in counted(problems).items()])
    by_kind: dict[str, list[tuple[str, str, str]]] = {}
    for problem in sorted(problems):
        by_kind.setdefault(problem.kind.value, []).append((problem.kind.value, problem.subject, problem.detail))
    named = [row for rows in by_kind.values() for row in rows[:_NAMED_OF_A_KIND]]
    document.table(("problem", "image or file", "detail"), named)
    if len(problems) > len(named):
        document.paragraph(f"All {len(problems)} are in skipped.csv.", note=True)


def _discrimination(document: Document, measured: EvaluationResults) -> None:
    document.heading("Discrimination")
    rows = [
        (
            _name(label),
            str(result.positives),
            shown(result.auc),
            _members(result.members),
            shown(result.view_only_auc),
            shown(result.auprc),
        )
        for label, result in measured.labels.items()
    ]
    mean = measured.mean_of_findings
    rows.append(
        (
            f"mean of {len(mean.labels)} findings",
            "",
            shown(mean.auc),
            _members(mean.members),
            shown(mean.view_only_auc),
            shown(mean.auprc),
        )
    )
    header = ("label", "positives", "AUC of the ensemble", "members, mean ± sd", "view alone", "AUPRC")
    document.table(header, rows)
    document.paragraph(
        "View alone: the AUC of scoring each image by how frequent the label is in its view (AP or PA), fitted on "
        "these very images; a model that is no better has learnt how the patient was imaged.",
        note=True,
    )


def _calibration(document: Document, measured: EvaluationResults) -> None:
    document.heading("Calibration")
    header = ("label", "Brier score", "expected calibration error", "slope", "intercept")
    rows = [
        (
            _name(label),
            shown(result.brier),
            shown(result.ece),
            shown(result.calibration_slope),
            shown(result.calibration_intercept),
        )
        for label, result in measured.labels.items()
    ]
    document.table(header, rows)
    document.paragraph(
        f"Slope 1 and intercept 0 are ideal; both are of one logistic regression on the probability's logit. The "
        f"calibration error is over {ECE_BINS} bins of equal width.",
        note=True,
    )


def _points(document: Document, measured: EvaluationResults) -> None:
    names = dict.fromkeys(name for result in measured.labels.values() for name in result.operating_points)
    for name in names:
        document.heading(f"At the operating point {name}")
        rows = [
            (
                _name(label),
                str(result.positives),
                f"{point.threshold:.3f}",
                *(shown(point.rates[rate]) for rate in RATES),
            )
            for label, result in measured.labels.items()
            if (point := result.operating_points.get(name)) is not None
        ]
        document.table(("label", "positives", "threshold", *map(_rate, RATES)), rows)
    document.paragraph(
        "A bootstrap cannot say how uncertain a rate of exactly 0 or 1 is, and with a handful of positives it says "
        "too little of any sensitivity: look at the number of positives first.",
        note=True,
    )


def _averages(document: Document, measured: EvaluationResults) -> None:
    document.heading("Averages over the findings")
    rows = [
        (f"{point}: {kind}", *(shown(kinds[kind][rate]) for rate in RATES))
        for point, kinds in measured.averages.items()
        for kind in KINDS
    ]
    document.table(("operating point and average", *map(_rate, RATES)), rows)
    document.paragraph(
        "Micro pools all decisions; macro is the plain, weighted the positives-weighted mean over labels; samples is "
        "the mean over images. As in scikit-learn, a rate without a denominator counts as 0.",
        note=True,
    )


def _sweep(document: Document, measured: EvaluationResults) -> None:
    if not measured.threshold_sweep:
        return
    document.heading("Abnormality: threshold sweep")
    rows = [
        (f"{row.threshold:.2f}", f"{row.accuracy:.3f}", *(brief(row.rates[rate]) for rate in RATES))
        for row in measured.threshold_sweep
    ]
    document.table(("threshold", "accuracy", *map(_rate, RATES)), rows)


def _subgroups(document: Document, measured: EvaluationResults, point: str) -> None:
    for axis, result in measured.subgroups.items():
        document.heading(f"By {axis}")
        if not result.groups:
            document.paragraph(f"The label table does not say the {axis} of any image.")
            continue
        header = ["label"]
        for name, group in result.groups.items():
            header += [f"AUC: {name} ({group.images} images)"]
        rows = [
            (_name(label), *(shown(group.labels[label].auc) for group in result.groups.values()))
            for label in measured.labels
        ]
        document.table(header, rows)
        gaps = [
            (_name(label), measure, gap.best, gap.worst, shown(gap.difference))
            for label, by_measure in result.gaps.items()
            for measure in MEASURES
            if (gap := by_measure.get(measure)) is not None
        ]
        if gaps:
            document.table(("gap between groups", "measure", "best", "worst", "difference"), gaps)
        document.paragraph(
            f"{result.unknown} images have no {axis}. Sensitivity and specificity at {point}. The interval is of the "
            "difference between the two groups named; chosen as best and worst, they differ a little by chance alone.",
            note=True,
        )


def _localisation(document: Document, measured: EvaluationResults) -> None:
    if not measured.localisation:
        return
    document.heading("Localisation: pointing game and share of the map inside the boxes")
    rows = [
        (
            _name(label), str(result.images), str(result.hits), shown(result.rate), shown(result.centre_rate),
            shown(result.mean_box_rate), shown(result.rate_gain), shown(result.share_inside),
            f"{result.flat_share:.3f}", shown(result.mean_box_share), shown(result.share_gain),
        )
        for label, result in measured.localisation.items()
    ]  # fmt: skip
    header = (
        "label", "images with boxes", "hits", "hit rate", "image centre", "mean box", "map minus mean box",
        "share inside", "flat map", "mean box", "map minus mean box",
    )  # fmt: skip
    document.table(header, rows)
    document.paragraph(
        "A hit: the map's highest point lies in a radiologist's box, or within 15 of 1,024 pixels of it. Share inside: "
        "the part of the map's positive values within the boxes. The mean box is that of the label in other patients' "
        "images: a map that is no better tells nothing about this image.",
        note=True,
    )


def _members(members: MemberAucs | None) -> str:
    return brief(None) if members is None else f"{members.mean:.3f} ± {members.sd:.3f}"


def _name(label: str) -> str:
    return label.replace("_", " ")


def _rate(name: str) -> str:
    return name.upper() if name in {"ppv", "npv", "f1"} else name
