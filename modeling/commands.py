"""What the command line calls. Importing this module loads no training framework; running a command does."""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path

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

    `images`: a ZIP archive or directory; `labels`: NIH's table, or None for a `manifest.csv` beside the images;
    `warm_start`: EfficientNet-Lite0 weights with batch norm folded in; `gate_images`: a ZIP archive of images of known
    kind, to measure the finished pixel gate on.

    Raises: ConfigurationError when the configuration, the data or `out` cannot be used.
    """
    # On a CPU, TensorFlow is the fast backend, and Keras reads this variable once, when it is first imported.
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    from modeling.config import read_config
    from modeling.export import export_bundle
    from modeling.nih import patient_folds, read_radiographs
    from modeling.train import Run, build_network, train_folds

    settings = read_config(config)
    radiographs = read_radiographs(images, labels, settings.input)
    log.info("read %d images of %d patients", len(radiographs.names), len(set(radiographs.patients)))
    folds = patient_folds(radiographs, folds=settings.train.folds, seed=settings.train.seed)
    run = Run(config=settings, radiographs=radiographs, folds=folds, warm_start=warm_start, folder=out)
    run.claim_folder()
    network = build_network(run)
    train_folds(run, network)
    bundle = out / BUNDLE_FOLDER
    export_bundle(run, network, bundle, created=datetime.now(tz=UTC), gate_images=gate_images)
    log.info("bundle written to %s", bundle)
    return bundle
