"""The ensemble with all its class activation maps, for one image that is already a tensor's size.

Against as many bare runs of one member in ONNX Runtime, without maps; and against the way it is usually done: a Keras
`predict` for each member, and a gradient tape for each finding's map.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.bench import Bench, milliseconds
from benchmarks.flagship import MEMBERS, SIDE, flagship_bundle, flagship_member
from benchmarks.table import Goal, Row
from dicomnode.bundle.reader import open_bundle
from dicomnode.domain.frame import FloatArray
from dicomnode.inference.predictor import Predictor
from dicomnode.settings.node import default_bundle

FASTER_THAN_KERAS = Goal(at_most=1 / 6)
NEARLY_BARE = Goal(at_most=1 / 0.8)
_KERAS_ROUNDS = 3
_BATCH = 8


def measure(bench: Bench) -> Iterator[Row]:
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    folder = flagship_bundle(Path("build").resolve() / "flagship")
    bundle = open_bundle(folder)
    predictor = Predictor(bundle, threads=0)
    predictor.replay_golden()
    image = np.random.default_rng(0).random((SIDE, SIDE), dtype=np.float32)
    ours = milliseconds(lambda: predictor.read_batch([image]))
    bare = bench.interleaved({"ours": ours, "bare": milliseconds(_bare_runs(folder / "member.onnx", image))}, "ms")
    what = f"flagship's shape: {MEMBERS} × EfficientNet-B2, {SIDE} px, {len(bundle.manifest.labels)} maps"
    yield Row(
        what=what,
        ours=bare["ours"],
        peer=f"{MEMBERS} bare runs in ONNX Runtime",
        theirs=bare["bare"],
        goal=NEARLY_BARE,
    )
    slow = _keras_way(image, findings=len(bundle.manifest.labels) - 1)
    usual = bench.interleaved({"ours": ours, "usual": milliseconds(slow)}, "ms", rounds=_KERAS_ROUNDS)
    yield Row(
        what=what,
        ours=usual["ours"],
        peer="Keras predict for each member, gradient tape for each finding",
        theirs=usual["usual"],
        goal=FASTER_THAN_KERAS,
    )
    yield from _batches(bench, "flagship's shape", predictor, image)
    reference = Predictor(open_bundle(default_bundle()), threads=0)
    reference.replay_golden()
    yield Row(
        what="shipped ensemble, one image",
        ours=bench.interleaved({"ours": milliseconds(lambda: reference.read_batch([image]))}, "ms")["ours"],
    )
    yield from _batches(bench, "shipped ensemble", reference, image)


def _batches(bench: Bench, what: str, predictor: Predictor, image: FloatArray) -> Iterator[Row]:
    """Measures what batching would gain; the node reads one image at a time, since the gain is small."""

    def per_image() -> float:
        return milliseconds(lambda: predictor.read_batch([image] * _BATCH))() / _BATCH

    alone = milliseconds(lambda: predictor.read_batch([image]), times=2)
    found = bench.interleaved({"batch": per_image, "alone": alone}, "ms")
    yield Row(
        what=f"{what}, each image of a batch of {_BATCH}",
        ours=found["batch"],
        peer="one image at a time",
        theirs=found["alone"],
    )


def _bare_runs(member: Path, image: FloatArray) -> Callable[[], object]:
    """Return five runs of sessions as a user would open them."""
    sessions = [onnxruntime.InferenceSession(str(member), providers=["CPUExecutionProvider"]) for _ in range(MEMBERS)]
    batch = image[np.newaxis, :, :, np.newaxis]
    return lambda: [session.run(None, {"image": batch}) for session in sessions]


def _keras_way(image: FloatArray, findings: int) -> Callable[[], object]:
    """Return the usual implementation, in Keras on TensorFlow; its maps are of one member only."""
    import keras
    import tensorflow as tf

    models = [flagship_member() for _ in range(MEMBERS)]
    first = models[0]
    maps = keras.Model(first.input, [first.get_layer("last_map").output, first.output])
    batch = image[np.newaxis, :, :, np.newaxis]

    def all_of_it() -> None:
        for model in models:
            model.predict(batch, verbose=0)
        for finding in range(findings):
            with tf.GradientTape() as tape:
                activations, outputs = maps(batch, training=False)
                tape.watch(activations)
                score = outputs[:, finding + 1]
            tape.gradient(score, activations)

    return all_of_it
