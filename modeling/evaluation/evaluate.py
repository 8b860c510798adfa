"""One evaluation from images and labels to a folder of predictions, measures, plots and a report."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dicomnode.bundle.reader import Bundle
from dicomnode.domain.errors import ConfigurationError
from modeling.evaluation.assess import Extras, assess
from modeling.evaluation.plots import draw_plots
from modeling.evaluation.pointing import Boxes, read_boxes
from modeling.evaluation.populations import TrainedFolds, patients_ever_ill, read_target
from modeling.evaluation.predictions import FILE, write_predictions
from modeling.evaluation.reading import (
    UNREADABLE_FILES,
    ReadImages,
    ReadyBundle,
    ReportImages,
    Selection,
    read_images,
    require_known_labels,
    select,
)
from modeling.evaluation.report import ReportInputs, write_report, write_sheets
from modeling.evaluation.results import EvaluationResults, TrainingOverlap
from modeling.files import Files, open_files
from modeling.preparation.problems import Problem, as_csv, counted
from modeling.preparation.tables import Table, image_key, parse_table, read_list, read_table, text_of
from modeling.training_images import fingerprint_of

METRICS, REPORT, SKIPPED = "metrics.json", "report.html", "skipped.csv"
PLOTS, SHEETS, MANIFEST = "plots", "sheets", "manifest.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """Options of an evaluation.

    `images`: a folder or a ZIP archive; `labels`: a label table, by default the archive's `manifest.csv`; `split`: a
    list of image names; `boxes`: NIH's table of boxes. `title` names the evaluation in the report and in model cards.
    `ever_ill`: tell ever-ill from never-ill patients, by the rows of `patient_table`, by default of `labels`.
    `matched`: a target population, see `populations.read_target`. `run`: the folder of the run that made the bundle,
    for the overfitting gap.
    """

    images: Path
    out: Path
    labels: Path | None = None
    title: str = ""
    ever_ill: bool = False
    patient_table: Path | None = None
    matched: Path | None = None
    run: Path | None = None
    split: Path | None = None
    boxes: Path | None = None
    rounds: int = 2000
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationProgress:
    """How the caller shows progress: images read of all, and the present stage."""

    images: ReportImages
    stage: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result: all measures, and every problem of the input."""

    measured: EvaluationResults
    problems: tuple[Problem, ...]
    overlap: TrainingOverlap | None


def evaluate(
    request: EvaluationRequest, bundle: Bundle, ensemble: ReadyBundle, watch: EvaluationProgress, now: datetime
) -> Evaluation:
    """Evaluate a bundle and write the folder; `predictions.csv` and `skipped.csv` are written before measuring begins.

    Raises: ConfigurationError when the input cannot be used or the folder not be written.
    """
    require_known_labels(ensemble)
    extras = _extras(request)
    split = None if request.split is None else read_list(request.split)
    boxes: Boxes = {} if request.boxes is None else read_boxes(request.boxes, ensemble.labels)
    _require_writable(request.out)
    with open_files(request.images) as files:
        table = label_table(request, files)
        selection = select(files, table, split)
        read = read_images(files, selection.images, ensemble, boxes, watch.images)
    if request.ever_ill and request.patient_table is None:
        extras = replace(extras, ever_ill=patients_ever_ill(table.entries))
    problems = (*selection.problems, *read.problems)
    (request.out / SKIPPED).write_text(as_csv(problems), encoding="utf-8")
    write_predictions(request.out / FILE, read.predictions)
    measured = assess(
        read.predictions, read.maps, bundle.manifest, extras, rounds=request.rounds, seed=request.seed,
        stage=watch.stage,
    )  # fmt: skip
    overlap = overlap_of(bundle, ensemble, read)
    document = _as_json(request, bundle, selection, read, measured, overlap, now)
    (request.out / METRICS).write_text(document + "\n", encoding="utf-8")
    write_sheets(request.out / SHEETS, read.predictions, bundle.manifest)
    watch.stage("drawing")
    pictures = draw_plots(request.out / PLOTS, read.predictions, measured)
    inputs = ReportInputs(
        title=request.title,
        problems=problems,
        overlap=overlap,
        outside_split=selection.outside_split,
        rounds=request.rounds,
    )
    write_report(request.out / REPORT, bundle, measured, inputs, pictures)
    return Evaluation(measured=measured, problems=problems, overlap=overlap)


def label_table(request: EvaluationRequest, files: Files) -> Table:
    """Return the label table of the request, or the `manifest.csv` among the images.

    Raises: ConfigurationError.
    """
    if request.labels is not None:
        return read_table(request.labels)
    where = request.images / MANIFEST
    try:
        raw = files.read(MANIFEST)
    except (KeyError, *UNREADABLE_FILES) as error:
        raise ConfigurationError(f"no label table: give --labels, or put {MANIFEST} into {request.images}") from error
    return parse_table(text_of(raw, where), where)


def overlap_of(bundle: Bundle, ensemble: ReadyBundle, read: ReadImages) -> TrainingOverlap | None:
    """Return how many evaluated images the bundle was trained on; None when it has no digests of them."""
    if ensemble.recognise is None:
        return None
    images = len(read.predictions.images)
    return TrainingOverlap(images=images, trained_on=len(read.trained_on), bundle=bundle.identity.name)


def _extras(request: EvaluationRequest) -> Extras:
    if request.patient_table is not None and not request.ever_ill:
        raise ConfigurationError("--patient-table goes with --ever-ill")
    table = request.patient_table
    return Extras(
        ever_ill=None if table is None else patients_ever_ill(read_table(table).entries),
        target=None if request.matched is None else read_target(request.matched),
        trained=None if request.run is None else _trained_folds(request.run),
    )


def _trained_folds(run: Path) -> TrainedFolds:
    # Loads Keras, which only this option needs.
    from modeling.run import OUT_OF_FOLD, read_arrays

    arrays = read_arrays(run / OUT_OF_FOLD, only=("names", "folds"))
    folds = zip(arrays["names"].tolist(), arrays["folds"].tolist(), strict=True)
    return TrainedFolds(fold_of={image_key(name): int(fold) for name, fold in folds})


def _as_json(
    request: EvaluationRequest,
    bundle: Bundle,
    selection: Selection,
    read: ReadImages,
    measured: EvaluationResults,
    overlap: TrainingOverlap | None,
    now: datetime,
) -> str:
    identity = bundle.identity
    return json.dumps(
        {
            "title": request.title,
            "bundle": {
                "name": identity.name,
                "version": identity.version,
                "hash": identity.bundle_hash,
                "fingerprint": fingerprint_of(bundle.path),
                "default_operating_point": bundle.manifest.default_operating_point,
            },
            "evaluated_at": now.astimezone(UTC).isoformat(timespec="seconds"),
            "bootstrap": {"rounds": request.rounds, "seed": request.seed, "unit": "patient", "level": 0.95},
            "input": {
                "labels": MANIFEST if request.labels is None else request.labels.name,
                "split": None if request.split is None else request.split.name,
                "outside_split": selection.outside_split,
                "problems": counted((*selection.problems, *read.problems)),
            },
            "training_images": None if overlap is None else asdict(overlap),
            **asdict(measured),
        },
        indent=2,
        allow_nan=False,
    )


def _require_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"results cannot be written to {out}: {error.strerror}") from error
