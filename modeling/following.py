"""Who follows a run: progress on the terminal, logs and curves in its folder, and a tracking server."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras
from rich.console import Console

from modeling.run import Run
from modeling.tracking.history import EpochRecord, write_history
from modeling.tracking.progress import Progress


class Following:
    """Tells progress, history and tracker of a run's epochs."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder, self._progress = folder, progress

    def callback(self, *, fold: int, epoch: int) -> keras.callbacks.Callback:
        """Return what follows the steps of one epoch, counted from 1."""
        return self._progress.callback(fold=fold, epoch=epoch)

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        """Write what is known of all finished epochs."""
        write_history(self._folder, records)

    def stopped(self, fold: int) -> None:
        """Take note that the fold needs no more epochs."""
        self._progress.stopped(fold)


@contextmanager
def follow(run: Run, *, folds: Sequence[int] | None = None) -> Iterator[Following]:
    """Follow the run, or the given folds of it, while the context lasts."""
    train = run.config.train
    chosen = range(train.folds) if folds is None else folds
    finished = {fold: len(run.records(fold)) if fold in chosen else train.epochs for fold in range(train.folds)}
    progress = Progress(
        folds=train.folds,
        epochs=train.epochs,
        batch_size=train.batch_size,
        clock=time.monotonic,
        console=Console(stderr=True),
        finished=finished,
    )
    with progress:
        yield Following(run.folder, progress)
