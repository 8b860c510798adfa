"""Who follows a run: progress on the terminal, logs and curves in its folder, and a tracking server."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras
from rich.console import Console

from dicomnode.bundle.reader import CARD, open_bundle
from modeling.network import Network
from modeling.run import Run
from modeling.tracking.history import CURVES, HISTORY_CSV, HISTORY_JSON, EpochRecord, write_history
from modeling.tracking.progress import Progress
from modeling.tracking.summary import SUMMARY, write_summary
from modeling.tracking.tracker import Tracker, open_tracker


class Following:
    """Tells progress, history and tracker of a run's epochs; only the first of several processes writes."""

    def __init__(self, run: Run, progress: Progress, tracker: Tracker, *, writes: bool) -> None:
        self._folder, self._progress, self._tracker, self._writes = run.folder, progress, tracker, writes

    def callback(self, *, fold: int, epoch: int) -> keras.callbacks.Callback:
        """Return what follows the steps of one epoch, counted from 1."""
        return self._progress.callback(fold=fold, epoch=epoch)

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        """Write and tell what is known of all finished epochs."""
        if self._writes:
            write_history(self._folder, records)
            self._tracker.epochs(records)

    def stopped(self, fold: int) -> None:
        """Take note that the fold needs no more epochs."""
        self._progress.stopped(fold)

    def finish(self, bundle: Path | None) -> None:
        """Tell what the finished run reached, if it was exported, and where to read more."""
        metrics, files = {}, [self._folder / name for name in (HISTORY_CSV, HISTORY_JSON, CURVES, SUMMARY)]
        if bundle is not None:
            files.append(bundle / CARD)
            labels = open_bundle(bundle).manifest.labels
            metrics = {f"auc/{label.name}": label.auc for label in labels if label.auc is not None}
        self._tracker.finish(metrics, files)


@contextmanager
def follow(run: Run, network: Network, *, folds: Sequence[int] | None = None) -> Iterator[Following]:
    """Follow the run, or the given folds of it, while the context lasts.

    Raises: ConfigurationError when the tracking that the configuration asks for is not to be had.
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
            yield Following(run, progress, tracker, writes=spread.is_first)
    finally:
        tracker.stop()
