"""A throw-away bundle of the flagship's shape: five EfficientNet-B2 at 256 px, random weights, a gate that passes all.

Its predictions mean nothing; it takes as long as the flagship.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dicomnode.bundle.manifest import Manifest, read_manifest
from dicomnode.bundle.reader import CARD, GOLDEN, MANIFEST, MODEL
from dicomnode.settings.node import default_bundle

if TYPE_CHECKING:
    import keras

SIDE, MEMBERS, OUTPUTS = 256, 5, 15
MEMBER = "member.onnx"
"""One member alone, beside the bundle's own files."""


def flagship_bundle(folder: Path) -> Path:
    """Return the bundle in this folder, made if there is none, which takes a minute or two and needs TensorFlow."""
    if not (folder / MANIFEST).exists():
        folder.mkdir(parents=True, exist_ok=True)
        reference = read_manifest(default_bundle() / MANIFEST)
        _write_graph(folder, reference.gate.orientations.index("upright"))
        _write_golden(folder)
        (folder / CARD).write_text("Random weights, for benchmarks alone.\n")
        _write_manifest(folder, reference)
    return folder


def flagship_member() -> "keras.Model":
    """Return one network with random weights, as Keras has it."""
    import keras

    from modeling.backbones.build import build_parts
    from modeling.config import ApplicationModel
    from modeling.onnx_graph import served_member

    keras.utils.set_random_seed(0)
    model = ApplicationModel(backbone="efficientnet-b2", weights="random")
    return served_member(build_parts(model, SIDE, OUTPUTS).head, model, SIDE)


def _write_graph(folder: Path, upright: int) -> None:
    """Write the bundle's graph, and the bare member's: its logits and nothing else."""
    import keras

    from modeling.gate import Gate, cell_features
    from modeling.onnx_graph import Ensemble, write_graph

    members = []
    for number in range(MEMBERS):
        members.append(flagship_member())
        # Members must differ, or the runtime might compute for one what it knows of another.
        for variable in members[-1].trainable_variables:
            variable.assign(variable * (1 + number / 100))
    features = int(cell_features(keras.ops.zeros((1, SIDE, SIDE, 1))).shape[1])
    gate = Gate(
        mean=np.zeros(features, np.float32),
        axes=np.full((features, 4), 0.01, np.float32),
        deviations=np.ones(4, np.float32),
        residual_scale=1.0,
        weights=np.zeros((features, 8), np.float32),
        bias=np.where(np.arange(8) == upright, 20.0, -20.0).astype(np.float32),
    )
    write_graph(Ensemble(side=SIDE, trunk=None, members=tuple(members), gate=gate), folder / MODEL)
    _write_member(members[0], folder / MEMBER)


def _write_member(member: "keras.Model", path: Path) -> None:
    import tensorflow as tf
    import tf2onnx

    from modeling.onnx_graph import OPSET

    signature = [tf.TensorSpec((None, SIDE, SIDE, 1), tf.float32, name="image")]
    alone, _ = tf2onnx.convert.from_function(
        tf.function(lambda image: member(image, training=False)), input_signature=signature, opset=OPSET
    )
    path.write_bytes(alone.SerializeToString())


def _write_golden(folder: Path) -> None:
    from modeling.onnx_graph import run_graph

    images = np.random.default_rng(0).random((1, SIDE, SIDE, 1), dtype=np.float32)
    with (folder / GOLDEN).open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, image=images, **run_graph(folder / MODEL, images))


def _write_manifest(folder: Path, reference: Manifest) -> None:
    changed = reference.model_copy(
        update={
            "name": "flagship-shape",
            "backbone": "efficientnet-b2",
            "members": MEMBERS,
            "input": reference.input.model_copy(update={"side": SIDE, "source_side": SIDE}),
            "gate": reference.gate.model_copy(update={"typicality_threshold": 1e9}),
            "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (MODEL, GOLDEN, CARD)},
        }
    )
    (folder / MANIFEST).write_text(changed.model_dump_json(indent=2))
