"""EfficientNet-Lite0 and Lite2, split into a frozen trunk that all folds share and a head that each fold trains.

Source: Tan and Le, "EfficientNet", ICML 2019; the Lite variant drops squeeze-and-excitation and uses ReLU6.
"""

import re
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import keras
import numpy as np
from keras import layers

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from modeling.backbones.parts import Depthwise, Parts, image_input, linear_end, pyramid_end, rgb
from modeling.config import LiteModel

FEATURES = 1280
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


@dataclass(frozen=True, slots=True)
class Variant:
    """One size of the family. `scale`: of RGB 0-255 less 127, as its warm start expects the input."""

    name: str
    blocks: tuple[_Block, ...]
    scale: float

    @property
    def convolutions(self) -> int:
        """The number of kernels in a warm start: stem, blocks and the last 1 x 1 convolution."""
        return 2 + sum(block.repeats * (2 if block.expansion == 1 else 3) for block in self.blocks)


VARIANTS = {
    "efficientnet-lite0": Variant(
        name="EfficientNet-Lite0",
        blocks=(
            _Block(3, 1, 1, 16, 1), _Block(3, 2, 6, 24, 2), _Block(5, 2, 6, 40, 2), _Block(3, 2, 6, 80, 3),
            _Block(5, 1, 6, 112, 3), _Block(5, 2, 6, 192, 4), _Block(3, 1, 6, 320, 1),
        ),
        scale=1.0,
    ),
    "efficientnet-lite2": Variant(
        name="EfficientNet-Lite2",
        blocks=(
            _Block(3, 1, 1, 16, 1), _Block(3, 2, 6, 24, 3), _Block(5, 2, 6, 48, 3), _Block(3, 2, 6, 88, 4),
            _Block(5, 1, 6, 120, 4), _Block(5, 2, 6, 208, 5), _Block(3, 1, 6, 352, 1),
        ),
        scale=1 / 128,
    ),
}  # fmt: skip
GATE_BLOCKS = 4
"""Blocks whose maps the pixel gate reads; those that are not frozen run once more, as the warm start has them."""
STRIDE_16 = 5
"""Blocks up to the last one whose maps have a sixteenth of the image's side."""


class _Graph:
    """Adds convolutions in graph order, so that the n-th layer is the n-th array of a warm start."""

    def __init__(self, *, first: int, normalised: bool, stochastic_depth: float = 0.0) -> None:
        self.next = first
        self._normalised, self._stochastic_depth = normalised, stochastic_depth

    def convolve(self, x: keras.KerasTensor, filters: int, kernel: int, stride: int) -> keras.KerasTensor:
        name = self._name()
        shared = {"strides": stride, "padding": "same", "use_bias": not self._normalised}
        return self._normalise(layers.Conv2D(filters, kernel, name=f"conv{name}", **shared)(x), name)

    def depthwise(self, x: keras.KerasTensor, kernel: int, stride: int) -> keras.KerasTensor:
        name = self._name()
        shared = {"strides": stride, "padding": "same", "use_bias": not self._normalised}
        return self._normalise(Depthwise(kernel, name=f"conv{name}", **shared)(x), name)

    def block(self, x: keras.KerasTensor, block: _Block) -> keras.KerasTensor:
        for repeat in range(block.repeats):
            shortcut, channels = x, x.shape[-1]
            stride = block.stride if repeat == 0 else 1
            if block.expansion != 1:
                x = _relu6(self.convolve(x, channels * block.expansion, 1, 1))
            x = _relu6(self.depthwise(x, block.kernel, stride))
            x = self.convolve(x, block.filters, 1, 1)
            if stride == 1 and channels == block.filters:
                x = layers.Add()([self._kept(x), shortcut])
        return x

    def _kept(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Leave the whole branch out of some images while training. Source: Huang et al., ECCV 2016."""
        rate = self._stochastic_depth
        if not rate or not self._normalised:
            return x
        return layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=f"passed{self.next:02d}")(x)

    def _name(self) -> str:
        self.next += 1
        return f"{self.next - 1:02d}"

    def _normalise(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        if not self._normalised:
            return x
        return layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=BN_EPSILON, name=f"norm{name}")(x)


def build_trunk(model: LiteModel, side: int) -> keras.Model:
    """Return the stem and the frozen blocks, without batch norm: (N, side, side, 1) in [0, 1] to (N, h, w, C)."""
    image = image_input(side)
    graph, variant = _Graph(first=0, normalised=False), VARIANTS[model.backbone]
    x = _stem(graph, image, variant)
    for block in variant.blocks[: model.frozen_blocks]:
        x = graph.block(x, block)
    # Whatever the policy: NumPy converts numbers of eight bits' precision one by one, and they come by the billion.
    return keras.Model(image, layers.Identity(dtype="float32", name="trunk_maps")(x), name="trunk")


def build_gate_trunk(model: LiteModel, side: int) -> keras.Model | None:
    """Return what leads from the trunk's maps to those that the pixel gate reads; None where that is the trunk itself.

    What few blocks see is edges, which a hand has too.
    """
    if not 0 < model.frozen_blocks < GATE_BLOCKS:
        return None
    trunk = build_trunk(model, side)
    maps = keras.Input(trunk.output.shape[1:], name="gate_features")
    graph, x = _Graph(first=len(_convolutions(trunk)), normalised=False), maps
    for block in VARIANTS[model.backbone].blocks[model.frozen_blocks : GATE_BLOCKS]:
        x = graph.block(x, block)
    return keras.Model(maps, layers.Identity(dtype="float32", name="gate_maps")(x), name="gate_trunk")


def build_head(model: LiteModel, side: int, outputs: int, *, normalised: bool = True) -> keras.Model:
    """Return the rest of the network, with batch norm or biases: trunk features, or images, to (N, outputs) logits."""
    variant, first = VARIANTS[model.backbone], 0
    if model.frozen_blocks:
        trunk = build_trunk(model, side)
        x = inputs = keras.Input(trunk.output.shape[1:], name="trunk_features")
        first = len(_convolutions(trunk))
    else:
        inputs = image_input(side)
    graph = _Graph(first=first, normalised=normalised, stochastic_depth=model.stochastic_depth)
    if not model.frozen_blocks:
        x = _stem(graph, inputs, variant)
    fine = x
    for number, block in enumerate(variant.blocks[model.frozen_blocks :], start=model.frozen_blocks + 1):
        x = graph.block(x, block)
        fine = x if number <= STRIDE_16 else fine
    last = graph.convolve(x, FEATURES, 1, 1)
    if model.read_out == "pooled":
        return keras.Model(inputs, linear_end(_relu6(last), outputs, model.dropout), name="head")
    return keras.Model(inputs, pyramid_end(_pyramid(graph, last, fine), outputs, model.dropout), name="head")


def _pyramid(graph: _Graph, coarse: keras.KerasTensor, fine: keras.KerasTensor) -> keras.KerasTensor:
    """Return the last features on the grid of stride 16: the coarse ones enlarged, plus a projection of the fine.

    At a warm start the projection adds nothing, so the average over space is that of the coarse features.
    """
    factor = fine.shape[1] // coarse.shape[1]
    enlarged = layers.UpSampling2D(factor, interpolation="bilinear", name="enlarged")(coarse)
    return _relu6(layers.Add(name="pyramid")([enlarged, graph.convolve(fine, FEATURES, 1, 1)]))


def warm_start(parts: Parts, model: LiteModel, weights: Path) -> None:
    """Load kernels and biases with batch norm folded in; the head's batch norm becomes the identity plus bias.

    What a pyramid adds to the network is silent at first: its batch norm multiplies by nothing.

    Raises: ConfigurationError when the file is not such a warm start.
    """
    variant = VARIANTS[model.backbone]
    arrays = _read_warm_start(weights, variant)
    for part in (part for part in (parts.trunk, parts.head, parts.gate_trunk) if part is not None):
        for layer in _convolutions(part):
            if _index(layer) >= variant.convolutions:
                norm = part.get_layer(_norm(layer))
                norm.set_weights([np.zeros_like(norm.get_weights()[0]), *norm.get_weights()[1:]])
                continue
            kernel, bias = arrays[_index(layer)]
            if layer.use_bias:
                layer.set_weights([kernel, bias])
                continue
            layer.set_weights([kernel])
            scale = np.full_like(bias, np.sqrt(1.0 + BN_EPSILON))
            part.get_layer(_norm(layer)).set_weights([scale, bias, np.zeros_like(bias), np.ones_like(bias)])


def unfold_normalisation(head: keras.Model, features: FloatArray) -> None:
    """Give each batch norm its channel's real mean and variance, without changing what the network computes.

    A folded network trains badly: nothing normalises it. Here mean and variance are measured on `features`, what
    the head reads of N training images, and undone by the layer's scale and offset, so training starts both
    normalised and at the warm start. Valid only right after `warm_start`, while the layers are identities plus bias,
    or silent.
    """
    convolutions = _convolutions(head)
    probe = keras.Model(head.input, [layer.output for layer in convolutions])
    batches = [features[at : at + STATISTICS_BATCH] for at in range(0, len(features), STATISTICS_BATCH)]
    sums = [np.zeros((2, layer.output.shape[-1])) for layer in convolutions]
    for batch in batches:
        for position, output in enumerate(probe.predict_on_batch(batch)):
            flat = np.asarray(output).reshape(-1, output.shape[-1]).astype(np.float64)
            sums[position] += np.stack([flat.mean(axis=0), (flat**2).mean(axis=0)]) * len(batch) / len(features)
    for layer, (mean, square) in zip(convolutions, sums, strict=True):
        norm = head.get_layer(_norm(layer))
        variance = np.maximum(square - mean**2, 0.0)
        scale, bias = norm.get_weights()[:2]
        if not scale.any():
            norm.set_weights([scale, bias, mean, variance])
            continue
        norm.set_weights([np.sqrt(variance + BN_EPSILON), bias + mean, mean, variance])


def fold_normalisation(head: keras.Model, plain: keras.Model) -> None:
    """Give `plain`, the same head built without normalisation, the weights with which it computes the same."""
    for layer in plain.layers:
        weights = head.get_layer(layer.name).get_weights() if layer.weights else []
        if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D)):
            (kernel,) = weights
            scale, offset, mean, variance = head.get_layer(_norm(layer)).get_weights()
            factor = scale / np.sqrt(variance + BN_EPSILON)
            # A depthwise kernel is (kh, kw, C, 1), a full one (kh, kw, C, filters): the scaled axis differs.
            depthwise = isinstance(layer, layers.DepthwiseConv2D)
            weights = [kernel * (factor[:, None] if depthwise else factor), offset - mean * factor]
        if weights:
            layer.set_weights(weights)


def blocks_behind(head: keras.Model, model: LiteModel) -> dict[str, int]:
    """Return how many blocks lie between each variable of a block and the end, by the variable's path.

    The last block has 1, the stem 8; what follows the blocks is not named.
    """
    sizes = [block.repeats * (2 if block.expansion == 1 else 3) for block in VARIANTS[model.backbone].blocks]
    ends = [1 + size for size in accumulate(sizes)]
    behind: dict[str, int] = {}
    for layer in head.layers:
        found = re.fullmatch(r"(?:conv|norm)(\d\d)", layer.name)
        if found and int(found[1]) < ends[-1]:
            block = sum(int(found[1]) >= end for end in (1, *ends))
            behind |= {variable.path: len(ends) + 1 - block for variable in layer.trainable_variables}
    return behind


def _stem(graph: _Graph, image: keras.KerasTensor, variant: Variant) -> keras.KerasTensor:
    scaled = rgb(image, scale=255.0 * variant.scale, offset=-127.0 * variant.scale)
    return _relu6(graph.convolve(scaled, 32, 3, 2))


def _relu6(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.ReLU(6.0)(x)


def _convolutions(model: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D))]


def _index(layer: keras.layers.Layer) -> int:
    return int(layer.name.removeprefix("conv"))


def _norm(convolution: keras.layers.Layer) -> str:
    """Return the name of the batch norm that follows a convolution."""
    return f"norm{_index(convolution):02d}"


def _read_warm_start(path: Path, variant: Variant) -> dict[int, tuple[FloatArray, FloatArray]]:
    """Return kernel and bias by position in the graph."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            named = {name: np.asarray(arrays[name], dtype=np.float32) for name in arrays.files}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is not a warm start: it cannot be read as NPZ") from error
    pattern = re.compile(r"(\d\d)_(?:DEPTHWISE_)?CONV_2D_([wb])")
    found = {(int(match[1]), match[2]): array for name, array in named.items() if (match := pattern.fullmatch(name))}
    if set(found) != {(n, kind) for n in range(variant.convolutions) for kind in "wb"}:
        raise ConfigurationError(
            f"{path} does not hold the {variant.convolutions} kernels and biases of {variant.name}"
        )
    return {n: (found[n, "w"], found[n, "b"]) for n in range(variant.convolutions)}
