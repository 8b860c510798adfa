"""A training configuration: data under a header that says what the run costs and what it reached.

Choices that need settings of their own are sections with a `kind`; a key that the kind does not know is refused, so
nothing is accepted and ignored.
"""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dicomnode.bundle.manifest import InputSpec
from dicomnode.domain.errors import ConfigurationError


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BundleSection(_Section):
    """How the exported model is named, and from which spread of the members on a finding counts as undetermined.

    `note` goes into the model card: what a reader must know of this run that no number says. `published` is the figure
    that the recipe's authors gave, with its caveat.
    """

    name: str = Field(min_length=1, max_length=64)
    version: str = Field(min_length=1, max_length=32)
    undetermined_spread: float = Field(gt=0, le=1)
    note: str = ""
    published: str = ""


Outputs = Literal["abnormality+findings", "abnormality"]


class _Model(_Section):
    """What every backbone has: global average pooling, dropout and one linear layer follow it."""

    outputs: Outputs = "abnormality+findings"
    dropout: float = Field(default=0.0, ge=0, lt=1)


class LiteModel(_Model):
    """EfficientNet-Lite0 or Lite2 with the given number of blocks, of seven, left as the warm start has them.

    Frozen blocks see no gradient and are shared by all folds, so an epoch runs them once for all of them.
    `stochastic_depth` is the probability that an image passes a residual block by. `read_out`: "pooled" averages the
    last map (stride 32); "pyramid" adds features of stride 16, and each output learns its own weights over positions.
    """

    backbone: Literal["efficientnet-lite0", "efficientnet-lite2"]
    frozen_blocks: int = Field(ge=0, le=6)
    stochastic_depth: float = Field(default=0.0, ge=0, lt=1)
    read_out: Literal["pooled", "pyramid"] = "pooled"

    @model_validator(mode="after")
    def _pyramid_reaches_stride_16(self) -> "LiteModel":
        if self.read_out == "pyramid" and self.frozen_blocks > 5:
            raise ValueError("read_out = 'pyramid' needs frozen_blocks of at most 5: it reads block 5")
        return self


class ApplicationModel(_Model):
    """A network of `keras.applications`, from random weights or those of ImageNet, which Keras fetches.

    The first layers are left as they are so that `trainable_fraction` of the backbone's layers learn.
    """

    backbone: Literal[
        "efficientnet-b0", "efficientnet-b1", "efficientnet-b2", "efficientnet-b3", "efficientnet-b4",
        "efficientnet-b5", "efficientnet-b6", "efficientnet-b7", "efficientnet-v2-b0", "efficientnet-v2-b1",
        "efficientnet-v2-b2", "efficientnet-v2-b3", "efficientnet-v2-s", "efficientnet-v2-m", "efficientnet-v2-l",
        "densenet121", "resnet50v2", "mobilenet",
    ]  # fmt: skip
    weights: Literal["random", "imagenet"]
    trainable_fraction: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _random_weights_learn(self) -> "ApplicationModel":
        if self.weights == "random" and self.trainable_fraction < 1:
            raise ValueError("trainable_fraction below 1 needs weights = 'imagenet': random layers must not stay")
        return self


class SmallModel(_Model):
    """A network built here and trained from random weights: a plain CNN of 369,000 parameters, or ResNet-56v2."""

    backbone: Literal["baseline-cnn", "resnet56v2"]


ModelSection = Annotated[LiteModel | ApplicationModel | SmallModel, Field(discriminator="backbone")]


class _Loss(_Section):
    """`abnormality_weight` multiplies the loss of output 0; the weights are then scaled to a mean of one.

    `label_smoothing` moves each target by half of it towards one half.
    """

    abnormality_weight: float = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class BinaryCrossEntropy(_Loss):
    """The mean over outputs of binary cross-entropy."""

    kind: Literal["bce"]


class WeightedBinaryCrossEntropy(_Loss):
    """Positives weigh as the label's negatives are frequent, negatives as its positives are.

    It moves every logit by log((1 - frequency) / frequency), which is undone when training is over.
    """

    kind: Literal["weighted-bce"]


class FocalLoss(_Loss):
    """Both terms of the focal loss: easy examples weigh (1 - p)^gamma, positives alpha and negatives 1 - alpha.

    Source: Lin et al., ICCV 2017.
    """

    kind: Literal["focal"]
    gamma: float = Field(ge=0)
    alpha: float = Field(gt=0, lt=1)


LossSection = Annotated[BinaryCrossEntropy | WeightedBinaryCrossEntropy | FocalLoss, Field(discriminator="kind")]


class _Optimiser(_Section):
    """`clip_norm`: bound of the gradient's global norm. `average_steps`: steps that the average of weights spans.

    With `average_steps` the evaluated and exported weights are an exponential moving average of the trained ones.
    `block_rate`: the learning rate of a block of an EfficientNet-Lite as a share of that of the block behind it.
    """

    clip_norm: float | None = Field(default=None, gt=0)
    average_steps: int | None = Field(default=None, ge=2)
    block_rate: float = Field(default=1.0, gt=0, le=1)


class Adam(_Optimiser):
    """Adam (Kingma and Ba 2015)."""

    kind: Literal["adam"]


class AdamW(_Optimiser):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), of kernels alone."""

    kind: Literal["adamw"]
    weight_decay: float = Field(ge=0)


class Sgd(_Optimiser):
    """Stochastic gradient descent with Nesterov momentum."""

    kind: Literal["sgd"]
    momentum: float = Field(ge=0, lt=1)


OptimiserSection = Annotated[Adam | AdamW | Sgd, Field(discriminator="kind")]


class ConstantSchedule(_Section):
    """The same rate throughout."""

    kind: Literal["constant"]
    rate: float = Field(gt=0)


class CosineSchedule(_Section):
    """A linear warm-up over `warmup_fraction` of the run to `rate`, then half a cosine to zero."""

    kind: Literal["cosine"]
    rate: float = Field(gt=0)
    warmup_fraction: float = Field(default=0.0, ge=0, lt=1)


class RampSchedule(_Section):
    """The first system's: linear from `start_rate` to `rate`, held, then a factor each epoch towards `least_rate`.

    `rise_epochs` and `hold_epochs` are counted from the first.
    """

    kind: Literal["ramp"]
    start_rate: float = Field(gt=0)
    rate: float = Field(gt=0)
    least_rate: float = Field(gt=0)
    rise_epochs: int = Field(ge=0)
    hold_epochs: int = Field(ge=0)
    decay: float = Field(gt=0, lt=1)


class PlateauSchedule(_Section):
    """`factor` is applied when the held-out loss has not fallen for `patience` epochs."""

    kind: Literal["plateau"]
    rate: float = Field(gt=0)
    factor: float = Field(gt=0, lt=1)
    patience: int = Field(ge=1)
    least_rate: float = Field(default=0.0, ge=0)


ScheduleSection = Annotated[
    ConstantSchedule | CosineSchedule | RampSchedule | PlateauSchedule, Field(discriminator="kind")
]


_CHOICES = frozenset(
    choice
    for section in (
        LiteModel, ApplicationModel, SmallModel, BinaryCrossEntropy, WeightedBinaryCrossEntropy, FocalLoss,
        Adam, AdamW, Sgd, ConstantSchedule, CosineSchedule, RampSchedule, PlateauSchedule,
    )
    for name in ("backbone", "kind")
    if name in section.model_fields
    for choice in get_args(section.model_fields[name].annotation)
)  # fmt: skip


class TrainSection(_Section):
    """How long and how a fold trains.

    `batch_size` counts the images of one step over all devices together. `keep_no_finding` is the share of images
    without a finding that an epoch draws, anew each time. `stop_patience` ends a fold whose held-out loss has not
    fallen for so many epochs and goes back to its best epoch, which makes its held-out scores a little too good.
    `epoch_images` ends an epoch after so many images; the next goes through others, in an order of its own.
    `patient_images` is the most images of one patient that an epoch draws, others each time. `towards_start`
    moves the weights that are judged and served this share of the way back to the pretrained ones, but for the read-out
    (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
    """

    folds: int = Field(ge=2, le=20)
    epochs: int = Field(ge=1)
    epoch_images: int | None = Field(default=None, ge=2)
    batch_size: int = Field(ge=2)
    precision: Literal["float32", "bfloat16"] = "float32"
    keep_no_finding: float = Field(default=1.0, gt=0, le=1)
    patient_images: int | None = Field(default=None, ge=1)
    mixup: float = Field(default=0.0, ge=0)
    stop_patience: int | None = Field(default=None, ge=1)
    evaluate_every: int = Field(default=1, ge=1)
    towards_start: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _draws_one_way(self) -> "TrainSection":
        if self.patient_images is not None and self.keep_no_finding < 1:
            raise ValueError("patient_images and keep_no_finding exclude each other: an epoch's length would vary")
        return self


class AugmentSection(_Section):
    """Random changes of a training image; each number bounds a uniform draw around no change.

    With `draw = "normal"` rotation, shear, zoom and shift are the standard deviations of normal draws instead. `shift`
    is a fraction of the side; `gamma` bounds the logarithm of the exponent; `noise` is the standard deviation of
    noise on a scale of 0 to 1. `flip` is the probability of a mirror image, for ablation only: the heart has a side.
    `blur` is the probability of halving the resolution, so that sharpness does not tell the sources apart. `border`
    says what fills the space that moves into view. `least_resolution` bounds the share of the side that an image is
    reduced to and enlarged from, drawn anew each time. `erase` is the largest side of a rectangle that is blanked, as
    a share of the image's.
    """

    draw: Literal["uniform", "normal"] = "uniform"
    rotation_degrees: float = Field(default=0.0, ge=0, le=45)
    shear_degrees: float = Field(default=0.0, ge=0, le=45)
    zoom: float = Field(default=0.0, ge=0, lt=1)
    shift: float = Field(default=0.0, ge=0, lt=1)
    brightness: float = Field(default=0.0, ge=0, lt=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    gamma: float = Field(default=0.0, ge=0, lt=2)
    noise: float = Field(default=0.0, ge=0, lt=1)
    flip: float = Field(default=0.0, ge=0, le=1)
    blur: float = Field(default=0.0, ge=0, le=1)
    least_resolution: float = Field(default=1.0, gt=0, le=1)
    erase: float = Field(default=0.0, ge=0, lt=1)
    border: Literal["black", "reflect", "edge"] = "black"


class ConfoundingSection(_Section):
    """What to do about labels that are confounded with the source of the images.

    A source is informative of a label when the label is at least `least_source_frequency` times as frequent there as in
    the source richest in it. Outputs with uninformative sources are fitted again without them, by logistic regression
    whose penalty grows as `inverse_ridge` falls.
    """

    least_source_frequency: float = Field(default=0.05, ge=0, lt=1)
    inverse_ridge: float = Field(default=1e-5, gt=0)


class GateSection(_Section):
    """The pixel gate: fitted on `images` training images, along the `components` largest axes of their variation.

    `residual_weight` is the weight of the distance from those axes against the mean distance along them. `quantile`
    of upright training images, out of fold, pass as typical; the `unusual` most distant share of them is what the node
    calls unusual where it passes. An orientation of at least `certain`
    probability is repaired.
    """

    images: int = Field(default=4000, ge=20)
    components: int = Field(default=60, ge=2)
    residual_weight: float = Field(default=0.4, ge=0)
    quantile: float = Field(default=0.9875, gt=0.5, lt=1)
    unusual: float = Field(default=0.05, gt=0, lt=0.5)
    certain: float = Field(default=0.99, gt=0.5, le=1)


class TrackingSection(_Section):
    """Where a run is followed besides its own folder: MLflow by `experiment`, or not at all.

    `uri` is a tracking server's, or empty for a store in the folder `mlruns` beside the run.
    """

    mlflow: bool = False
    uri: str = ""
    experiment: str = Field(default="cxrnode", min_length=1)


class TrainingConfig(_Section):
    """Everything a run depends on besides the images and the warm start."""

    bundle: BundleSection
    input: InputSpec
    model: ModelSection
    loss: LossSection
    optimiser: OptimiserSection
    schedule: ScheduleSection
    train: TrainSection
    augment: AugmentSection = AugmentSection()
    confounding: ConfoundingSection = ConfoundingSection()
    gate: GateSection = GateSection()
    tracking: TrackingSection = TrackingSection()


def read_config(path: Path, changes: Sequence[str] = ()) -> TrainingConfig:
    """Read a training configuration, with settings changed by `section.key=value`; values are TOML or plain words.

    Raises: ConfigurationError, naming the key that is wrong.
    """
    try:
        return TrainingConfig.model_validate(_changed(tomllib.loads(path.read_text(encoding="utf-8")), changes))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigurationError(f"{path}: {'.'.join(_keys(first['loc']))}: {first['msg']}") from error


def _changed(sections: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Return the sections with every change; whether a key exists is judged with the rest of the configuration."""
    for change in changes:
        name, equals, text = change.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot or not section or not key or "." in key:
            raise ConfigurationError(f"--set wants section.key=value, not {change!r}")
        if not isinstance(sections.setdefault(section, {}), dict):
            raise ConfigurationError(f"--set {change}: {section} is no section")
        sections[section] = {**sections[section], key: _value(text.strip())}
    return sections


def _value(text: str) -> Any:
    """Return a TOML value (number, true, string, list), or the text itself where it is none, such as a word."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _keys(location: tuple[int | str, ...]) -> Iterator[str]:
    """Yield the keys of an error's place, without the names of the choices that pydantic puts between them."""
    yield from (str(part) for part in location if part not in _CHOICES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Paths of a run's inputs: images, labels, a warm start, and images of known kind to measure the gate on."""

    images: Path
    labels: Path | None = None
    warm_start: Path | None = None
    gate_images: Path | None = None
