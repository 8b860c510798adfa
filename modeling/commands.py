"""What the command line calls. Importing this module loads no training framework; running a command does."""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dicomnode.domain.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from modeling.config import TrainingConfig
    from modeling.nih import Radiographs

log = logging.getLogger(__name__)

BUNDLE_FOLDER = "bundle"


def train(
    config: Path,
    images: Path,
    labels: Path | None,
    out: Path,
    *,
    warm_start: Path | None = None,
    gate_images: Path | None = None,
) -> Path:
    """Train every fold, resuming what `out` holds, and return the folder of the exported bundle.

    `images`: a ZIP archive, a directory, or a folder that `data prepare` wrote, which has its own labels and folds;
    `labels`: NIH's table, or None for a `manifest.csv` beside the images;
    `warm_start`: EfficientNet-Lite0 weights with batch norm folded in; `gate_images`: a ZIP archive of images of known
    kind, to measure the finished pixel gate on.

    Raises: ConfigurationError when the configuration, the data or `out` cannot be used.
    """
    # On a CPU, TensorFlow is the fast backend, and Keras reads this variable once, when it is first imported.
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    from modeling.config import read_config
    from modeling.export import export_bundle
    from modeling.train import Run, build_network, train_folds

    settings = read_config(config)
    radiographs, folds = training_images(images, labels, settings)
    log.info("read %d images of %d patients", len(radiographs.names), len(set(radiographs.patients)))
    run = Run(config=settings, radiographs=radiographs, folds=folds, warm_start=warm_start, folder=out)
    run.claim_folder()
    network = build_network(run)
    train_folds(run, network)
    bundle = out / BUNDLE_FOLDER
    export_bundle(run, network, bundle, created=datetime.now(tz=UTC), gate_images=gate_images)
    log.info("bundle written to %s", bundle)
    return bundle


def training_images(
    images: Path, labels: Path | None, settings: "TrainingConfig"
) -> "tuple[Radiographs, npt.NDArray[np.int64]]":
    """Read the images, and the fold of each: as prepared, or dealt here by patient.

    Raises: ConfigurationError.
    """
    from modeling.nih import patient_folds, read_radiographs
    from modeling.preparation.dataset import DATASET, open_prepared
    from modeling.preparation.training_set import training_set

    if not (images / DATASET).is_file():
        radiographs = read_radiographs(images, labels, settings.input)
        return radiographs, patient_folds(radiographs, folds=settings.train.folds, seed=settings.train.seed)
    if labels is not None:
        raise ConfigurationError(f"{images} was prepared with its labels; leave --labels out")
    radiographs, folds = training_set(open_prepared(images), settings.input)
    if (found := int(folds.max()) + 1) != settings.train.folds:
        raise ConfigurationError(f"{images} has {found} folds, the configuration asks for {settings.train.folds}")
    return radiographs, folds
