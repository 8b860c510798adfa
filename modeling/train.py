"""The fold loop: every fold advances one epoch at a time, and a killed run goes on where it stopped."""

import logging
import os
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from dicomnode.bundle.reader import file_sha256
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from modeling.augment import augmented_inputs, network_inputs
from modeling.backbones import build_head, build_trunk, unfold_normalisation, warm_start
from modeling.config import TrainingConfig
from modeling.metrics import label_aucs, mean_auc
from modeling.nih import LABELS, Radiographs
from modeling.optimise import FoldOptimiser, State, prior_logits, scheduled_rate

log = logging.getLogger(__name__)

IDENTITY = "run.txt"
STATISTICS_IMAGES = 256
INFERENCE_BATCH = 64
REPORT_EVERY_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a training run works on. `folds`: (N,) each image's fold; `folder` holds the checkpoints."""

    config: TrainingConfig
    radiographs: Radiographs
    folds: npt.NDArray[np.int64]
    warm_start: Path | None
    folder: Path

    def claim_folder(self) -> None:
        """Write the run's identity into its folder, or refuse a folder that belongs to another run.

        Raises: ConfigurationError.
        """
        if self.config.model.frozen_blocks and self.warm_start is None:
            raise ConfigurationError("model.frozen_blocks needs a warm start: random blocks must not stay frozen")
        self.folder.mkdir(parents=True, exist_ok=True)
        start = file_sha256(self.warm_start) if self.warm_start else "random"
        settings = self.config.model_dump_json(indent=2, exclude={"bundle", "confounding", "gate"})
        identity = f"{settings}\nimages {len(self.folds)}\nwarm start {start}\n"
        written = self.folder / IDENTITY
        if written.exists() and written.read_text(encoding="utf-8") != identity:
            raise ConfigurationError(f"{self.folder} holds a run of another configuration or data; choose another one")
        written.write_text(identity, encoding="utf-8")

    def checkpoint(self, fold: int) -> Path:
        """Return where the fold's last finished epoch is stored."""
        return self.folder / f"fold-{fold}.npz"

    def output_layer(self, fold: int) -> Path:
        """Return where the fold's last layer is stored if it was fitted again after training."""
        return self.folder / f"output-{fold}.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The frozen trunk, and the one head that takes each fold's weights in turn."""

    trunk: keras.Model
    head: keras.Model
    optimiser: FoldOptimiser
    start: State

    def logits(self, images: FloatArray) -> FloatArray:
        """Return (N, outputs) logits of (N, side, side, 1) images under the head's present weights."""
        features = self.trunk.predict_on_batch(images)
        return np.asarray(self.head.predict_on_batch(features), dtype=np.float32)


def build_network(run: Run) -> Network:
    """Build trunk and head at the warm start, or with random weights that depend on the seed alone."""
    config = run.config
    keras.utils.set_random_seed(config.train.seed)
    trunk = build_trunk(config.input.side, config.model.frozen_blocks)
    head = build_head(trunk, config.model.frozen_blocks, len(LABELS), config.model.dropout)
    if run.warm_start is not None:
        warm_start(trunk, head, run.warm_start)
    optimiser = FoldOptimiser(head, config.train)
    return Network(trunk=trunk, head=head, optimiser=optimiser, start=optimiser.state())


def train_folds(run: Run, network: Network) -> None:
    """Train all folds up to the last epoch, resuming from their checkpoints.

    Epochs go outside and folds inside: the frozen trunk then runs once per epoch over one set of augmented images,
    and a run cut short leaves all folds at the same epoch.
    """
    for epoch in range(run.config.train.epochs):
        pending = [fold for fold in range(run.config.train.folds) if epochs_done(run, fold) <= epoch]
        if not pending:
            continue
        features = _augmented_features(run, network, epoch)
        for fold in pending:
            _train_epoch(run, network, features, fold=fold, epoch=epoch)
        last = epoch + 1 == run.config.train.epochs
        if last or (epoch + 1) % run.config.train.evaluate_every == 0:
            aucs = label_aucs(run.radiographs.labels, out_of_fold(run, network))
            log.info("epoch %d out of fold: AUC %.4f, mean of findings %.4f", epoch + 1, aucs[0], mean_auc(aucs[1:]))


def out_of_fold(run: Run, network: Network) -> FloatArray:
    """Return (N, 15) logits, each image's by the one fold that did not train on it."""
    logits = np.empty((len(run.folds), len(LABELS)), dtype=np.float32)
    for fold in range(run.config.train.folds):
        load_fold(run, network, fold)
        held_out = np.flatnonzero(run.folds == fold)
        for at in range(0, len(held_out), INFERENCE_BATCH):
            rows = held_out[at : at + INFERENCE_BATCH]
            logits[rows] = network.logits(network_inputs(run.radiographs.pixels[rows], run.config.input.side))
    return logits


def load_fold(run: Run, network: Network, fold: int) -> None:
    """Put the weights of the fold's last finished epoch into the head, and the last layer if it was fitted again."""
    network.optimiser.restore(_read_checkpoint(run.checkpoint(fold))[1])
    if run.output_layer(fold).exists():
        _, layer = _read_checkpoint(run.output_layer(fold))
        network.head.get_layer("logits").set_weights(layer)


def store_output_layer(run: Run, fold: int, kernel: FloatArray, bias: FloatArray) -> None:
    """Keep a fold's last layer that was fitted again, for `load_fold` to use."""
    _write_checkpoint(run.output_layer(fold), run.config.train.epochs, [kernel, bias])


def epochs_done(run: Run, fold: int) -> int:
    """Return how many epochs of the fold are finished and stored."""
    path = run.checkpoint(fold)
    return _read_checkpoint(path)[0] if path.exists() else 0


def _train_epoch(run: Run, network: Network, features: npt.NDArray[np.float16], *, fold: int, epoch: int) -> None:
    settings, labels = run.config.train, run.radiographs.labels
    rows = np.random.default_rng((settings.seed, epoch, fold)).permutation(np.flatnonzero(run.folds != fold))
    if epoch == 0:
        _start_fold(run, network, features[rows[:STATISTICS_IMAGES]], labels[rows])
    else:
        load_fold(run, network, fold)
    steps = len(rows) // settings.batch_size
    if not steps:
        raise ConfigurationError(f"fold {fold} has fewer training images than a batch of {settings.batch_size}")
    losses, began = [], time.monotonic()
    for step in range(steps):
        batch = rows[step * settings.batch_size : (step + 1) * settings.batch_size]
        rate = scheduled_rate((epoch + (step + 1) / steps) / settings.epochs, settings)
        losses.append(network.optimiser.step(features[batch], labels[batch], learning_rate=rate))
        if (step + 1) % REPORT_EVERY_STEPS == 0 or step + 1 == steps:
            _report(run, losses, fold=fold, epoch=epoch, steps=steps, seconds=time.monotonic() - began)
    _write_checkpoint(run.checkpoint(fold), epoch + 1, network.optimiser.state())


def _start_fold(run: Run, network: Network, features: npt.NDArray[np.float16], labels: FloatArray) -> None:
    """Put the head at the start, its statistics and output bias measured on the fold's training images."""
    network.optimiser.restore(network.start)
    if run.warm_start is not None:
        unfold_normalisation(network.head, features.astype(np.float32))
    output = network.head.get_layer("logits")
    output.set_weights([np.zeros_like(output.get_weights()[0]), prior_logits(labels)])


def _report(run: Run, losses: list[float], *, fold: int, epoch: int, steps: int, seconds: float) -> None:
    settings = run.config.train
    per_step = seconds / len(losses)
    whole = (settings.epochs - epoch) * settings.folds - fold
    left = (whole * steps - len(losses)) * per_step
    log.info(
        "epoch %d/%d fold %d step %d/%d loss %.4f, %.0f images/s, about %.0f min left",
        epoch + 1, settings.epochs, fold, len(losses), steps, float(np.mean(losses[-REPORT_EVERY_STEPS:])),
        settings.batch_size / per_step, left / 60,
    )  # fmt: skip


def _augmented_features(run: Run, network: Network, epoch: int) -> npt.NDArray[np.float16]:
    """Return the trunk's (N, h, w, C) outputs for one epoch's augmented images, in half precision to fit memory."""
    random = np.random.default_rng((run.config.train.seed, epoch))
    pixels, side = run.radiographs.pixels, run.config.input.side
    features = np.empty((len(pixels), *network.trunk.output.shape[1:]), dtype=np.float16)
    for at in range(0, len(pixels), INFERENCE_BATCH):
        images = augmented_inputs(pixels[at : at + INFERENCE_BATCH], side, run.config.augment, random)
        features[at : at + INFERENCE_BATCH] = network.trunk.predict_on_batch(images)
    return features


def _write_checkpoint(path: Path, epochs: int, state: State) -> None:
    """Write the whole file, then move it into place: a kill leaves either the old checkpoint or the new one."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, np.array(epochs), *state)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read_checkpoint(path: Path) -> tuple[int, State]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return int(held["arr_0"]), [held[f"arr_{index}"] for index in range(1, len(held.files))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"{path} is damaged; remove it to train the fold again") from error
