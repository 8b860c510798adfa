"""Class activation maps of a network, from the same forward pass as its logits."""

from typing import Any

import keras
from keras import ops

from modeling.backbones.parts import LAST_MAP, LOGITS

Tensor = Any
"""A tensor of Keras' backend."""


def logits_and_maps(head: keras.Model, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, outputs) logits and the (N, h, w, outputs) signed maps, which sum over space to the logit less bias.

    With a linear layer on averaged features, the gradient of the logit with respect to F_ijk is w_kc / HW, so this
    map is the exact Grad-CAM before its ReLU. Source: Selvaraju et al., ICCV 2017, section 3.
    """
    both = keras.Model(head.input, [head.get_layer(LAST_MAP).output, head.output])
    features, logits = both(inputs, training=False)
    cells = features.shape[1] * features.shape[2]
    return logits, ops.matmul(features, head.get_layer(LOGITS).kernel / cells)


def ensemble_logits_and_maps(heads: tuple[keras.Model, ...], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, members, outputs) logits and the mean of the members' maps: the exact Grad-CAM of the mean logit."""
    read = [logits_and_maps(head, inputs) for head in heads]
    return ops.stack([logits for logits, _ in read], axis=1), sum(maps for _, maps in read) / len(read)
