"""The report of one evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dicomnode.bundle.reader import Bundle
from modeling.evaluation.averages import KINDS
from modeling.evaluation.document import Document, brief, shown
from modeling.evaluation.measures import ECE_BINS, RATES
from modeling.evaluation.results import Measured, MemberAucs
from modeling.evaluation.subgroups import MEASURES
from modeling.metrics import MIN_POSITIVES
from modeling.preparation.problems import Problem, counted

_NAMED_OF_A_KIND = 5


def write_report(
    path: Path,
    bundle: Bundle,
    measured: Measured,
    problems: Sequence[Problem],
    pictures: Mapping[str, Path],
    *,
    outside_split: int,
    rounds: int,
) -> None:
    """Write the report: what was read and what was not, every measure, every picture."""
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


def _summary(document: Document, bundle: Bundle, measured: Measured, rounds: int) -> None:
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


def _input(document: Document, measured: Measured, problems: Sequence[Problem], outside_split: int) -> None:
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
    for one in sorted(problems):
        by_kind.setdefault(one.kind.value, []).append((one.kind.value, one.subject, one.detail))
    named = [row for rows in by_kind.values() for row in rows[:_NAMED_OF_A_KIND]]
    document.table(("problem", "image or file", "detail"), named)
    if len(problems) > len(named):
        document.paragraph(f"All {len(problems)} are in skipped.csv.", note=True)


def _discrimination(document: Document, measured: Measured) -> None:
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


def _calibration(document: Document, measured: Measured) -> None:
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


def _points(document: Document, measured: Measured) -> None:
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


def _averages(document: Document, measured: Measured) -> None:
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


def _sweep(document: Document, measured: Measured) -> None:
    if not measured.threshold_sweep:
        return
    document.heading("Abnormality: threshold sweep")
    rows = [
        (f"{row.threshold:.2f}", f"{row.accuracy:.3f}", *(brief(row.rates[rate]) for rate in RATES))
        for row in measured.threshold_sweep
    ]
    document.table(("threshold", "accuracy", *map(_rate, RATES)), rows)


def _subgroups(document: Document, measured: Measured, point: str) -> None:
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
            for label, held in result.gaps.items()
            for measure in MEASURES
            if (gap := held.get(measure)) is not None
        ]
        if gaps:
            document.table(("gap between groups", "measure", "best", "worst", "difference"), gaps)
        document.paragraph(
            f"{result.unknown} images have no {axis}. Sensitivity and specificity at {point}. The interval is of the "
            "difference between the two groups named; being the extremes, they differ a little by chance alone.",
            note=True,
        )


def _localisation(document: Document, measured: Measured) -> None:
    if not measured.localisation:
        return
    document.heading("Localisation: pointing game")
    rows = [
        (_name(label), str(one.throws), str(one.hits), shown(one.rate), f"{one.chance:.3f}")
        for label, one in measured.localisation.items()
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
