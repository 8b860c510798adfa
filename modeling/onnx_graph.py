"""The serving graph: trunk, members, class activation maps and gate as one ONNX file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from onnx import TensorProto, helper, numpy_helper

from dicomnode.domain.frame import FloatArray
from modeling.backbones import build_head, folded_weights
from modeling.gate import Gate
from modeling.train import Network

OPSET = 17
OUTPUTS = ("logits", "maps", "typicality", "orientation")
SMALL = 1024
"""Initialisers of fewer values stay float32: nothing is gained by halving them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """What is served. Each member is a head without batch norm, its weights rounded to half precision."""

    side: int
    trunk: keras.Model
    members: tuple[keras.Model, ...]
    gate: Gate

    def outputs(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the contract's four outputs for (N, side, side, 1) images in [0, 1]."""
        features = self.trunk(images, training=False)
        read = [_member_outputs(member, features) for member in self.members]
        gate = self.gate.outputs(features)
        return {
            "logits": tf.stack([logits for logits, _ in read], axis=1),
            "maps": tf.add_n([maps for _, maps in read]) / len(read),
            "typicality": gate.typicality,
            "orientation": gate.orientation,
        }


def rounded_trunk(trunk: keras.Model) -> keras.Model:
    """Return a copy of the trunk with weights rounded to half precision."""
    copy = keras.models.clone_model(trunk)
    copy.set_weights([_rounded(value) for value in trunk.get_weights()])
    return copy


def frozen_member(network: Network, frozen_blocks: int) -> keras.Model:
    """Return the head as it stands, batch norm folded into its convolutions and weights rounded to half precision."""
    outputs = network.head.output.shape[-1]
    member = build_head(network.trunk, frozen_blocks, outputs, dropout=0.0, normalised=False)
    member.set_weights([_rounded(value) for value in folded_weights(network.head)])
    return member


def write_graph(ensemble: Ensemble, path: Path) -> None:
    """Write the ensemble as ONNX, its large weights stored as float16 and computed with as float32."""

    def outputs_in_order(image: tf.Tensor) -> tuple[tf.Tensor, ...]:
        outputs = ensemble.outputs(image)
        return tuple(outputs[name] for name in OUTPUTS)

    signature = [tf.TensorSpec((None, ensemble.side, ensemble.side, 1), tf.float32, name="image")]
    model, _ = tf2onnx.convert.from_function(tf.function(outputs_in_order), input_signature=signature, opset=OPSET)
    _name_outputs(model.graph)
    _store_half_precision(model.graph)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def _name_outputs(graph: onnx.GraphProto) -> None:
    """Give the outputs the contract's names; the converter numbers them in order."""
    for output, name in zip(graph.output, OUTPUTS, strict=True):
        graph.node.append(helper.make_node("Identity", [output.name], [name]))
        output.name = name


def _member_outputs(member: keras.Model, features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return (N, 15) logits and the (N, h, w, 15) signed maps, which sum over space to the logit less its bias.

    With a linear layer on averaged features, the gradient of the logit with respect to F_ijk is w_kc / HW, so this
    map is the exact Grad-CAM before its ReLU. Source: Selvaraju et al., ICCV 2017, section 3.
    """
    last, kernel = member.get_layer("last_map"), member.get_layer("logits").kernel
    activations, logits = keras.Model(member.input, [last.output, member.output])(features, training=False)
    cells = activations.shape[1] * activations.shape[2]
    return logits, tf.nn.conv2d(activations, kernel[tf.newaxis, tf.newaxis] / cells, strides=1, padding="VALID")


def _rounded(weights: FloatArray) -> FloatArray:
    """Return kernels as float16 holds them; biases are few and stay as they are."""
    return weights if weights.ndim == 1 else weights.astype(np.float16).astype(np.float32)


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
