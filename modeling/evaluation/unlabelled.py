"""A bundle on images without labels: the share of images that it calls positive at each operating point."""

import csv
import io
import json
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from dicomnode.bundle.manifest import Manifest
from dicomnode.bundle.reader import Bundle
from dicomnode.domain.errors import ConfigurationError
from modeling.evaluation.evaluate import METRICS, REPORT, SKIPPED, EvaluationProgress
from modeling.evaluation.intervals import Resampler
from modeling.evaluation.measures import share_of
from modeling.evaluation.predictions import FILE, Predictions, write_predictions
from modeling.evaluation.reading import UNREADABLE_FILES, ReadyBundle, read_images, select
from modeling.evaluation.report import Document, shown
from modeling.files import Files, open_files
from modeling.metrics import Estimate
from modeling.preparation.problems import Kind, Problem, as_csv, counted
from modeling.preparation.tables import Entry, Table, read_text, text_of
from modeling.training_images import fingerprint_of

MANIFEST = "manifest.csv"
ALL_VIEWS = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlabelledRequest:
    """Options of an evaluation without labels.

    `table`: a table with the columns image, patient and view, by default `manifest.csv` among the images; without
    either, every image is read and counts as a patient of its own. `only`: the column and value of rows to read.
    `known`: what is known of the images' contents, for the report and model cards.
    """

    images: Path
    out: Path
    table: Path | None = None
    only: tuple[str, str] | None = None
    title: str = ""
    known: str = ""
    rounds: int = 2000
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CalledGroup:
    """The images of one view, or all: `called` is the share called positive by label, then by operating point.

    `called_passed`: the same for images that the pixel gate lets pass as they are; None when there are none.
    """

    images: int
    patients: int
    gate: dict[str, int]
    called: dict[str, dict[str, Estimate | None]]
    called_passed: dict[str, dict[str, Estimate | None]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlabelledEvaluation:
    """The result: groups by view, and every problem of the input."""

    groups: dict[str, CalledGroup]
    problems: tuple[Problem, ...]


def evaluate_unlabelled(
    request: UnlabelledRequest, bundle: Bundle, ready: ReadyBundle, progress: EvaluationProgress, now: datetime
) -> UnlabelledEvaluation:
    """Read the images and write predictions, shares and a report; truth columns of the predictions are 0.

    Raises: ConfigurationError when the input cannot be used or the folder not be written.
    """
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"results cannot be written to {request.out}: {error.strerror}") from error
    with open_files(request.images) as files:
        selection = select(files, _table(request, files), None)
        read = read_images(files, selection.images, ready, {}, progress.images)
    # Files of rows that were not asked for are no problem.
    selected = [problem for problem in selection.problems if problem.kind is not Kind.IMAGE_WITHOUT_ROW]
    problems = (*selected, *read.problems)
    (request.out / SKIPPED).write_text(as_csv(problems), encoding="utf-8")
    write_predictions(request.out / FILE, read.predictions)
    progress.stage("counting")
    groups = called_by_view(read.predictions, bundle.manifest, rounds=request.rounds, seed=request.seed)
    identity = bundle.identity
    document = {
        "title": request.title,
        "known": request.known,
        "bundle": {
            "name": identity.name,
            "version": identity.version,
            "hash": identity.bundle_hash,
            "fingerprint": fingerprint_of(bundle.path),
            "default_operating_point": bundle.manifest.default_operating_point,
        },
        "evaluated_at": now.astimezone(UTC).isoformat(timespec="seconds"),
        "bootstrap": {"rounds": request.rounds, "seed": request.seed, "unit": "patient", "level": 0.95},
        "input": {"problems": counted(problems)},
        "unlabelled": {name: asdict(group) for name, group in groups.items()},
    }
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    (request.out / METRICS).write_text(text, encoding="utf-8")
    _write_report(request, bundle, groups)
    return UnlabelledEvaluation(groups=groups, problems=problems)


def called_by_view(predictions: Predictions, manifest: Manifest, *, rounds: int, seed: int) -> dict[str, CalledGroup]:
    """Return the shares of images called positive, of all images and of each view."""
    resampler = Resampler(predictions.patients, rounds=rounds, seed=seed)
    views = sorted({view for view in predictions.views.tolist() if view})
    rows = {ALL_VIEWS: np.ones(len(predictions.images), dtype=bool)}
    rows |= {view: predictions.views == view for view in views}
    return {name: _group(predictions, manifest, chosen, resampler) for name, chosen in rows.items()}


def _group(
    predictions: Predictions, manifest: Manifest, rows: np.ndarray[tuple[int], np.dtype[np.bool_]], resampler: Resampler
) -> CalledGroup:
    passed = rows & (predictions.gate == "typical")
    return CalledGroup(
        images=int(rows.sum()),
        patients=resampler.patients_among(rows),
        gate=dict(sorted(Counter(predictions.gate[rows].tolist()).items())),
        called=_called(predictions, manifest, rows, resampler),
        called_passed=_called(predictions, manifest, passed, resampler) if passed.any() else None,
    )


def _called(
    predictions: Predictions, manifest: Manifest, rows: np.ndarray[tuple[int], np.dtype[np.bool_]], resampler: Resampler
) -> dict[str, dict[str, Estimate | None]]:
    found: dict[str, dict[str, Estimate | None]] = {}
    for entry in manifest.labels:
        probability = predictions.probability[rows, predictions.labels.index(entry.name)]
        found[entry.name] = {
            name: resampler.estimate(share_of(probability >= point.threshold), rows)
            for name, point in entry.operating_points.items()
        }
    return found


def _table(request: UnlabelledRequest, files: Files) -> Table:
    if request.table is not None:
        return _parsed(read_text(request.table), request.table, request.only)
    try:
        raw = files.read(MANIFEST)
    except (KeyError, *UNREADABLE_FILES):
        if request.only is not None:
            raise ConfigurationError("--only needs a table: --labels, or manifest.csv among the images") from None
        return Table(entries=tuple(Entry(name=name, findings=(), patient=name) for name in files.sizes()), problems=())
    return _parsed(text_of(raw, request.images / MANIFEST), request.images / MANIFEST, request.only)


def _parsed(text: str, path: Path, only: tuple[str, str] | None) -> Table:
    """Return the rows of a table without labels; only `image` is needed."""
    reader = csv.DictReader(io.StringIO(text))
    columns = tuple(reader.fieldnames or ())
    for needed in ("image", *([] if only is None else [only[0]])):
        if needed not in columns:
            raise ConfigurationError(f"{path} lacks the column {needed}")
    entries = tuple(
        Entry(
            name=row["image"],
            findings=(),
            patient=row.get("patient") or row["image"],
            view=row.get("view") or None,
            source=row.get("source") or None,
        )
        for row in reader
        if row["image"] and (only is None or row[only[0]] == only[1])
    )
    if not entries:
        raise ConfigurationError(f"{path} has no row to read")
    return Table(entries=entries, problems=())


def _write_report(request: UnlabelledRequest, bundle: Bundle, groups: dict[str, CalledGroup]) -> None:
    identity = bundle.identity
    document = Document(f"{identity.name} {identity.version}: images without labels")
    document.paragraph("Research use only. Not a medical device.", note=True)
    if request.title or request.known:
        document.paragraph(" ".join(text for text in (request.title, request.known) if text))
    for name, group in groups.items():
        document.heading("All images" if name == ALL_VIEWS else f"View {name}")
        gate = ", ".join(f"{verdict} {count}" for verdict, count in group.gate.items())
        document.paragraph(f"{group.images} images of {group.patients} patients; verdicts of the pixel gate: {gate}.")
        points = list(next(iter(group.called.values())))
        rows = [
            (label.replace("_", " "), *(shown(called[point]) for point in points))
            for label, called in group.called.items()
        ]
        document.table(("called positive", *points), rows)
    document.paragraph("Shares of images, with 95 % intervals that respect patients.", note=True)
    document.write(request.out / REPORT)
