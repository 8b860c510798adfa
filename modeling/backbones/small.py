"""Networks for grey images, trained from random weights: a plain CNN, and ResNet-56v2."""

from collections.abc import Callable

import keras
from keras import layers

from modeling.backbones.parts import grey, image_input, linear_end

CNN_FILTERS = (32, 64, 96, 128, 160)
RESNET_UNITS = 6
"""Units in each of ResNet's three stages; with three convolutions each and two at the ends, 9 · 6 + 2 = 56."""
STAGES = ((64, 16), (128, 64), (256, 128))
"""Filters of a stage's output, and of its narrow 3 × 3 convolutions."""


def build_cnn(side: int, outputs: int, dropout: float) -> keras.Model:
    """Return the baseline study's CNN from scratch: five convolutions with 369,408 parameters, pooled between.

    The study's dense layers are left out: a hidden layer behind the last map would make its Grad-CAM inexact.
    """
    image = image_input(side)
    x = grey(image, scale=2.0, offset=-1.0)
    for index, filters in enumerate(CNN_FILTERS):
        x = layers.MaxPooling2D(2, padding="same")(x) if index else x
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer="he_normal")(x)
    return keras.Model(image, linear_end(x, outputs, dropout), name="head")


def build_resnet(side: int, outputs: int, dropout: float, units: int = RESNET_UNITS) -> keras.Model:
    """Return ResNet-56v2 for grey images: bottlenecks with batch norm and ReLU before each convolution.

    It follows Keras' CIFAR-10 example, whose weight decay is here the optimiser's to choose.
    Source: He et al., "Identity mappings in deep residual networks", ECCV 2016.
    """
    image = image_input(side)
    x = _activated(_convolved(grey(image, scale=2.0, offset=-1.0), 16, 3))
    for stage, (filters, narrow) in enumerate(STAGES):
        for unit in range(units):
            stride = 2 if stage and not unit else 1
            # The stem has already activated what the very first unit reads.
            y = x if not stage and not unit else _activated(x)
            y = _activated(_convolved(y, narrow, 1, stride))
            y = _convolved(_activated(_convolved(y, narrow, 3)), filters, 1)
            x = layers.Add()([x if unit else _convolved(x, filters, 1, stride), y])
    return keras.Model(image, linear_end(_activated(x), outputs, dropout), name="head")


BUILDERS: dict[str, Callable[[int, int, float], keras.Model]] = {"baseline-cnn": build_cnn, "resnet56v2": build_resnet}
"""Side, outputs and dropout to a head over images."""


def _convolved(x: keras.KerasTensor, filters: int, kernel: int, stride: int = 1) -> keras.KerasTensor:
    return layers.Conv2D(filters, kernel, strides=stride, padding="same", kernel_initializer="he_normal")(x)


def _activated(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.ReLU()(layers.BatchNormalization()(x))
