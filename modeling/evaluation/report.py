"""The report of one evaluation, in one HTML file with its tables and pictures."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from dicomnode.bundle.reader import Bundle
from modeling.evaluation.measures import ECE_BINS, KINDS, RATES
from modeling.evaluation.results import EvaluationResults, MemberAucs
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


def write_report(
    path: Path,
    bundle: Bundle,
    measured: EvaluationResults,
    problems: Sequence[Problem],
    pictures: Mapping[str, Path],
    *,
    outside_split: int,
    rounds: int,
) -> None:
    """Write the report: the images read and the problems, every measure, every figure."""
    identity = bundle.identity
    document = Document(f"{identity.name} {identity.version}: evaluation")
    document.paragraph("Research use only. Not a medical device.", note=True)
    _summary(document, bundle, measured, rounds)
    _input(document, measured, problems, outside_split)
    _discrimination(document, measured)
    document.pictures(pictures)
    _calibration(document, measured)
    _points(document, measured)
    _averages(document, measured)
    _sweep(document, measured)
    _subgroups(document, measured, bundle.manifest.default_operating_point)
    _localisation(document, measured)
    document.write(path)


def _summary(document: Document, bundle: Bundle, measured: EvaluationResults, rounds: int) -> None:
    mean = measured.mean_of_findings
    document.paragraph(
        f"{measured.images} images of {measured.patients} patients, read by an ensemble of {bundle.manifest.members} "
        f"(bundle {bundle.identity.bundle_hash[:12]}). Mean AUC of {len(mean.labels)} findings: {shown(mean.auc)}; of "
        f"the members alone {_members(mean.members)}; of guessing from the view alone {brief(mean.view_only_auc)}."
    )
    document.paragraph(
        f"Parentheses hold 95 % intervals of {rounds} bootstrap samples of whole patients. A dash is what cannot be "
        f"measured: an AUC needs at least {MIN_POSITIVES} images with and {MIN_POSITIVES} without the label. "
        "Calibration and thresholds are the bundle's own; nothing was fitted on these images. "
        f"The bundle was trained on: {bundle.manifest.provenance.data}. Where its training patients are among these "
        "images, every figure is too good; a bundle's own card gives its out-of-fold figures.",
        note=True,
    )


def _input(document: Document, measured: EvaluationResults, problems: Sequence[Problem], outside_split: int) -> None:
    document.heading("What was read")
    gate = ", ".join(f"{name} {count}" for name, count in measured.gate.items())
    document.paragraph(
        f"{outside_split} labelled images lie outside the split asked for. The pixel gate was asked, not obeyed; its "
        f"verdicts: {gate}."
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
            "difference between the two groups named; being the extremes, they differ a little by chance alone.",
            note=True,
        )


def _localisation(document: Document, measured: EvaluationResults) -> None:
    if not measured.localisation:
        return
    document.heading("Localisation: pointing game")
    rows = [
        (_name(label), str(result.throws), str(result.hits), shown(result.rate), f"{result.chance:.3f}")
        for label, result in measured.localisation.items()
    ]
    document.table(("label", "images with boxes", "hits", "hit rate", "by chance"), rows)
    document.paragraph(
        "A hit: the Grad-CAM's highest point lies in a radiologist's box, or within 15 of 1,024 pixels of it. By "
        "chance: the share of the image in which a point would hit.",
        note=True,
    )


def _members(members: MemberAucs | None) -> str:
    return brief(None) if members is None else f"{members.mean:.3f} ± {members.sd:.3f}"


def _name(label: str) -> str:
    return label.replace("_", " ")


def _rate(name: str) -> str:
    return name.upper() if name in {"ppv", "npv", "f1"} else name
