"""Training: the input pipeline against the training step, record files against plain ones, one device against eight.

The pipeline is what `cxrnode train` feeds its network with: images decoded once into memory, changed anew each epoch by
threads, gathered into batches. Alone it feeds a network that does nothing; the step alone is given images that are
ready. The images are drawn, of the size that the recipe reads; weights are random; single precision on the processor.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.bench import Bench, seconds
from benchmarks.table import Goal, Row

if TYPE_CHECKING:
    import keras

    from modeling.config import TrainingConfig
    from modeling.network import Network
    from modeling.run import Run

RECIPES = Path(__file__).parents[1] / "conf" / "train"
NEVER_BEHIND = Goal(at_least=1.0)
NEARLY_ALONE = Goal(at_least=0.9)
_DRAWN = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A recipe, and the part of an epoch that it is measured by: few small batches, as memory and patience allow."""

    recipe: str
    what: str
    batch_size: int
    steps: int
    rounds: int


TRIALS = (
    Trial(recipe="lite0-reference", what="lite0-reference, as shipped, 192 px", batch_size=32, steps=8, rounds=5),
    Trial(recipe="baseline-cnn", what="baseline-cnn, the smallest network, 128 px", batch_size=32, steps=8, rounds=5),
    Trial(recipe="nih-b2-256", what="nih-b2-256, EfficientNet-B2, 256 px", batch_size=8, steps=2, rounds=3),
)


def measure(bench: Bench) -> Iterator[Row]:
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    from benchmarks import training_devices, training_files

    for trial in TRIALS:
        yield from _pipeline(bench, trial)
    yield from training_files.rows(bench)
    yield from training_devices.rows(bench)


def _pipeline(bench: Bench, trial: Trial) -> Iterator[Row]:
    run = drawn_run(trial.recipe, trial.batch_size, trial.batch_size * trial.steps)
    contenders = _contenders(run)
    for contender in contenders.values():
        # The first epoch of a process builds the graph.
        contender()
    found = bench.interleaved(contenders, "images/s", rounds=min(trial.rounds, bench.rounds))
    alone = {"peer": "the training step alone", "theirs": found["step"]}
    yield Row(what=f"{trial.what}: the input pipeline alone", ours=found["pipeline"], goal=NEVER_BEHIND, **alone)
    yield Row(what=f"{trial.what}: both, as it is trained", ours=found["both"], goal=NEARLY_ALONE, **alone)


def _contenders(run: "Run") -> dict[str, Callable[[], float]]:
    """Return what pass once over the images, in images per second: the pipeline, the step, and both together."""
    from modeling.devices import alone
    from modeling.network import build_network
    from modeling.train import epoch_inputs

    network, rows = build_network(run, alone()), np.arange(len(run.folds))
    idle = replace(network, trunk=None, head=_idle(run.config))
    ready = np.random.default_rng(0).random((len(rows), run.config.input.side, run.config.input.side, 1), np.float32)

    def step() -> None:
        features = network.features(ready)
        fit(run, network, lambda wanted: features[wanted])

    passes = {
        "pipeline": lambda: fit(run, idle, epoch_inputs(run, idle, 0, rows=rows)),
        "step": step,
        "both": lambda: fit(run, network, epoch_inputs(run, network, 0, rows=rows)),
    }
    return {name: _rate(work, len(rows)) for name, work in passes.items()}


def _rate(work: Callable[[], None], images: int) -> Callable[[], float]:
    return lambda: images / seconds(work)


def _idle(config: "TrainingConfig") -> "keras.Model":
    """Return a network that takes images and does next to nothing with them."""
    import keras

    side, outputs = config.input.side, 15
    images = keras.Input((side, side, 1))
    corner = keras.layers.Flatten()(keras.layers.Cropping2D(((0, side - 1), (0, side - 1)))(images))
    model = keras.Model(images, keras.layers.Dense(outputs)(corner))
    model.compile(optimizer="sgd", loss=lambda targets, logits: keras.ops.mean(logits) + 0 * keras.ops.mean(targets))
    return model


def drawn_run(recipe: str, batch_size: int, images: int) -> "Run":
    """Return a run of a recipe, which stays as it is but for the batch and the precision, on drawn images."""
    from benchmarks.recipes import changed
    from modeling.config import read_config
    from modeling.nih import LABELS, Radiographs
    from modeling.phantom import chest_phantom
    from modeling.run import Run
    from modeling.sources import Sources

    written = read_config(RECIPES / f"{recipe}.toml")
    model = {"weights": "random", "trainable_fraction": 1.0} if hasattr(written.model, "weights") else {}
    config = changed(written, model=model, train={"batch_size": batch_size, "precision": "float32"})
    random, side = np.random.default_rng(0), config.input.source_side
    chests = np.stack([(255 * chest_phantom(side, random)).astype(np.uint8) for _ in range(_DRAWN)])
    radiographs = Radiographs(
        names=tuple(map(str, range(images))),
        pixels=chests[np.arange(images) % _DRAWN],
        labels=random.integers(0, 2, (images, len(LABELS))).astype(np.float32),
        patients=np.arange(images).astype(str),
        views=np.full(images, "PA"),
        source_px=np.full(images, side),
    )
    folds = np.arange(images) % config.train.folds
    return Run(config=config, radiographs=radiographs, folds=folds, sources=Sources(images=Path()), folder=Path())


def fit(run: "Run", network: "Network", read_inputs: Callable[[Any], Any]) -> None:
    """Train on every image once, as an epoch of fold 0 is trained."""
    from modeling.feeding import EpochBatches, Share
    from modeling.losses import targets
    from modeling.network import fold_frequency

    frequency, size = fold_frequency(run, 0), run.config.train.batch_size
    batches = EpochBatches(
        np.random.default_rng(0).permutation(len(run.folds)),
        steps=len(run.folds) // size,
        batch_size=size,
        read_inputs=read_inputs,
        labels=run.labels,
        make_targets=lambda labels: targets(labels, frequency, run.config.loss),
        mixup=run.config.train.mixup,
        seed=(0,),
        share=Share(index=0, count=1),
    )
    network.head.fit(batches, shuffle=False, verbose=0)
    batches.release()
