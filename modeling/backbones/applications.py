"""The networks of `keras.applications`, with one input scaling each, whatever weights they start from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from types import TracebackType
from typing import Any, Self

import keras
from keras import layers

from dicomnode.domain.errors import ConfigurationError
from modeling.backbones.parts import LAST_MAP, RESCALE, image_input, linear_end, rgb
from modeling.config import ApplicationModel

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of channels in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scaling:
    """What the network's weights for ImageNet expect of a channel in [0, 1]: scale · value + offset."""

    scale: float | tuple[float, ...]
    offset: float | tuple[float, ...]


_STANDARDISED = _Scaling(
    scale=tuple(1 / deviation for deviation in DEVIATION),
    offset=tuple(-mean / deviation for mean, deviation in zip(MEAN, DEVIATION, strict=True)),
)
_SYMMETRIC = _Scaling(scale=2.0, offset=-1.0)
_SYMMETRIC_128 = _Scaling(scale=255.0 / 128.0, offset=-1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Application:
    """`options` are the constructor's besides those that all take."""

    constructor: Callable[..., keras.Model]
    scaling: _Scaling
    options: dict[str, Any] = field(default_factory=dict)


def _efficient(constructor: Callable[..., keras.Model]) -> _Application:
    return _Application(constructor=constructor, scaling=_STANDARDISED)


def _efficient_v2(constructor: Callable[..., keras.Model], scaling: _Scaling) -> _Application:
    return _Application(constructor=constructor, scaling=scaling, options={"include_preprocessing": False})


APPLICATIONS = {
    "efficientnet-b0": _efficient(keras.applications.EfficientNetB0),
    "efficientnet-b1": _efficient(keras.applications.EfficientNetB1),
    "efficientnet-b2": _efficient(keras.applications.EfficientNetB2),
    "efficientnet-b3": _efficient(keras.applications.EfficientNetB3),
    "efficientnet-b4": _efficient(keras.applications.EfficientNetB4),
    "efficientnet-b5": _efficient(keras.applications.EfficientNetB5),
    "efficientnet-b6": _efficient(keras.applications.EfficientNetB6),
    "efficientnet-b7": _efficient(keras.applications.EfficientNetB7),
    "efficientnet-v2-b0": _efficient_v2(keras.applications.EfficientNetV2B0, _STANDARDISED),
    "efficientnet-v2-b1": _efficient_v2(keras.applications.EfficientNetV2B1, _STANDARDISED),
    "efficientnet-v2-b2": _efficient_v2(keras.applications.EfficientNetV2B2, _STANDARDISED),
    "efficientnet-v2-b3": _efficient_v2(keras.applications.EfficientNetV2B3, _STANDARDISED),
    "efficientnet-v2-s": _efficient_v2(keras.applications.EfficientNetV2S, _SYMMETRIC_128),
    "efficientnet-v2-m": _efficient_v2(keras.applications.EfficientNetV2M, _SYMMETRIC_128),
    "efficientnet-v2-l": _efficient_v2(keras.applications.EfficientNetV2L, _SYMMETRIC_128),
    "densenet121": _Application(constructor=keras.applications.DenseNet121, scaling=_STANDARDISED),
    "resnet50v2": _Application(constructor=keras.applications.ResNet50V2, scaling=_SYMMETRIC),
    "mobilenet": _Application(constructor=keras.applications.MobileNet, scaling=_SYMMETRIC),
}


def build_application(model: ApplicationModel, side: int, outputs: int) -> keras.Model:
    """Return the network as a head over images, its first layers frozen as the configuration says.

    A frozen batch norm keeps its statistics and uses them also in training.

    Raises: ConfigurationError when ImageNet's weights cannot be fetched.
    """
    known = APPLICATIONS[model.backbone]
    image = image_input(side)
    scaled = rgb(image, scale=known.scaling.scale, offset=known.scaling.offset)
    weights = "imagenet" if model.weights == "imagenet" else None
    with _KerasDownload(model.backbone):
        stock = known.constructor(
            include_top=False, weights=weights, input_tensor=scaled, input_shape=(side, side, 3), **known.options
        )
    head = _without_stock_scaling(keras.Model(image, linear_end(stock.output, outputs, model.dropout), name="head"))
    _freeze(head, model.trainable_fraction)
    return head


def _freeze(head: keras.Model, trainable_fraction: float) -> None:
    """Let only the last of the layers learn that lie between the input scaling and the last map."""
    names = [layer.name for layer in head.layers]
    backbone = head.layers[names.index(RESCALE) + 1 : names.index(LAST_MAP)]
    for layer in backbone[: round(len(backbone) * (1 - trainable_fraction))]:
        layer.trainable = False


def _scales(layer: layers.Layer) -> bool:
    """Return whether the layer is the stock network's own input scaling."""
    return isinstance(layer, (layers.Rescaling, layers.Normalization)) and layer.name != RESCALE


def _without_stock_scaling(model: keras.Model) -> keras.Model:
    """Return the model without its stock input scaling, which depends on the weights and cannot be exported."""
    if not any(_scales(layer) for layer in model.layers):
        return model

    def call(layer: layers.Layer, *args: Any, **kwargs: Any) -> Any:
        return args[0] if _scales(layer) else layer(*args, **kwargs)

    cut = keras.models.clone_model(model, call_function=call)
    for layer in cut.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    return cut


class _KerasDownload:
    """Turns a failed download into a ConfigurationError.

    Keras raises a bare `Exception` from the network's error, so the cause is what tells it from any other.
    """

    def __init__(self, backbone: str) -> None:
        self._backbone = backbone

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for cause in (error, error and error.__context__):
            if isinstance(cause, (OSError, HTTPException)):
                raise ConfigurationError(
                    f"the ImageNet weights of {self._backbone} cannot be fetched ({cause}); "
                    'place the file in ~/.keras/models or train with model.weights = "random"'
                ) from error
