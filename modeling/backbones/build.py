"""From the model section of a configuration to its network, in the parts that training keeps apart."""

from dataclasses import dataclass

import keras

from modeling.backbones import applications, lite0, small
from modeling.config import ApplicationModel, Lite0Model, ModelSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A network in two parts.

    `trunk`: (N, side, side, 1) images in [0, 1] to the features that all folds share, or None when they share none.
    `head`: those features, or the images, to (N, outputs) float32 logits. Its last layers are `last_map`, `pooled`,
    `dropout` and `logits`.
    """

    trunk: keras.Model | None
    head: keras.Model


def build_parts(model: ModelSection, side: int, outputs: int) -> Parts:
    """Build the network under the present precision policy of Keras.

    Raises: ConfigurationError when ImageNet's weights cannot be fetched.
    """
    if isinstance(model, Lite0Model):
        trunk = lite0.build_trunk(side, model.frozen_blocks) if model.frozen_blocks else None
        return Parts(trunk=trunk, head=lite0.build_head(model, side, outputs))
    if isinstance(model, ApplicationModel):
        return Parts(trunk=None, head=applications.build_application(model, side, outputs))
    return Parts(trunk=None, head=small.BUILDERS[model.backbone](side, outputs, model.dropout))
