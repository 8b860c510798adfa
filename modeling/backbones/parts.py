"""What every network has in common: its two parts, how an image enters, and the linear end of exact Grad-CAM."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers, ops

RESCALE, LAST_MAP, POOLED, LOGITS = "rescale", "last_map", "pooled", "logits"

_EXACT = "float32"
"""Both ends stay in single precision under a mixed policy: eight bits are too few for pixels and for logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A network in two parts.

    `trunk`: (N, side, side, 1) images in [0, 1] to the features that all folds share, or None when they share none.
    `head`: those features, or the images, to (N, outputs) float32 logits. Its last layers are `last_map`, `pooled`,
    `dropout` and `logits`; `pooled` is (N, features), or (N, features, outputs) of a read-out by position.
    `gate_trunk`: from the trunk's features to maps for the pixel gate, or None where it reads the features themselves.
    """

    trunk: keras.Model | None
    head: keras.Model
    gate_trunk: keras.Model | None = None


class Depthwise(layers.DepthwiseConv2D):  # type: ignore[misc]
    """A depthwise convolution that XLA computes fast: on JAX as a sum of shifted images, which it fuses into one loop.

    XLA's own convolution by groups has a gradient that is many times slower than the sum's. Padding "same", no
    dilation, one filter a channel.
    """

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Return (N, h / stride, w / stride, C) of (N, h, w, C)."""
        if keras.backend.backend() != "jax":
            return super().call(inputs)
        (size, _), (stride, _) = self.kernel_size, self.strides
        shape = [-(-side // stride) for side in inputs.shape[1:3]]
        missing = [max(0, (out - 1) * stride + size - side) for out, side in zip(shape, inputs.shape[1:3], strict=True)]
        padding = [(0, 0), *((gap // 2, gap - gap // 2) for gap in missing), (0, 0)]
        padded, kernel = ops.pad(inputs, padding), ops.cast(self.kernel, inputs.dtype)
        rows, columns = ((out - 1) * stride + 1 for out in shape)
        total: Any = 0.0
        for down in range(size):
            for across in range(size):
                moved = padded[:, down : down + rows : stride, across : across + columns : stride]
                total = total + moved * kernel[down, across, :, 0]
        return total + ops.cast(self.bias, inputs.dtype) if self.use_bias else total


class PositionPooling(layers.Layer):  # type: ignore[misc]
    """An average over positions for each output, with weights of its own that are learnt: (N, h, w, F) to (N, F, C).

    The weights of an output are positive and sum to one; they begin equal. `SHARPNESS` lets them move as fast as
    a rate that suits the other weights allows.
    """

    SHARPNESS = 3.0

    def __init__(self, outputs: int, **options: Any) -> None:
        super().__init__(**options)
        self.outputs = outputs

    def build(self, shape: tuple[int, ...]) -> None:
        """Create the (positions, outputs) logarithms of the weights."""
        self.place = self.add_weight(shape=(shape[1] * shape[2], self.outputs), initializer="zeros", name="place_bias")

    def shares(self) -> keras.KerasTensor:
        """Return the (positions, outputs) weights."""
        return ops.softmax(self.SHARPNESS * self.place, axis=0)

    def call(self, maps: keras.KerasTensor) -> keras.KerasTensor:
        """Return each output's average of the features."""
        rows = ops.reshape(maps, (-1, maps.shape[1] * maps.shape[2], maps.shape[3]))
        return ops.matmul(ops.transpose(rows, (0, 2, 1)), self.shares())

    def get_config(self) -> dict[str, Any]:
        """Return what makes the layer again."""
        return {**super().get_config(), "outputs": self.outputs}


class OutputRows(layers.Layer):  # type: ignore[misc]
    """A linear layer whose outputs each read features of their own: (N, F, C) to (N, C). Weights as of `Dense`."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Create the (F, C) kernel and the (C,) bias."""
        self.kernel = self.add_weight(shape=shape[1:], initializer="zeros", name="kernel")
        self.bias = self.add_weight(shape=shape[2:], initializer="zeros", name="bias")

    def call(self, pooled: keras.KerasTensor) -> keras.KerasTensor:
        """Return the logits."""
        return ops.sum(pooled * self.kernel, axis=1) + self.bias


def image_input(side: int) -> keras.KerasTensor:
    """Return the input of every network: (N, side, side, 1) in [0, 1]."""
    return keras.Input((side, side, 1), name="image")


def grey(image: keras.KerasTensor, *, scale: float, offset: float) -> keras.KerasTensor:
    """Return the image rescaled: (N, side, side, 1)."""
    return layers.Rescaling(scale, offset, dtype=_EXACT, name=RESCALE)(image)


def rgb(
    image: keras.KerasTensor, *, scale: float | Sequence[float], offset: float | Sequence[float]
) -> keras.KerasTensor:
    """Return the image as three channels, each rescaled as a network trained on photographs expects it."""
    same = layers.Concatenate(dtype=_EXACT, name="rgb")([image, image, image])
    return layers.Rescaling(scale, offset, dtype=_EXACT, name=RESCALE)(same)


def linear_end(x: keras.KerasTensor, outputs: int, dropout: float) -> keras.KerasTensor:
    """Return (N, outputs) float32 logits of the last map: its average over space, dropout, one linear layer."""
    last = layers.Identity(dtype=_EXACT, name=LAST_MAP)(x)
    pooled = layers.GlobalAveragePooling2D(dtype=_EXACT, name=POOLED)(last)
    kept = layers.Dropout(dropout, dtype=_EXACT, name="dropout")(pooled)
    return layers.Dense(outputs, dtype=_EXACT, name=LOGITS)(kept)


def pyramid_end(x: keras.KerasTensor, outputs: int, dropout: float) -> keras.KerasTensor:
    """Return (N, outputs) float32 logits, each linear in the last map, with weights over positions of its own."""
    last = layers.Identity(dtype=_EXACT, name=LAST_MAP)(x)
    pooled = PositionPooling(outputs, dtype=_EXACT, name=POOLED)(last)
    kept = layers.Dropout(dropout, noise_shape=(None, pooled.shape[1], 1), dtype=_EXACT, name="dropout")(pooled)
    return OutputRows(dtype=_EXACT, name=LOGITS)(kept)
