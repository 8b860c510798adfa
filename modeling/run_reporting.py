"""Reports a run: progress on the terminal, logs, curves and the model in its folder, and a tracking server."""

import importlib.util
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras
from rich.console import Console

from dicomnode.bundle.reader import open_bundle
from dicomnode.domain.errors import ConfigurationError
from modeling.config import TrackingSection
from modeling.evaluation import predictions
from modeling.evaluation.plots import save_roc
from modeling.files import write_durably
from modeling.network import Network
from modeling.run import Run
from modeling.tracking.history import CURVES, HISTORY_CSV, HISTORY_JSON, EpochRecord, write_history
from modeling.tracking.progress import Progress
from modeling.tracking.tracker import NoTracker, Tracker


class RunReporter:
    """Passes a run's epochs to progress, history and tracker; only the first of several processes writes."""

    def __init__(self, run: Run, progress: Progress, tracker: Tracker, *, writes: bool) -> None:
        self._folder, self._progress, self._tracker, self._writes = run.folder, progress, tracker, writes

    def callback(self, *, fold: int, epoch: int) -> keras.callbacks.Callback:
        """Return the Keras callback of one epoch, counted from 1."""
        return self._progress.callback(fold=fold, epoch=epoch)

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        """Write and report all finished epochs."""
        if self._writes:
            write_history(self._folder, records)
            self._tracker.epochs(records)

    def stopped(self, fold: int) -> None:
        """Report that the fold needs no more epochs."""
        self._progress.stopped(fold)

    def finish(self, bundle: Path | None) -> None:
        """Report the end of the run, and the results of its bundle if it was exported."""
        metrics, files = {}, [self._folder / name for name in (HISTORY_CSV, HISTORY_JSON, CURVES, SUMMARY)]
        if (self._folder / predictions.FILE).is_file():
            held_out = predictions.read_predictions(self._folder)
            files += [self._folder / predictions.FILE, save_roc(self._folder / ROC, held_out)]
        if bundle is not None:
            files.append(bundle)
            labels = open_bundle(bundle).manifest.labels
            metrics = {f"auc/{label.name}": label.auc for label in labels if label.auc is not None}
        self._tracker.finish(metrics, files)


@contextmanager
def report_run(run: Run, network: Network, *, folds: Sequence[int] | None = None) -> Iterator[RunReporter]:
    """Report the run, or the given folds of it, while the context lasts.

    Raises: ConfigurationError when the configured tracking is not available.
    """
    train, spread = run.config.train, network.spread
    chosen = range(train.folds) if folds is None else folds
    finished = {fold: len(run.records(fold)) if fold in chosen else train.epochs for fold in range(train.folds)}
    tracker = open_tracker(run.config.tracking, run.folder)
    facts = {
        "backend": keras.backend.backend(),
        "devices": spread.describe(),
        "precision": train.precision,
        "images": str(len(run.folds)),
        "patients": str(len(set(run.radiographs.patients))),
    }
    progress = Progress(
        folds=train.folds,
        epochs=train.epochs,
        batch_size=train.batch_size,
        clock=time.monotonic,
        console=Console(stderr=True),
        finished=finished,
    )
    if spread.is_first:
        write_summary(run.folder, trunk=network.trunk, head=network.head, facts=facts)
        tracker.begin(run.config, facts)
    try:
        with progress:
            yield RunReporter(run, progress, tracker, writes=spread.is_first)
    finally:
        tracker.stop()


ROC = "roc.png"
INSTALL = "pip install 'cxrnode[mlflow]'"


def open_tracker(settings: TrackingSection, folder: Path) -> Tracker:
    """Return the tracker of the run in `folder`.

    Raises: ConfigurationError when MLflow is configured but not installed, or its address is not valid.
    """
    if not settings.mlflow:
        return NoTracker()
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigurationError(f"tracking.mlflow needs MLflow, which is not installed: {INSTALL}")
    from modeling.tracking.mlflow import open_mlflow

    return open_mlflow(settings, folder)


SUMMARY = "model.txt"
_COLUMNS = ("  layer", "type", "output", "parameters", "trained")


def write_summary(folder: Path, *, trunk: keras.Model | None, head: keras.Model, facts: Mapping[str, str]) -> None:
    """Write `model.txt`. `trunk`: the part no fold trains, if any; `facts`: backend, devices, precision."""
    write_durably(folder / SUMMARY, summary(trunk, head, facts).encode())


def summary(trunk: keras.Model | None, head: keras.Model, facts: Mapping[str, str]) -> str:
    """Return the facts, the sizes, and a table of every layer."""
    models = {"trunk": trunk, "head": head} if trunk is not None else {"model": head}
    trainable = _parameters(head.trainable_variables)
    every = sum(_parameters(model.variables) for model in models.values())
    shapes = {"input": _shape((trunk or head).input_shape), "output": _shape(head.output_shape)}
    if trunk is not None:
        shapes["between trunk and head"] = _shape(trunk.output_shape)
    sizes = {
        "parameters": f"{every:,}",
        "trainable": f"{trainable:,}",
        "not trained": f"{every - trainable:,} (frozen layers, statistics of batch normalisation)",
    }
    lines = [f"{name}: {value}" for name, value in (shapes | sizes | dict(facts)).items()]
    for name, model in models.items():
        frozen = ", the same for every fold, never trained" if model is trunk else ""
        lines += ["", f"{name.capitalize()}{frozen}", *_table(model, learns=model is head)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _table(model: keras.Model, *, learns: bool) -> list[str]:
    """Return a line for each layer. Keras' own table is as wide as the terminal, and loses what does not fit."""
    rows = [_COLUMNS, *_rows(model, learns=learns)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)) for row in rows]


def _rows(model: keras.Model, *, learns: bool, indent: str = "  ") -> Iterator[tuple[str, ...]]:
    for layer in model.layers:
        trained = "" if not layer.variables else "yes" if learns and layer.trainable_variables else "no"
        shapes = ", ".join(_shape(output.shape) for output in keras.tree.flatten(layer.output))
        count = f"{_parameters(layer.variables):,}" if layer.variables else ""
        yield indent + layer.name, type(layer).__name__, shapes, count, trained
        if isinstance(layer, keras.Model):
            yield from _rows(layer, learns=learns, indent=indent + "  ")


def _parameters(variables: list[keras.Variable]) -> int:
    return sum(int(keras.ops.size(variable)) for variable in variables)


def _shape(shape: tuple[int | None, ...]) -> str:
    return " x ".join("batch" if side is None else str(side) for side in shape)
