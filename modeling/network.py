"""The network of a run: one trunk and one head that takes each fold's weights in turn."""

import math
import threading
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from modeling.augment import network_inputs
from modeling.backbones.build import build_parts
from modeling.backbones.lite import blocks_behind, unfold_normalisation, warm_start
from modeling.backbones.parts import LOGITS, POOLED
from modeling.config import LiteModel
from modeling.devices import PREDICTED_AT_ONCE, Spread
from modeling.feeding import Rows, ahead, drawn_rows
from modeling.losses import build_loss, label_frequency, logit_shift, prior_logits
from modeling.optimise import Optimiser, State, build_optimiser, read_state, write_state, write_weights
from modeling.run import Run, read_arrays, read_checkpoint, write_arrays, write_checkpoint
from modeling.schedules import build_schedule

STATISTICS_IMAGES = 256
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Trunk and head as `build_parts` returns them; `start`: the state every fold begins with."""

    trunk: keras.Model | None
    head: keras.Model
    optimiser: Optimiser
    start: State
    spread: Spread
    gate_trunk: keras.Model | None = None
    trunk_in_use: threading.Lock = field(default_factory=threading.Lock)

    @property
    def for_gate(self) -> keras.Model | None:
        """What makes the maps that the pixel gate reads of images; None where it reads the images themselves."""
        if self.trunk is None or self.gate_trunk is None:
            return self.trunk
        return keras.Model(self.trunk.input, self.gate_trunk(self.trunk.output))

    @property
    def can_look_ahead(self) -> bool:
        """Whether a thread may run the trunk while the head trains: on one device that is not the processor itself."""
        return self.trunk is not None and self.spread.devices == 1 and self.spread.platform != "cpu"

    def features(self, images: FloatArray) -> FloatArray:
        """Return what the head takes, of (N, side, side, 1) images: the trunk's maps, or the images themselves."""
        if self.trunk is None:
            return images
        # Keras keeps what a prediction works on in the model, so that two threads must not use one.
        with self.trunk_in_use:
            return self.spread.predict(self.trunk, images)

    def logits(self, images: FloatArray) -> FloatArray:
        """Return (N, outputs) float32 logits of (N, side, side, 1) images under the head's present weights."""
        return self.predict(self.head, images)

    def predict(self, model: keras.Model, images: FloatArray) -> FloatArray:
        """Return what a model on the head's inputs gives for images."""
        return self.spread.predict(model, self.features(images)).astype(np.float32)


def build_network(run: Run, spread: Spread, *, exact: bool = False) -> Network:
    """Build trunk and head at the first weights, random ones depending on the seed alone.

    `exact`: compute in single precision whatever the configuration says, as what is served does.

    Raises: ConfigurationError when the warm start or the batch size does not fit.
    """
    config = run.config
    spread.check_batch(config.train.batch_size)
    keras.utils.set_random_seed(config.train.seed)
    keras.config.set_dtype_policy("float32" if exact else POLICIES[config.train.precision])
    parts = build_parts(config.model, config.input.side, len(run.outputs))
    if config.train.towards_start and run.begins_at_random:
        raise ConfigurationError("train.towards_start needs pretrained weights: there is no way back to random ones")
    if isinstance(config.model, LiteModel) and run.sources.warm_start is not None:
        warm_start(parts, config.model, run.sources.warm_start)
    schedule = build_schedule(config.schedule, steps_per_epoch=steps_per_epoch(run), epochs=config.train.epochs)
    optimiser = build_optimiser(config.optimiser, schedule, parts.head, _rate_shares(run, parts.head))
    # XLA has slow depthwise convolutions on a CPU, which is where TensorFlow runs; JAX always compiles.
    compiled = keras.backend.backend() == "jax"
    parts.head.compile(optimizer=optimiser, loss=build_loss(config.loss), jit_compile=compiled)
    # Else Keras builds the loss from a first batch, and on JAX the first epoch of a process then ends with that batch.
    nothing = np.zeros((1, 2, len(run.outputs)), dtype=np.float32)
    parts.head.compute_loss(y=nothing, y_pred=nothing[:, 0])
    start = read_state(parts.head, optimiser)
    return Network(
        trunk=parts.trunk, head=parts.head, optimiser=optimiser, start=start, spread=spread, gate_trunk=parts.gate_trunk
    )


def _rate_shares(run: Run, head: keras.Model) -> dict[str, float]:
    """Return the share of the rate for every variable of a block, by its path."""
    model, share = run.config.model, run.config.optimiser.block_rate
    if share == 1:
        return {}
    if not isinstance(model, LiteModel):
        raise ConfigurationError(f"optimiser.block_rate is for an EfficientNet-Lite, not for {model.backbone}")
    return {path: share**behind for path, behind in blocks_behind(head, model).items()}


def steps_per_epoch(run: Run) -> int:
    """Return how many whole batches an epoch of any fold has: the same for all, so that they share a schedule."""
    train = run.config.train
    drawn = [float(drawn_share(run)[run.folds != fold].sum()) for fold in range(train.folds)]
    # Shares of patients add up to whole numbers of images but for rounding.
    return int(min(*drawn, train.epoch_images or math.inf) + 1e-6) // train.batch_size


def drawn_share(run: Run) -> npt.NDArray[np.float64]:
    """Return (N,) how often an epoch draws each image."""
    share, most = np.where(has_finding(run), 1.0, run.config.train.keep_no_finding), run.config.train.patient_images
    if most is None:
        return share
    _, own, counts = np.unique(run.radiographs.patients, return_inverse=True, return_counts=True)
    return np.asarray(share * np.minimum(1.0, most / counts[own]))


def has_finding(run: Run) -> npt.NDArray[np.bool_]:
    """Return (N,) whether the image is known to have no finding, negated: what undersampling never leaves out."""
    return np.asarray(run.labels[:, 0] != 0)


def fold_frequency(run: Run, fold: int) -> FloatArray:
    """Return (outputs,) each label's share among what the fold trains on."""
    rows = run.folds != fold
    return label_frequency(run.labels[rows], drawn_share(run)[rows])


def epoch_rows(run: Run, fold: int, number: int) -> Rows:
    """Return the rows of one epoch of one fold, as many as its steps take. `number` counts epochs from 0."""
    rows = np.flatnonzero(run.folds != fold)
    drawn = drawn_rows(run.config.train, has_finding(run), run.radiographs.patients, rows, fold=fold, epoch=number)
    return drawn[: steps_per_epoch(run) * run.config.train.batch_size]


def start_fold(run: Run, network: Network, fold: int) -> None:
    """Put the head at the start, its statistics and output bias measured on the fold's training images."""
    write_state(network.head, network.optimiser, network.start)
    if run.sources.warm_start is not None:
        rows = epoch_rows(run, fold, 0)
        some = network_inputs(run.radiographs.pixels[rows[:STATISTICS_IMAGES]], run.config.input.side)
        unfold_normalisation(network.head, network.features(some))
    frequency, output = fold_frequency(run, fold), network.head.get_layer("logits")
    bias = prior_logits(frequency) + logit_shift(frequency, run.config.loss)
    output.set_weights([np.zeros_like(output.get_weights()[0]), bias])


def load_fold(run: Run, network: Network, fold: int) -> None:
    """Put the weights that the fold is judged and served by into the head.

    They are its last epoch's, or its best one's where folds may stop early; averaged, where an average is kept;
    without what the loss added to the logits; and with the last layer that was fitted again, if there is one.
    """
    stopping = run.config.train.stop_patience is not None
    checkpoint = read_checkpoint(run.checkpoint(fold))
    if stopping and not checkpoint.is_final:
        checkpoint = read_checkpoint(run.checkpoint(fold, best=True))
    if checkpoint.is_final:
        write_weights(network.head, checkpoint.state)
    else:
        write_state(network.head, network.optimiser, checkpoint.state)
        judge_present_weights(run, network, fold)
    if run.output_layer(fold).exists():
        layer = read_arrays(run.output_layer(fold))
        network.head.get_layer("logits").set_weights([layer["kernel"], layer["bias"]])


def write_final(run: Run, network: Network, fold: int, path: Path) -> None:
    """Write the weights that the fold is judged and served by, kernels in half precision, as a checkpoint.

    A run's folder with these in place of its checkpoints can be exported. Served kernels have half precision too.
    """
    load_fold(run, network, fold)
    weights = (np.array(keras.ops.convert_to_numpy(variable)) for variable in network.head.variables)
    state = [value.astype(np.float16) if value.ndim > 1 else value for value in weights]
    write_checkpoint(path, run.records(fold), state, is_final=True)


def judge_present_weights(run: Run, network: Network, fold: int) -> None:
    """Turn the weights in training into those that are judged: averaged, nearer the start, without the loss's shift."""
    network.optimiser.use_average(network.head.trainable_variables)
    if run.config.train.towards_start:
        _move_towards_start(run, network, fold)
    output = network.head.get_layer("logits")
    kernel, bias = output.get_weights()
    output.set_weights([kernel, bias - logit_shift(fold_frequency(run, fold), run.config.loss)])


def _move_towards_start(run: Run, network: Network, fold: int) -> None:
    """Move all weights but those of the read-out a share of the way back to where the fold began."""
    share, trained = run.config.train.towards_start, read_state(network.head, network.optimiser)
    start_fold(run, network, fold)
    first = read_state(network.head, network.optimiser)[: len(network.head.variables)]
    write_state(network.head, network.optimiser, trained)
    read_out = {id(variable) for name in (POOLED, LOGITS) for variable in network.head.get_layer(name).variables}
    for variable, end, start in zip(network.head.variables, trained, first, strict=False):
        if id(variable) not in read_out and np.issubdtype(end.dtype, np.floating):
            moved = (1 - share) * end.astype(np.float32) + share * start.astype(np.float32)
            variable.assign(moved)


def store_output_layer(run: Run, fold: int, kernel: FloatArray, bias: FloatArray) -> None:
    """Keep a fold's last layer that was fitted again, for `load_fold` to use."""
    write_arrays(run.output_layer(fold), {"kernel": kernel, "bias": bias})


def held_out_logits(run: Run, network: Network, rows: Rows) -> FloatArray:
    """Return (rows, outputs) logits of images as they are, under the head's present weights."""
    side, pixels = run.config.input.side, run.radiographs.pixels

    def read(at: int) -> FloatArray:
        return network_inputs(pixels[rows[at : at + PREDICTED_AT_ONCE]], side)

    batches = ahead(read, range(0, len(rows), PREDICTED_AT_ONCE))
    return np.concatenate([network.logits(images) for _, images in batches])


def out_of_fold(run: Run, network: Network) -> FloatArray:
    """Return (N, outputs) logits, each image's by the one fold that did not train on it; NaN where none has yet."""
    logits = np.full(run.labels.shape, np.nan, dtype=np.float32)
    for fold in range(run.config.train.folds):
        if run.checkpoint(fold).exists():
            load_fold(run, network, fold)
            rows = np.flatnonzero(run.folds == fold)
            logits[rows] = held_out_logits(run, network, rows)
    return logits
