"""Class activation maps of a network, from the same forward pass as its logits."""

from typing import Any

import keras
from keras import ops

from modeling.backbones.parts import LAST_MAP, LOGITS, POOLED, PositionPooling

Tensor = Any
"""A tensor of Keras' backend."""


def logits_and_maps(head: keras.Model, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, outputs) logits and the (N, h, w, outputs) signed maps, which sum over space to the logit less bias.

    With a linear layer on averaged features, the gradient of the logit with respect to F_ijk is w_kc / HW, so this
    map is the exact Grad-CAM before its ReLU. Source: Selvaraju et al., ICCV 2017, section 3. Where each output has
    weights over positions of its own, a_ijc, they take the place of 1 / HW: the contribution of a position to the
    logit is a_ijc Σ_k w_kc F_ijk.
    """
    both = keras.Model(head.input, [head.get_layer(LAST_MAP).output, head.output])
    features, logits = both(inputs, training=False)
    height, width = features.shape[1:3]
    kernel, pooling = head.get_layer(LOGITS).kernel, head.get_layer(POOLED)
    if not isinstance(pooling, PositionPooling):
        return logits, ops.matmul(features, kernel / (height * width))
    return logits, ops.matmul(features, kernel) * ops.reshape(pooling.shares(), (height, width, -1))


def ensemble_logits_and_maps(heads: tuple[keras.Model, ...], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, members, outputs) logits and the mean of the members' maps: the exact Grad-CAM of the mean logit."""
    read = [logits_and_maps(head, inputs) for head in heads]
    return ops.stack([logits for logits, _ in read], axis=1), sum(maps for _, maps in read) / len(read)
