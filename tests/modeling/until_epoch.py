"""Trains fold 0 up to an epoch and ends there, as a kill would: until_epoch.py CONFIG IMAGES OUT EPOCH."""

import sys
from collections.abc import Sequence
from pathlib import Path

from modeling.devices import choose_backend

choose_backend(tpu=False)

import keras  # noqa: E402 - only once the backend is chosen

from modeling.commands import training_images  # noqa: E402
from modeling.config import Sources, read_config  # noqa: E402
from modeling.devices import spread_over_devices  # noqa: E402
from modeling.network import build_network  # noqa: E402
from modeling.run import Run  # noqa: E402
from modeling.tracking.history import EpochRecord, write_history  # noqa: E402
from modeling.train import train_folds  # noqa: E402


class Until:
    """Follows a run, writes its history and ends the process after an epoch."""

    def __init__(self, folder: Path, last: int) -> None:
        self._folder, self._last = folder, last

    def callback(self, *, fold: int, epoch: int) -> keras.callbacks.Callback:
        return keras.callbacks.Callback()

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        write_history(self._folder, records)
        if len(records) == self._last:
            sys.exit()

    def stopped(self, fold: int) -> None:
        pass


def main(config_path: str, images: str, out: str, last: str) -> None:
    config, sources = read_config(Path(config_path)), Sources(images=Path(images))
    radiographs, folds = training_images(sources.images, None, config)
    run = Run(config=config, radiographs=radiographs, folds=folds, sources=sources, folder=Path(out))
    spread = spread_over_devices()
    run.claim_folder(spread)
    train_folds(run, build_network(run, spread), Until(run.folder, int(last)), folds=[0])


main(*sys.argv[1:])
