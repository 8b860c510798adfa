"""Learning rates: those that follow the step are computed in the graph, the plateau's between epochs."""

from collections.abc import Sequence
from typing import TypeAlias

import keras
import numpy as np
from keras import ops

from modeling.config import ConstantSchedule, CosineSchedule, PlateauSchedule, RampSchedule, ScheduleSection


class _Cosine(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    def __init__(self, settings: CosineSchedule, steps: int) -> None:
        self._settings, self._steps = settings, steps

    def __call__(self, step: keras.KerasTensor) -> keras.KerasTensor:
        progress = (ops.cast(step, "float32") + 1.0) / self._steps
        warmup = self._settings.warmup_fraction
        falling = 0.5 * (1.0 + ops.cos(np.pi * ops.clip((progress - warmup) / (1.0 - warmup), 0.0, 1.0)))
        rising = progress / warmup if warmup else falling
        return self._settings.rate * ops.where(progress < warmup, rising, falling)


class _Ramp(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    def __init__(self, settings: RampSchedule, steps_per_epoch: int) -> None:
        self._settings, self._steps_per_epoch = settings, steps_per_epoch

    def __call__(self, step: keras.KerasTensor) -> keras.KerasTensor:
        settings = self._settings
        epoch = ops.floor(ops.cast(step, "float32") / self._steps_per_epoch)
        risen = epoch / settings.rise_epochs if settings.rise_epochs else ops.ones_like(epoch)
        rising = settings.start_rate + (settings.rate - settings.start_rate) * risen
        fallen = ops.power(settings.decay, epoch - settings.rise_epochs - settings.hold_epochs)
        falling = settings.least_rate + (settings.rate - settings.least_rate) * ops.minimum(fallen, 1.0)
        return ops.where(epoch < settings.rise_epochs, rising, falling)


Rate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule


def build_schedule(settings: ScheduleSection, *, steps_per_epoch: int, epochs: int) -> Rate:
    """Return the learning rate that the optimiser takes; of a plateau schedule, its first rate."""
    match settings:
        case CosineSchedule():
            return _Cosine(settings, steps_per_epoch * epochs)
        case RampSchedule():
            return _Ramp(settings, steps_per_epoch)
        case ConstantSchedule() | PlateauSchedule():
            return settings.rate


def plateau_rate(settings: PlateauSchedule, held_out_losses: Sequence[float]) -> float:
    """Return the rate of the next epoch after these: cut whenever the loss has not fallen for `patience` epochs."""
    rate, best, waited = settings.rate, float("inf"), 0
    for loss in held_out_losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited == settings.patience:
            rate, waited = max(rate * settings.factor, settings.least_rate), 0
    return rate


def best_epoch(held_out_losses: Sequence[float]) -> int:
    """Return the position of the least loss."""
    return int(np.argmin(held_out_losses))


def has_stopped(patience: int | None, held_out_losses: Sequence[float]) -> bool:
    """Tell whether the loss has not fallen for `patience` epochs; with None it never stops."""
    return (
        patience is not None
        and bool(held_out_losses)
        and len(held_out_losses) - 1 - best_epoch(held_out_losses) >= patience
    )
