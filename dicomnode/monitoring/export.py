"""Results as a CSV table: one row for each image, and no cell that a spreadsheet would run as a formula."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

from dicomnode.domain.job import JobState
from dicomnode.domain.summary import FindingSummary
from dicomnode.store.counters import ANALYSED, OUTCOMES, StudyResult

Patient = tuple[str, str, str]
"""Patient ID, name, accession number; "" if unknown."""

_FIXED = (
    "study_uid", "version", "received_at", "answered_at", "study_outcome", "calling_ae", "image_uid", "image_outcome",
    "model", "model_version", "operating_point",
)  # fmt: skip
_OF_PATIENTS = ("patient_id", "patient_name", "accession_number")
_RUNS = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
"""The beginnings of cells that a spreadsheet takes for a formula or a command."""


def write_table(
    results: Callable[[], Iterable[StudyResult]],
    file: TextIO,
    *,
    every_version: bool = False,
    patient_of: Callable[[str], Patient] | None = None,
) -> int:
    """Write the newest answer of each study, or every version, and return the number of rows.

    `results` is called twice: for the columns, and for the rows. `patient_of` gives the patient of a study; without it
    the table names no patients.
    """
    newest: dict[str, int] = {}
    labels: dict[str, None] = {}
    for result in results():
        newest[result.study] = max(newest.get(result.study, 0), result.version)
        for image in result.summary.images:
            labels |= dict.fromkeys(finding.label for finding in image.labels())
    writer = csv.writer(file)
    of_labels = (f"{label}_{what}" for label in labels for what in ("probability", "presence"))
    writer.writerow([*_FIXED, *(_OF_PATIENTS if patient_of else ()), *map(safe_cell, of_labels)])
    rows = 0
    for result in results():
        if every_version or result.version == newest.get(result.study):
            for row in _rows(result, tuple(labels), patient_of):
                writer.writerow(row)
                rows += 1
    return rows


def safe_cell(text: str) -> str:
    """Return text that a spreadsheet does not run: an apostrophe before it, and U+FFFD for control characters.

    Source: OWASP, CSV injection.
    """
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return f"'{shown}" if text.lstrip(" ").startswith(_RUNS) else shown


def _rows(
    result: StudyResult, labels: Sequence[str], patient_of: Callable[[str], Patient] | None
) -> Iterator[list[object]]:
    who = [safe_cell(text) for text in patient_of(result.study)] if patient_of else []
    study = [
        result.study,
        result.version,
        result.received_at.isoformat(timespec="seconds"),
        result.ended_at.isoformat(timespec="seconds"),
        OUTCOMES[result.state],
        safe_cell(" ".join(result.senders)),
    ]
    model = result.summary.model
    of_model = [safe_cell(model.name), safe_cell(model.version)] if model is not None else ["", ""]
    for image in result.summary.images:
        findings = {finding.label: finding for finding in image.labels()}
        point = next((finding.operating_point for finding in findings.values()), "")
        cells = [cell for label in labels for cell in _said(findings.get(label))]
        yield [*study, image.sop_instance, ANALYSED, *of_model, safe_cell(point), *who, *cells]
    nothing = [""] * (2 * len(labels))
    for rejected in result.summary.rejected:
        yield [*study, rejected.sop_instance, safe_cell(rejected.reason), *of_model, "", *who, *nothing]
    if result.state is JobState.DEAD and not (result.summary.images or result.summary.rejected):
        yield [*study, "", "", *of_model, "", *who, *nothing]


def _said(finding: FindingSummary | None) -> tuple[object, object]:
    return ("", "") if finding is None else (finding.probability, safe_cell(finding.presence))
