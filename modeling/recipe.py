"""Describes a configuration in sentences, for the model card."""

from dicomnode.domain.errors import ConfigurationError
from modeling.config import (
    Adam,
    AdamW,
    ApplicationModel,
    AugmentSection,
    BinaryCrossEntropy,
    ConstantSchedule,
    CosineSchedule,
    FocalLoss,
    LiteModel,
    LossSection,
    ModelSection,
    OptimiserSection,
    PlateauSchedule,
    RampSchedule,
    ScheduleSection,
    Sgd,
    TrainingConfig,
    TrainSection,
    WeightedBinaryCrossEntropy,
)


def recipe_in_words(config: TrainingConfig, *, warm_start: bool) -> str:
    """Return model, loss, optimiser, schedule and augmentation in sentences."""
    sentences = (
        _model(config.model, warm_start=warm_start),
        f"{_loss(config.loss)}; {_optimiser(config.optimiser)}; {_schedule(config.schedule)}.",
        _train(config.train),
        _augmentation(config.augment),
        _choice_of_epoch(config.train),
    )
    return " ".join(sentences)


def _model(model: ModelSection, *, warm_start: bool) -> str:
    start = "random weights"
    if isinstance(model, ApplicationModel):
        learning = (
            "" if model.trainable_fraction == 1 else f", the last {model.trainable_fraction:.0%} of layers learning"
        )
        start = ("ImageNet's weights" if model.weights == "imagenet" else start) + learning
    if isinstance(model, LiteModel) and warm_start:
        frozen = (
            f", the stem and the first {model.frozen_blocks} of 7 blocks left as they were and shared by all members"
        )
        start = f"ImageNet's weights{frozen if model.frozen_blocks else ''}, batch norm measured back into the rest"
    if isinstance(model, LiteModel) and model.stochastic_depth:
        start += f", stochastic depth {model.stochastic_depth:g}"
    dropout = f", dropout {model.dropout:g}" if model.dropout else ""
    if isinstance(model, LiteModel) and model.read_out == "pyramid":
        return (
            f"Backbone {model.backbone} from {start}; features of stride 32, enlarged, and of stride 16 together; for"
            f" each output an average over positions with weights that are learnt{dropout} and one linear layer."
        )
    return f"Backbone {model.backbone} from {start}; global average pooling{dropout} and one linear layer."


def _loss(loss: LossSection) -> str:
    match loss:
        case BinaryCrossEntropy():
            text = "Binary cross-entropy"
        case WeightedBinaryCrossEntropy():
            text = "Binary cross-entropy weighted by class frequency, its shift of the logits undone"
        case FocalLoss():
            text = f"Focal loss (gamma {loss.gamma:g}, alpha {loss.alpha:g})"
        case _:
            raise _undescribed("loss", loss)
    weight = "" if loss.abnormality_weight == 1 else f", weight {loss.abnormality_weight:g} on the first output"
    smoothing = f", label smoothing {loss.label_smoothing:g}" if loss.label_smoothing else ""
    return text + weight + smoothing


def _optimiser(optimiser: OptimiserSection) -> str:
    match optimiser:
        case AdamW():
            text = f"AdamW, weight decay {optimiser.weight_decay:g}"
        case Adam():
            text = "Adam"
        case Sgd():
            text = f"SGD, momentum {optimiser.momentum:g}"
        case _:
            raise _undescribed("optimiser", optimiser)
    clipped = f", gradient norm clipped at {optimiser.clip_norm:g}" if optimiser.clip_norm else ""
    if optimiser.block_rate != 1:
        clipped += f", each block at {optimiser.block_rate:g} of the rate of the block behind it"
    averaged = f", weights averaged over {optimiser.average_steps} steps" if optimiser.average_steps else ""
    return text + clipped + averaged


def _schedule(schedule: ScheduleSection) -> str:
    match schedule:
        case CosineSchedule():
            return (
                f"rate {schedule.rate:g} after a warm-up over {schedule.warmup_fraction:.0%} of the run, then a cosine"
            )
        case RampSchedule():
            return (
                f"rate {schedule.start_rate:g} to {schedule.rate:g} in {schedule.rise_epochs} epochs, held for"
                f" {schedule.hold_epochs}, then times {schedule.decay:g} each epoch"
            )
        case PlateauSchedule():
            return (
                f"rate {schedule.rate:g}, times {schedule.factor:g} when the held-out loss has not fallen for"
                f" {schedule.patience} epochs"
            )
        case ConstantSchedule():
            return f"rate {schedule.rate:g}"
        case _:
            raise _undescribed("schedule", schedule)


def _undescribed(section: str, settings: object) -> ConfigurationError:
    kind = getattr(settings, "kind", type(settings).__name__)
    return ConfigurationError(
        f"{section}.kind: modeling/recipe.py does not describe {kind!r}, which the model card needs; add it there"
    )


def _train(train: TrainSection) -> str:
    kept = f" Each epoch draws {train.keep_no_finding:.0%} of the images without a finding."
    most = f" An epoch draws at most {train.patient_images} images of a patient."
    back = (
        f" The weights before the read-out were then moved {train.towards_start:.0%} of the way back to the pretrained"
        " ones."
    )
    mixed = f" Images are mixed in pairs (mixup {train.mixup:g})."
    return (
        f"At most {train.epochs} epochs, batches of {train.batch_size}, {train.precision}."
        + (kept if train.keep_no_finding < 1 else "")
        + (mixed if train.mixup else "")
        + (most if train.patient_images is not None else "")
        + (back if train.towards_start else "")
    )


def _augmentation(augment: AugmentSection) -> str:
    neutral = AugmentSection()
    changed = [
        f"{name.replace('_', ' ')} {value:g}"
        for name, value in augment
        if isinstance(value, float) and value != getattr(neutral, name)
    ]
    if not changed:
        return "No augmentation."
    flip = "" if augment.flip else " No flip: the heart has a side."
    return f"Augmentation, drawn anew each epoch ({augment.draw}): {', '.join(changed)}.{flip}"


def _choice_of_epoch(train: TrainSection) -> str:
    if train.stop_patience is None:
        return "The last epoch is used; none was selected by its score."
    return (
        f"A fold stops when its held-out loss has not fallen for {train.stop_patience} epochs, and its best epoch is"
        " used: its held-out scores are a little too good for that."
    )
