"""EfficientNet-Lite0, split into a frozen trunk that all folds share and a head that each fold trains.

Source: Tan and Le, "EfficientNet", ICML 2019; the Lite variant drops squeeze-and-excitation and uses ReLU6.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from modeling.backbones.parts import Parts, image_input, linear_end, rgb
from modeling.config import Lite0Model

BACKBONE = "EfficientNet-Lite0"
FEATURES = 1280
CONVOLUTIONS = 49
BN_EPSILON = 1e-3
BN_MOMENTUM = 0.97
STATISTICS_BATCH = 64


@dataclass(frozen=True, slots=True)
class _Block:
    """Inverted residuals (Sandler et al. 2018): the first of `repeats` has the stride."""

    kernel: int
    stride: int
    expansion: int
    filters: int
    repeats: int


BLOCKS = (
    _Block(3, 1, 1, 16, 1),
    _Block(3, 2, 6, 24, 2),
    _Block(5, 2, 6, 40, 2),
    _Block(3, 2, 6, 80, 3),
    _Block(5, 1, 6, 112, 3),
    _Block(5, 2, 6, 192, 4),
    _Block(3, 1, 6, 320, 1),
)


class _Graph:
    """Adds convolutions in graph order, so that the n-th layer is the n-th array of a warm start."""

    def __init__(self, *, first: int, normalised: bool) -> None:
        self.next = first
        self._normalised = normalised

    def convolve(self, x: keras.KerasTensor, filters: int, kernel: int, stride: int) -> keras.KerasTensor:
        name = self._name()
        shared = {"strides": stride, "padding": "same", "use_bias": not self._normalised}
        return self._normalise(layers.Conv2D(filters, kernel, name=f"conv{name}", **shared)(x), name)

    def depthwise(self, x: keras.KerasTensor, kernel: int, stride: int) -> keras.KerasTensor:
        name = self._name()
        shared = {"strides": stride, "padding": "same", "use_bias": not self._normalised}
        return self._normalise(layers.DepthwiseConv2D(kernel, name=f"conv{name}", **shared)(x), name)

    def block(self, x: keras.KerasTensor, block: _Block) -> keras.KerasTensor:
        for repeat in range(block.repeats):
            shortcut, channels = x, x.shape[-1]
            stride = block.stride if repeat == 0 else 1
            if block.expansion != 1:
                x = _relu6(self.convolve(x, channels * block.expansion, 1, 1))
            x = _relu6(self.depthwise(x, block.kernel, stride))
            x = self.convolve(x, block.filters, 1, 1)
            if stride == 1 and channels == block.filters:
                x = layers.Add()([x, shortcut])
        return x

    def _name(self) -> str:
        self.next += 1
        return f"{self.next - 1:02d}"

    def _normalise(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        if not self._normalised:
            return x
        return layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=BN_EPSILON, name=f"norm{name}")(x)


def build_trunk(side: int, frozen_blocks: int) -> keras.Model:
    """Return the stem and the first blocks, without batch norm: (N, side, side, 1) in [0, 1] to (N, h, w, C)."""
    image = image_input(side)
    graph = _Graph(first=0, normalised=False)
    x = _stem(graph, image)
    for block in BLOCKS[:frozen_blocks]:
        x = graph.block(x, block)
    return keras.Model(image, x, name="trunk")


def build_head(model: Lite0Model, side: int, outputs: int, *, normalised: bool = True) -> keras.Model:
    """Return the rest of the network, with batch norm or biases: trunk features, or images, to (N, outputs) logits."""
    if model.frozen_blocks:
        trunk = build_trunk(side, model.frozen_blocks)
        x = inputs = keras.Input(trunk.output.shape[1:], name="trunk_features")
        graph = _Graph(first=len(_convolutions(trunk)), normalised=normalised)
    else:
        inputs, graph = image_input(side), _Graph(first=0, normalised=normalised)
        x = _stem(graph, inputs)
    for block in BLOCKS[model.frozen_blocks :]:
        x = graph.block(x, block)
    x = _relu6(graph.convolve(x, FEATURES, 1, 1))
    return keras.Model(inputs, linear_end(x, outputs, model.dropout), name="head")


def warm_start(parts: Parts, weights: Path) -> None:
    """Load kernels and biases with batch norm folded in; the head's batch norm becomes the identity plus bias.

    Raises: ConfigurationError when the file is not such a warm start.
    """
    arrays = _read_warm_start(weights)
    for model in (parts.trunk, parts.head) if parts.trunk else (parts.head,):
        for layer in _convolutions(model):
            kernel, bias = arrays[_index(layer)]
            if layer.use_bias:
                layer.set_weights([kernel, bias])
                continue
            layer.set_weights([kernel])
            norm = model.get_layer(f"norm{_index(layer):02d}")
            scale = np.full_like(bias, np.sqrt(1.0 + BN_EPSILON))
            norm.set_weights([scale, bias, np.zeros_like(bias), np.ones_like(bias)])


def unfold_normalisation(head: keras.Model, features: FloatArray) -> None:
    """Give each batch norm its channel's real mean and variance, without changing what the network computes.

    A folded network trains badly: nothing normalises it. Here mean and variance are measured on `features`, what
    the head reads of N training images, and undone by the layer's scale and offset, so training starts both
    normalised and at the warm start. Valid only right after `warm_start`, while the layers are identities plus bias.
    """
    convolutions = _convolutions(head)
    probe = keras.Model(head.input, [layer.output for layer in convolutions])
    batches = [features[at : at + STATISTICS_BATCH] for at in range(0, len(features), STATISTICS_BATCH)]
    sums = [np.zeros((2, layer.output.shape[-1])) for layer in convolutions]
    for batch in batches:
        for position, output in enumerate(probe.predict_on_batch(batch)):
            flat = output.reshape(-1, output.shape[-1]).astype(np.float64)
            sums[position] += np.stack([flat.mean(axis=0), (flat**2).mean(axis=0)]) * len(batch) / len(features)
    for layer, (mean, square) in zip(convolutions, sums, strict=True):
        norm = head.get_layer(f"norm{_index(layer):02d}")
        variance = np.maximum(square - mean**2, 0.0)
        bias = norm.get_weights()[1]
        norm.set_weights([np.sqrt(variance + BN_EPSILON), bias + mean, mean, variance])


def folded_weights(head: keras.Model) -> list[FloatArray]:
    """Return the weights of the same head built without normalisation, such that it computes the same."""
    weights: list[FloatArray] = []
    for layer in _convolutions(head):
        (kernel,) = layer.get_weights()
        scale, offset, mean, variance = head.get_layer(f"norm{_index(layer):02d}").get_weights()
        factor = scale / np.sqrt(variance + BN_EPSILON)
        # A depthwise kernel is (kh, kw, C, 1), a full one (kh, kw, C, filters): the scaled axis differs.
        depthwise = isinstance(layer, layers.DepthwiseConv2D)
        weights += [kernel * (factor[:, None] if depthwise else factor), offset - mean * factor]
    return [*weights, *head.get_layer("logits").get_weights()]


def _stem(graph: _Graph, image: keras.KerasTensor) -> keras.KerasTensor:
    # The warm start expects RGB 0-255 less 127, not scaled further.
    return _relu6(graph.convolve(rgb(image, scale=255.0, offset=-127.0), 32, 3, 2))


def _relu6(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.ReLU(6.0)(x)


def _convolutions(model: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D))]


def _index(layer: keras.layers.Layer) -> int:
    return int(layer.name.removeprefix("conv"))


def _read_warm_start(path: Path) -> dict[int, tuple[FloatArray, FloatArray]]:
    """Return kernel and bias by position in the graph."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            named = {name: np.asarray(arrays[name], dtype=np.float32) for name in arrays.files}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is not a warm start: it cannot be read as NPZ") from error
    pattern = re.compile(r"(\d\d)_(?:DEPTHWISE_)?CONV_2D_([wb])")
    found = {(int(match[1]), match[2]): array for name, array in named.items() if (match := pattern.fullmatch(name))}
    if set(found) != {(n, kind) for n in range(CONVOLUTIONS) for kind in "wb"}:
        raise ConfigurationError(f"{path} does not hold the {CONVOLUTIONS} kernels and biases of {BACKBONE}")
    return {n: (found[n, "w"], found[n, "b"]) for n in range(CONVOLUTIONS)}
