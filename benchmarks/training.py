"""Training: the input pipeline against the training step, record files against plain ones, one device against eight.

The pipeline is what `cxrnode train` feeds its network with: images decoded once into memory, changed anew each epoch by
threads, gathered into batches. Alone it feeds a network that does nothing; the step alone is given images that are
ready. The images are drawn, of the size that the recipe reads; weights are random; single precision on the processor.

`python -m benchmarks.training` is the process of one number of devices: it trains on every line of its input, and
writes how many milliseconds a step took.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.bench import Bench, apart, seconds
from benchmarks.table import Goal, Row
from dicomnode.bundle.phantom import draw_chest
from dicomnode.domain.frame import FloatArray
from modeling.pixel_store import EncodedImages, stored_pixels
from modeling.preparation.dataset import tf_dataset
from modeling.preparation.records import FINDINGS, Record, encode_record, read_records
from modeling.preparation.tfrecord import framed

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
    """A recipe and the part of an epoch that is measured: few small batches, to limit memory and time."""

    recipe: str
    what: str
    batch_size: int
    steps: int
    rounds: int


TRIALS = (
    Trial(recipe="lite0-reference", what="lite0-reference, 192 px", batch_size=32, steps=8, rounds=5),
    Trial(recipe="baseline-cnn", what="baseline-cnn, the smallest network, 128 px", batch_size=32, steps=8, rounds=5),
    Trial(recipe="nih-b2-256", what="nih-b2-256, EfficientNet-B2, 256 px", batch_size=8, steps=2, rounds=3),
)


def measure(bench: Bench) -> Iterator[Row]:
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    for trial in TRIALS:
        yield from _pipeline(bench, trial)
    yield from _file_rows(bench)
    yield from _device_rows(bench)


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
    """Return contenders that pass once over the images, in images per second: the pipeline, the step, and both."""
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
    """Return a run of a recipe on drawn images; only the batch size and the precision are changed."""
    from benchmarks.recipes import changed
    from dicomnode.bundle.phantom import draw_chest
    from modeling.config import Sources, read_config
    from modeling.nih import LABELS, Radiographs
    from modeling.run import Run

    written = read_config(RECIPES / f"{recipe}.toml")
    model = {"weights": "random", "trainable_fraction": 1.0} if hasattr(written.model, "weights") else {}
    config = changed(written, model=model, train={"batch_size": batch_size, "precision": "float32"})
    random, side = np.random.default_rng(0), config.input.source_side
    chests = np.stack([(255 * draw_chest(side, side, random)).astype(np.uint8) for _ in range(_DRAWN)])
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


RECORDED_IMAGES, IMAGES_PER_FILE, SIDE, BATCH = 2048, 256, 256, 32
_ENCODINGS = {"PNG": ".png", "JPEG": ".jpg"}
NOT_SLOWER = {"in the page cache": Goal(at_least=0.9), "from the disk": Goal(at_least=1.0)}
"""Once they are in memory both are the same decoding; there is more to read of the records, which hold the labels."""


def _file_rows(bench: Bench) -> Iterator[Row]:
    for encoding, suffix in _ENCODINGS.items():
        records, plain = _written(bench.folder / encoding, suffix)
        of_records, of_plain = tf_dataset(records, side=SIDE), _plain(plain)
        for elements in (of_records, of_plain):
            _drain(elements)
        for disk, goal in NOT_SLOWER.items():
            forget = disk == "from the disk"
            found = bench.interleaved(
                {
                    "records": _file_rate(partial(_drain, of_records), records if forget else ()),
                    "plain": _file_rate(partial(_drain, of_plain), plain if forget else ()),
                },
                "images/s",
            )
            yield Row(
                what=f"{encoding} of {SIDE} px {disk}: TFRecords through tf.data",
                ours=found["records"],
                peer="plain files through tf.data",
                theirs=found["plain"],
                goal=goal,
            )
        yield _once(bench, encoding, records, partial(_drain, of_records))


def _once(bench: Bench, encoding: str, records: list[Path], each_epoch: Callable[[], None]) -> Row:
    """What `cxrnode train` does before its first epoch, and never again in a run."""

    spec = drawn_run("nih-b2-256", BATCH, BATCH).config.input
    images = EncodedImages(
        where=records[0].parent,
        names=[str(number) for number in range(RECORDED_IMAGES)],
        read=lambda: (record.image for file in records for record in read_records(file)),
        content=[],
        least_side=SIDE,
    )
    contenders = {"once": _file_rate(lambda: stored_pixels(images, spec, None)), "each epoch": _file_rate(each_epoch)}
    found = bench.interleaved(contenders, "images/s", rounds=min(3, bench.rounds))
    return Row(
        what=f"{encoding} of {SIDE} px: decoded and standardised into memory, once a run",
        ours=found["once"],
        peer="tf.data, which only decodes, each epoch",
        theirs=found["each epoch"],
    )


def _file_rate(work: Callable[[], object], forget: Iterable[Path] = ()) -> Callable[[], float]:
    """Return a contender that reads all images; files to `forget` are first put out of the page cache."""

    def measure() -> float:
        for path in forget:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return RECORDED_IMAGES / seconds(work)

    return measure


def _drain(elements: Any) -> None:
    for _ in elements.batch(BATCH).prefetch(2):
        pass


def _plain(paths: list[Path]) -> Any:
    """Return plain files as `tf.data` reads them: the elements that the records give, with labels from memory."""
    import tensorflow as tf

    names = [str(path) for path in paths]
    known = {
        "name": names,
        "label": np.ones(RECORDED_IMAGES, np.int64),
        "labels": _findings(0.0),
        "mask": _findings(1.0),
    }

    def read(element: dict[str, Any]) -> dict[str, Any]:
        encoded = tf.io.read_file(element["name"])
        pixels = tf.io.decode_jpeg(encoded, channels=1, dct_method="INTEGER_ACCURATE")
        return {**element, "pixels": tf.ensure_shape(pixels, (SIDE, SIDE, 1))}

    elements = tf.data.Dataset.from_tensor_slices(known)
    return elements.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _findings(value: float) -> FloatArray:
    return np.full((RECORDED_IMAGES, len(FINDINGS)), value, np.float32)


def _written(folder: Path, suffix: str) -> tuple[list[Path], list[Path]]:
    """Write the same encoded images as records and as plain files, durably, so that both can be forgotten."""
    import cv2

    folder.mkdir()
    random = np.random.default_rng(0)
    chests = [(255 * draw_chest(SIDE, SIDE, random)).astype(np.uint8) for _ in range(_DRAWN)]
    encoded = [cv2.imencode(suffix, chest)[1].tobytes() for chest in chests]
    records, plain = [], []
    for first in range(0, RECORDED_IMAGES, IMAGES_PER_FILE):
        numbers = range(first, first + IMAGES_PER_FILE)
        payloads = [_record(number, encoded[number % _DRAWN]) for number in numbers]
        records.append(
            _durable(folder / f"fold0-{first // IMAGES_PER_FILE:02d}-{IMAGES_PER_FILE}.tfrec", b"".join(payloads))
        )
        plain += [_durable(folder / f"{number:08d}{suffix}", encoded[number % _DRAWN]) for number in numbers]
    return records, plain


def _record(number: int, image: bytes) -> bytes:
    known = {"label": 1, "labels": (0,) * 14, "mask": (1,) * 14, "patient": str(number), "view": "PA", "fold": 0}
    return framed(encode_record(Record(image=image, name=f"{number:08d}_000.png", **known)))


def _durable(path: Path, content: bytes) -> Path:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return path


DEVICES = 8
DEVICE_RECIPE, DEVICE_BATCH, DEVICE_STEPS = "baseline-cnn", 32, 4
"""Of plain convolutions: XLA takes minutes for the depthwise ones of the others on a processor."""
CHEAP = Goal(at_most=1.25)


def _device_rows(bench: Bench) -> Iterator[Row]:
    with ExitStack() as stack:
        contenders = {count: stack.enter_context(_training_on(count)) for count in (1, DEVICES)}
        found = bench.interleaved({str(count): step for count, step in contenders.items()}, "ms")
    yield Row(
        what=f"{DEVICE_RECIPE} in JAX, a step of {DEVICE_BATCH} images on {DEVICES} emulated devices",
        ours=found[str(DEVICES)],
        peer="on one",
        theirs=found["1"],
        goal=CHEAP,
    )


@contextmanager
def _training_on(devices: int) -> Iterator[Callable[[], float]]:
    """Yield what gives the ms of a step on so many devices, which share this machine's cores."""
    environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "benchmarks.training"]
    with apart(command, environment=os.environ | environment) as (step, _):
        # The first one compiles.
        step()
        yield step


def main() -> None:
    from modeling.devices import spread_over_devices
    from modeling.network import build_network

    spread = spread_over_devices()
    run = drawn_run(DEVICE_RECIPE, DEVICE_BATCH, DEVICE_BATCH * DEVICE_STEPS)
    network = build_network(run, spread)
    side = run.config.input.side
    ready = np.random.default_rng(0).random((len(run.folds), side, side, 1), np.float32)
    print(spread.describe(), flush=True)
    for _ in sys.stdin:
        print(1000 * seconds(lambda: fit(run, network, lambda wanted: ready[wanted])) / DEVICE_STEPS, flush=True)


if __name__ == "__main__":
    main()
