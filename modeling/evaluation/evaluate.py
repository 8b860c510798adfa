"""One evaluation from images and labels to a folder of predictions, measures, plots and a report."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from dicomnode.bundle.reader import Bundle
from dicomnode.domain.errors import ConfigurationError
from modeling.evaluation.assess import assess
from modeling.evaluation.plots import draw_plots
from modeling.evaluation.pointing import Boxes, read_boxes
from modeling.evaluation.predictions import FILE, write_predictions
from modeling.evaluation.reading import ReadImages, ReadyBundle, ReportImages, Selection, read_images, select
from modeling.evaluation.report import write_report
from modeling.evaluation.results import EvaluationResults
from modeling.files import open_files
from modeling.preparation.problems import Problem, as_csv, counted
from modeling.preparation.tables import read_list, read_table

METRICS, REPORT, SKIPPED, PLOTS = "metrics.json", "report.html", "skipped.csv", "plots"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """Options of an evaluation.

    `images`: a folder or a ZIP archive; `split`: a list of image names; `boxes`: NIH's table of boxes.
    """

    images: Path
    labels: Path
    out: Path
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


def evaluate(
    request: EvaluationRequest, bundle: Bundle, ensemble: ReadyBundle, watch: EvaluationProgress, now: datetime
) -> Evaluation:
    """Evaluate a bundle and write the folder; `predictions.csv` and `skipped.csv` are written before measuring begins.

    Raises: ConfigurationError when the input cannot be used or the folder not be written.
    """
    table = read_table(request.labels)
    split = None if request.split is None else read_list(request.split)
    boxes: Boxes = {} if request.boxes is None else read_boxes(request.boxes, ensemble.labels)
    _require_writable(request.out)
    with open_files(request.images) as files:
        selection = select(files, table, split)
        read = read_images(files, selection.images, ensemble, boxes, watch.images)
    problems = (*selection.problems, *read.problems)
    (request.out / SKIPPED).write_text(as_csv(problems), encoding="utf-8")
    write_predictions(request.out / FILE, read.predictions)
    measured = assess(
        read.predictions, read.throws, bundle.manifest, rounds=request.rounds, seed=request.seed, stage=watch.stage
    )
    document = _as_json(request, bundle, selection, read, measured, now)
    (request.out / METRICS).write_text(document + "\n", encoding="utf-8")
    watch.stage("drawing")
    pictures = draw_plots(request.out / PLOTS, read.predictions, measured)
    write_report(
        request.out / REPORT,
        bundle,
        measured,
        problems,
        pictures,
        outside_split=selection.outside_split,
        rounds=request.rounds,
    )
    return Evaluation(measured=measured, problems=problems)


def _as_json(
    request: EvaluationRequest,
    bundle: Bundle,
    selection: Selection,
    read: ReadImages,
    measured: EvaluationResults,
    now: datetime,
) -> str:
    identity = bundle.identity
    return json.dumps(
        {
            "bundle": {"name": identity.name, "version": identity.version, "hash": identity.bundle_hash},
            "evaluated_at": now.astimezone(UTC).isoformat(timespec="seconds"),
            "bootstrap": {"rounds": request.rounds, "seed": request.seed, "unit": "patient", "level": 0.95},
            "input": {
                "labels": request.labels.name,
                "split": None if request.split is None else request.split.name,
                "outside_split": selection.outside_split,
                "problems": counted((*selection.problems, *read.problems)),
            },
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
