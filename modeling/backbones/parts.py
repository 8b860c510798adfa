"""What every network has in common: its two parts, how an image enters, and the linear end of exact Grad-CAM."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
from keras import layers

RESCALE, LAST_MAP, LOGITS = "rescale", "last_map", "logits"

_EXACT = "float32"
"""Both ends stay in single precision under a mixed policy: eight bits are too few for pixels and for logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A network in two parts.

    `trunk`: (N, side, side, 1) images in [0, 1] to the features that all folds share, or None when they share none.
    `head`: those features, or the images, to (N, outputs) float32 logits. Its last layers are `last_map`, `pooled`,
    `dropout` and `logits`.
    """

    trunk: keras.Model | None
    head: keras.Model


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
    pooled = layers.GlobalAveragePooling2D(dtype=_EXACT, name="pooled")(last)
    kept = layers.Dropout(dropout, dtype=_EXACT, name="dropout")(pooled)
    return layers.Dense(outputs, dtype=_EXACT, name=LOGITS)(kept)
