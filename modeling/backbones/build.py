"""From the model section of a configuration to its network, in the parts that training keeps apart."""

from modeling.backbones import applications, lite, small
from modeling.backbones.parts import Parts
from modeling.config import ApplicationModel, LiteModel, ModelSection

__all__ = ["Parts", "build_parts"]


def build_parts(model: ModelSection, side: int, outputs: int) -> Parts:
    """Build the network under the present precision policy of Keras.

    Raises: ConfigurationError when ImageNet's weights cannot be fetched.
    """
    if isinstance(model, LiteModel):
        trunk = lite.build_trunk(model, side) if model.frozen_blocks else None
        gate_trunk = lite.build_gate_trunk(model, side)
        return Parts(trunk=trunk, head=lite.build_head(model, side, outputs), gate_trunk=gate_trunk)
    if isinstance(model, ApplicationModel):
        return Parts(trunk=None, head=applications.build_application(model, side, outputs))
    return Parts(trunk=None, head=small.BUILDERS[model.backbone](side, outputs, model.dropout))
