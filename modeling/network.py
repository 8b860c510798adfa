"""The network of a run: one trunk and one head that takes each fold's weights in turn."""

import math
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt

from dicomnode.domain.frame import FloatArray
from modeling.augment import network_inputs
from modeling.backbones.build import build_parts
from modeling.backbones.lite0 import unfold_normalisation, warm_start
from modeling.config import Lite0Model
from modeling.devices import PREDICTED_AT_ONCE, Spread
from modeling.feeding import Rows, ahead
from modeling.losses import build_loss, label_frequency, logit_shift, prior_logits
from modeling.optimise import Optimiser, State, build_optimiser, read_state, write_state
from modeling.run import Run, read_arrays, read_checkpoint, write_arrays
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

    def features(self, images: FloatArray) -> FloatArray:
        """Return what the head takes, of (N, side, side, 1) images: the trunk's maps, or the images themselves."""
        return images if self.trunk is None else self.spread.predict(self.trunk, images)

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
    if isinstance(config.model, Lite0Model) and run.sources.warm_start is not None:
        warm_start(parts, run.sources.warm_start)
    schedule = build_schedule(config.schedule, steps_per_epoch=steps_per_epoch(run), epochs=config.train.epochs)
    optimiser = build_optimiser(config.optimiser, schedule, parts.head)
    # XLA has slow depthwise convolutions on a CPU, which is where TensorFlow runs; JAX always compiles.
    compiled = keras.backend.backend() == "jax"
    parts.head.compile(optimizer=optimiser, loss=build_loss(config.loss), jit_compile=compiled)
    # Else Keras builds the loss from a first batch, and on JAX the first epoch of a process then ends with that batch.
    nothing = np.zeros((1, 2, len(run.outputs)), dtype=np.float32)
    parts.head.compute_loss(y=nothing, y_pred=nothing[:, 0])
    start = read_state(parts.head, optimiser)
    return Network(trunk=parts.trunk, head=parts.head, optimiser=optimiser, start=start, spread=spread)


def steps_per_epoch(run: Run) -> int:
    """Return how many whole batches an epoch of any fold has: the same for all, so that they share a schedule."""
    train = run.config.train
    drawn = [float(drawn_share(run)[run.folds != fold].sum()) for fold in range(train.folds)]
    return int(min(*drawn, train.epoch_images or math.inf)) // train.batch_size


def drawn_share(run: Run) -> npt.NDArray[np.float64]:
    """Return (N,) how often an epoch draws each image."""
    return np.where(has_finding(run), 1.0, run.config.train.keep_no_finding)


def has_finding(run: Run) -> npt.NDArray[np.bool_]:
    """Return (N,) whether the image is known to have no finding, negated: what undersampling never leaves out."""
    return np.asarray(run.labels[:, 0] != 0)


def fold_frequency(run: Run, fold: int) -> FloatArray:
    """Return (outputs,) each label's share among what the fold trains on."""
    rows = run.folds != fold
    return label_frequency(run.labels[rows], drawn_share(run)[rows])


def start_fold(run: Run, network: Network, fold: int, rows: Rows) -> None:
    """Put the head at the start, its statistics and output bias measured on the fold's training images, `rows`."""
    write_state(network.head, network.optimiser, network.start)
    if run.sources.warm_start is not None:
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
    write_state(network.head, network.optimiser, read_checkpoint(run.checkpoint(fold, best=stopping)).state)
    judge_present_weights(run, network, fold)
    if run.output_layer(fold).exists():
        layer = read_arrays(run.output_layer(fold))
        network.head.get_layer("logits").set_weights([layer["kernel"], layer["bias"]])


def judge_present_weights(run: Run, network: Network, fold: int) -> None:
    """Turn the weights in training into those that are judged: averaged, and without the loss's shift."""
    network.optimiser.use_average(network.head.trainable_variables)
    output = network.head.get_layer("logits")
    kernel, bias = output.get_weights()
    output.set_weights([kernel, bias - logit_shift(fold_frequency(run, fold), run.config.loss)])


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
