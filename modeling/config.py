"""A training configuration: data under a header that says what the run costs and what it reached."""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dicomnode.bundle.manifest import InputSpec
from dicomnode.domain.errors import ConfigurationError


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BundleSection(_Section):
    """How the exported model is named, and from which spread of the members on a finding counts as undetermined.

    `note` goes into the model card: what a reader must know of this run that no number says.
    """

    name: str = Field(min_length=1, max_length=64)
    version: str = Field(min_length=1, max_length=32)
    undetermined_spread: float = Field(gt=0, le=1)
    note: str = ""


class ModelSection(_Section):
    """EfficientNet-Lite0 with the given number of blocks, of seven, left as the warm start has them.

    Frozen blocks see no gradient and are shared by all folds, so an epoch runs them once for all of them.
    """

    frozen_blocks: int = Field(ge=0, le=6)
    dropout: float = Field(ge=0, lt=1)


class TrainSection(_Section):
    """Optimisation. `learning_rate` is the peak of a cosine after a linear warm-up over `warmup_fraction` of the run.

    `abnormality_weight` multiplies the loss of output 0; the weights are then scaled to a mean of one.
    """

    folds: int = Field(ge=2, le=20)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    learning_rate: float = Field(gt=0)
    warmup_fraction: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    clip_norm: float = Field(gt=0)
    abnormality_weight: float = Field(gt=0)
    evaluate_every: int = Field(ge=1)
    seed: int = Field(ge=0)


class AugmentSection(_Section):
    """Random changes of a training image; each number bounds a uniform draw around no change.

    There is no flip: the heart has a side. `shift` is a fraction of the side; `gamma` bounds the logarithm of the
    exponent; `blur` is the probability of halving the resolution, so that sharpness does not tell the sources apart.
    """

    rotation_degrees: float = Field(ge=0, le=45)
    zoom: float = Field(ge=0, lt=1)
    shift: float = Field(ge=0, lt=1)
    brightness: float = Field(ge=0, lt=1)
    contrast: float = Field(ge=0, lt=1)
    gamma: float = Field(ge=0, lt=2)
    blur: float = Field(ge=0, le=1)


class ConfoundingSection(_Section):
    """What to do about labels that are confounded with the source of the images.

    A source informs of a label when the label is at least `least_source_frequency` times as frequent there as in the
    source richest in it. Outputs with uninformative sources are fitted again without them, by logistic regression
    whose penalty grows as `inverse_ridge` falls.
    """

    least_source_frequency: float = Field(ge=0, lt=1)
    inverse_ridge: float = Field(gt=0)


class GateSection(_Section):
    """The pixel gate: fitted on `images` training images, along the `components` largest axes of their variation.

    `residual_weight` is the weight of the distance from those axes against the mean distance along them. `quantile`
    of upright training images, out of fold, pass as typical. An orientation of at least `certain`
    probability is repaired.
    """

    images: int = Field(ge=20)
    components: int = Field(ge=2)
    residual_weight: float = Field(ge=0)
    quantile: float = Field(gt=0.5, lt=1)
    certain: float = Field(gt=0.5, le=1)


class TrainingConfig(_Section):
    """Everything a run depends on besides the images and the warm start."""

    bundle: BundleSection
    input: InputSpec
    model: ModelSection
    train: TrainSection
    augment: AugmentSection
    confounding: ConfoundingSection
    gate: GateSection


def read_config(path: Path) -> TrainingConfig:
    """Read a training configuration.

    Raises: ConfigurationError, naming the key that is wrong.
    """
    try:
        return TrainingConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{path}: {where}: {first['msg']}") from error
