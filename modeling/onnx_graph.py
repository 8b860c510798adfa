"""The serving graph: trunk, members, class activation maps and gate as one ONNX file.

The converter reads TensorFlow, so this part needs that backend, whatever trained the weights.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx
from keras import layers
from onnx import TensorProto, helper, numpy_helper

from dicomnode.domain.errors import ConfigurationError, CxrNodeError
from dicomnode.domain.frame import FloatArray
from modeling.backbones import lite
from modeling.backbones.maps import ensemble_logits_and_maps
from modeling.config import LiteModel, ModelSection
from modeling.gate import Gate

log = logging.getLogger(__name__)

OPSET = 17
OUTPUTS = ("logits", "maps", "typicality", "orientation")
SMALL = 1024
"""Initialisers of fewer values stay float32: nothing is gained by halving them."""
PARITY_TOLERANCE = 1e-5
"""Largest difference of ONNX Runtime from Keras, relative to the output's largest value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """What is served: a trunk or none, and the members, all as `served_trunk` and `served_member` return them."""

    side: int
    trunk: keras.Model | None
    members: tuple[keras.Model, ...]
    gate: Gate
    gate_trunk: keras.Model | None = None

    def outputs(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the contract's four outputs for (N, side, side, 1) images in [0, 1]."""
        features = images if self.trunk is None else self.trunk(images, training=False)
        logits, maps = ensemble_logits_and_maps(self.members, features)
        gate = self.gate.outputs(features if self.gate_trunk is None else self.gate_trunk(features, training=False))
        return {"logits": logits, "maps": maps, "typicality": gate.typicality, "orientation": gate.orientation}


def served_trunk(trunk: keras.Model | None) -> keras.Model | None:
    """Return a float32 copy of the trunk with weights rounded to half precision."""
    return None if trunk is None else _single_precision(trunk, trunk.get_weights())


def served_member(head: keras.Model, model: ModelSection, side: int) -> keras.Model:
    """Return a float32 copy of the head as it stands, its weights rounded to half precision.

    Batch norm of an EfficientNet-Lite is folded into its convolutions before they are rounded.
    """
    if not isinstance(model, LiteModel):
        return _single_precision(head, head.get_weights())
    plain = lite.build_head(model, side, head.output.shape[-1], normalised=False)
    lite.fold_normalisation(head, plain)
    return _single_precision(plain, plain.get_weights())


def write_graph(ensemble: Ensemble, path: Path) -> None:
    """Write the ensemble as ONNX, its large weights stored as float16 and computed with as float32.

    Raises: ConfigurationError when Keras runs on another backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise ConfigurationError(f"export needs KERAS_BACKEND=tensorflow, not {keras.backend.backend()}")

    def outputs_in_order(image: tf.Tensor) -> tuple[tf.Tensor, ...]:
        outputs = ensemble.outputs(image)
        return tuple(outputs[name] for name in OUTPUTS)

    signature = [tf.TensorSpec((None, ensemble.side, ensemble.side, 1), tf.float32, name="image")]
    model, _ = tf2onnx.convert.from_function(tf.function(outputs_in_order), input_signature=signature, opset=OPSET)
    _name_outputs(model.graph)
    _protect_padding(model.graph)
    _store_half_precision(model.graph)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def run_graph(path: Path, images: FloatArray) -> dict[str, FloatArray]:
    """Return the outputs that ONNX Runtime computes for (N, side, side, 1) images."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = session.run(list(OUTPUTS), {"image": images})
    return {name: np.asarray(value, dtype=np.float32) for name, value in zip(OUTPUTS, values, strict=True)}


def measure_parity(ensemble: Ensemble, path: Path, images: FloatArray) -> float:
    """Return the largest difference of the written graph from Keras, relative to each output's largest value.

    Raises: CxrNodeError when it exceeds `PARITY_TOLERANCE`.
    """
    expected, actual = ensemble.outputs(tf.constant(images)), run_graph(path, images)
    worst = max(_difference(actual[name], np.asarray(expected[name])) for name in OUTPUTS)
    if not worst <= PARITY_TOLERANCE:
        raise CxrNodeError(f"the ONNX graph differs from Keras by {worst:.1e}, more than {PARITY_TOLERANCE}")
    log.info("ONNX Runtime agrees with Keras to %.1e", worst)
    return worst


def _difference(actual: FloatArray, expected: FloatArray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def _single_precision(model: keras.Model, weights: Sequence[FloatArray]) -> keras.Model:
    """Return a copy that computes in float32 with the given weights, rounded."""

    def copied(layer: layers.Layer) -> layers.Layer:
        config: dict[str, Any] = layer.get_config()
        return type(layer).from_config({**config, "dtype": "float32"})

    # The same graph without what it was compiled with: a copy needs no optimiser.
    plain = keras.Model(model.input, model.output)
    copy = keras.models.clone_model(plain, clone_function=copied)
    copy.set_weights([_rounded(value) for value in weights])
    return copy


def _rounded(weights: FloatArray) -> FloatArray:
    """Return kernels as float16 holds them; biases and statistics are few and stay as they are."""
    return weights if weights.ndim == 1 else weights.astype(np.float16).astype(np.float32)


def _name_outputs(graph: onnx.GraphProto) -> None:
    """Give the outputs the contract's names; the converter numbers them in order."""
    for output, name in zip(graph.output, OUTPUTS, strict=True):
        graph.node.append(helper.make_node("Identity", [output.name], [name]))
        output.name = name


def _protect_padding(graph: onnx.GraphProto) -> None:
    """Pad what a maximum is taken of with the least positive number in place of zero.

    ONNX Runtime fuses zero padding into the maximum's own, which is minus infinity: another result wherever a window
    at the border holds negative values alone, as in ResNet50V2.
    """
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    padded = [node for node in graph.node if node.op_type == "Pad" and node.output[0] in pooled]
    if not padded:
        return
    graph.initializer.append(numpy_helper.from_array(np.array(np.finfo(np.float32).tiny), "nearly_zero"))
    for node in padded:
        del node.input[2:]
        node.input.append("nearly_zero")


def _store_half_precision(graph: onnx.GraphProto) -> None:
    """Replace each large float32 initialiser that float16 holds exactly by one, cast back when the graph is loaded."""
    kept: list[onnx.TensorProto] = []
    casts: list[onnx.NodeProto] = []
    for initialiser in graph.initializer:
        half = _exact_half(initialiser)
        if half is None:
            kept.append(initialiser)
            continue
        stored = numpy_helper.from_array(half, f"{initialiser.name}_half")
        kept.append(stored)
        casts.append(helper.make_node("Cast", [stored.name], [initialiser.name], to=TensorProto.FLOAT))
    nodes: Sequence[onnx.NodeProto] = [*casts, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def _exact_half(initialiser: onnx.TensorProto) -> np.ndarray | None:
    values = numpy_helper.to_array(initialiser)
    if values.dtype != np.float32 or values.size < SMALL:
        return None
    half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else None
