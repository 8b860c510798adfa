"""`cxrnode train` and `cxrnode export`. Importing this module loads no training framework; running a command does."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dicomnode.domain.errors import ConfigurationError
from modeling.config import TrainingConfig
from modeling.devices import HOSTS, choose_backend

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from modeling.config import Sources
    from modeling.joined_export import Companion
    from modeling.nih import Radiographs
    from modeling.run import Run

log = logging.getLogger(__name__)

BUNDLE_FOLDER = "bundle"


def train(
    config: TrainingConfig,
    sources: "Sources",
    out: Path,
    *,
    tpu: bool = False,
    folds: Sequence[int] | None = None,
) -> Path | None:
    """Train every fold or the given ones, resuming what `out` holds; return the exported bundle once all are trained.

    Raises: ConfigurationError when the configuration, the data, the devices or `out` cannot be used.
    """
    backend = choose_backend(tpu=tpu)
    from modeling.devices import spread_over_devices
    from modeling.network import build_network
    from modeling.nih import check_folds
    from modeling.out_of_fold import store_out_of_fold
    from modeling.run import Run
    from modeling.run_reporting import report_run
    from modeling.train import is_finished, train_folds

    unknown = [fold for fold in folds or () if not 0 <= fold < config.train.folds]
    if unknown:
        raise ConfigurationError(f"there is no fold {unknown[0]}: the folds are 0 to {config.train.folds - 1}")
    radiographs, dealt = training_images(sources.images, sources.labels, config, cache=out)
    run = Run(config=config, radiographs=radiographs, folds=dealt, sources=sources, folder=out)
    check_folds(run.labels, run.folds, run.outputs)
    spread = spread_over_devices()
    run.claim_folder(spread)
    if not any(run.records(fold) for fold in range(config.train.folds)):
        if spread.process_count > 1:
            # The other hosts would wait for the first one, and give up.
            log.info("to try beforehand what export needs: cxrnode export %s --check", out)
        else:
            _check_export(run, backend)
    network = build_network(run, spread)
    with report_run(run, network, folds=folds) as watch:
        train_folds(run, network, watch, folds=folds)
        store_out_of_fold(run, network)
        if not network.spread.is_first or not is_finished(run):
            return None
        bundle = out / BUNDLE_FOLDER
        exported = export(out, bundle, run=run) if backend == "tensorflow" else _export_apart(out, bundle)
        watch.finish(exported)
    return exported


def export(
    folder: Path,
    bundle: Path,
    *,
    images: Path | None = None,
    beside: Sequence[Path] = (),
    evaluations: Sequence[Path] = (),
    run: "Run | None" = None,
) -> Path:
    """Write the bundle of the finished run in `folder`, and return its folder.

    `images`: where the run's images are now, if they have moved. For the model card, `beside`: runs on the same images
    whose held-out results stand beside this one's; `evaluations`: folders that `cxrnode evaluate` wrote of this run's
    model. `run`: the run, if it is in memory already.

    Raises: ConfigurationError when the folder holds no finished run, or the images are others.
    """
    _require_tensorflow()
    from modeling.card_evaluations import read_evaluation
    from modeling.export import export_bundle
    from modeling.recipe_comparison import read_held_out
    from modeling.train import is_finished

    run = run or reopened(folder, images)
    if not is_finished(run):
        raise ConfigurationError(f"{folder} is not finished: continue with `cxrnode train` into the same folder")
    others = [read_held_out(other) for other in beside]
    stored = [read_evaluation(evaluated) for evaluated in evaluations]
    export_bundle(run, bundle, created=datetime.now(tz=UTC), beside=others, evaluations=stored)
    log.info("bundle written to %s", bundle)
    return bundle


def joined_with(bundle: Path, out_of_fold: Path, members: tuple[int, int]) -> "Companion":
    """Return what joins a run's members, `members[0]` of them, with `members[1]` of another bundle."""
    _require_tensorflow()
    from modeling.joined_export import Companion

    return Companion(bundle=bundle, out_of_fold=out_of_fold, own_members=members[0], members=members[1])


def export_joined(folder: Path, bundle: Path, companion: "Companion", *, images: Path | None = None) -> Path:
    """Write a bundle of members of the finished run in `folder` and of another bundle, and return its folder.

    Raises: ConfigurationError when the folder holds no finished run, or the two do not fit together.
    """
    _require_tensorflow()
    from modeling.joined_export import export_joined
    from modeling.train import is_finished

    run = reopened(folder, images)
    if not is_finished(run):
        raise ConfigurationError(f"{folder} is not finished: continue with `cxrnode train` into the same folder")
    export_joined(run, bundle, companion, created=datetime.now(tz=UTC))
    log.info("bundle written to %s", bundle)
    return bundle


def update_card(bundle: Path, evaluations: Sequence[Path]) -> None:
    """Write the sections about evaluations in a bundle's model card anew, from folders of `cxrnode evaluate`.

    The manifest changes with the card, and so does the bundle's hash; the model stays.

    Raises: ConfigurationError when an evaluation is of another model; BundleInvalid.
    """
    from dicomnode.bundle.reader import CARD, MANIFEST, file_sha256, open_bundle
    from modeling.card_evaluations import (
        MAPS_UNMEASURED,
        evaluation_sections,
        measure_maps,
        read_evaluation,
        require_same_model,
        with_sections,
    )
    from modeling.export import manifest_text
    from modeling.files import write_durably
    from modeling.training_images import fingerprint_of

    manifest = open_bundle(bundle).manifest
    stored = [read_evaluation(folder) for folder in evaluations]
    require_same_model(stored, fingerprint_of(bundle))
    card = with_sections((bundle / CARD).read_text(encoding="utf-8"), evaluation_sections(stored))
    if measure_maps(stored):
        card = card.replace(MAPS_UNMEASURED, "")
    write_durably(bundle / CARD, card.encode())
    changed = manifest.model_copy(update={"files": manifest.files | {CARD: file_sha256(bundle / CARD)}})
    write_durably(bundle / MANIFEST, manifest_text(changed).encode())


def check_export(folder: Path, images: Path | None = None) -> None:
    """Try what export needs for the run in the folder, whether or not it has trained.

    Raises: ConfigurationError.
    """
    _require_tensorflow()
    from modeling.export_check import check_export as check

    check(reopened(folder, images))


def _check_export(run: "Run", backend: str) -> None:
    """Try what export needs: in this process, or in one of its own where Keras runs on JAX and TensorFlow is there."""
    if backend == "tensorflow":
        from modeling.export_check import check_export as check

        check(run)
    elif find_spec("tensorflow") is not None and find_spec("tf2onnx") is not None:
        _apart("export", str(run.folder), "--check", failed="this configuration cannot be exported; see above")


def _require_tensorflow() -> None:
    if (chosen := os.environ.setdefault("KERAS_BACKEND", "tensorflow")) != "tensorflow":
        raise ConfigurationError(f"export needs the TensorFlow backend, KERAS_BACKEND says {chosen}")


def reopened(folder: Path, images: Path | None) -> "Run":
    """Return the run of a folder with its images read again.

    Raises: ConfigurationError when they are not those it was trained on.
    """
    from dataclasses import replace

    from modeling.run import Run, described

    settings, sources = described(folder)
    if images is not None:
        sources = replace(sources, images=images)
    radiographs, folds = training_images(sources.images, sources.labels, settings, cache=folder)
    run = Run(config=settings, radiographs=radiographs, folds=folds, sources=sources, folder=folder)
    run.claim_folder()
    return run


def _export_apart(folder: Path, bundle: Path) -> Path | None:
    """Export in a process of its own, since this one's Keras runs on JAX; None where TensorFlow is not installed."""
    if find_spec("tensorflow") is None:
        log.warning("trained; TensorFlow is not installed here, so export where it is: cxrnode export %s", folder)
        return None
    failed = f"trained, but the export failed; after correcting the cause: cxrnode export {folder}"
    _apart("export", str(folder), "--out", str(bundle), failed=failed)
    return bundle


def _apart(*arguments: str, failed: str) -> None:
    """Run a command in a process whose Keras runs on TensorFlow and the CPU. Raises: ConfigurationError(failed)."""
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", *HOSTS)}
    environment |= {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-m", "dicomnode", *arguments]
    if subprocess.run(command, env=environment, check=False).returncode:  # noqa: S603 - our own program, arguments apart
        raise ConfigurationError(failed)


def training_images(
    images: Path, labels: Path | None, settings: TrainingConfig, *, cache: Path | None = None
) -> "tuple[Radiographs, npt.NDArray[np.int64]]":
    """Read the images, and the fold of each: as prepared, or dealt here by patient.

    Images are a folder or archive of pictures, a prepared folder, or a folder of the first system's records. `cache`:
    the folder of the file that the pixels are mapped from when they are too many for memory.

    Raises: ConfigurationError; DiskFull.
    """
    from modeling.nih import first_systems_set, patient_folds, read_radiographs, training_set
    from modeling.preparation.dataset import DATASET, open_prepared
    from modeling.preparation.records import SUFFIX

    records = next(images.glob(f"*{SUFFIX}"), None) is not None
    if records and labels is not None:
        raise ConfigurationError(f"{images} holds records with their labels; leave --labels out")
    if not (images / DATASET).is_file():
        spec = settings.input
        radiographs = (
            first_systems_set(images, spec, cache=cache)
            if records
            else read_radiographs(images, labels, spec, cache=cache)
        )
        return radiographs, patient_folds(radiographs, folds=settings.train.folds, seed=settings.train.seed)
    radiographs, folds = training_set(open_prepared(images), settings.input, cache=cache)
    if (found := int(folds.max()) + 1) != settings.train.folds:
        raise ConfigurationError(f"{images} has {found} folds, the configuration asks for {settings.train.folds}")
    return radiographs, folds
