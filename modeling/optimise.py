"""Optimisers, and their state together with a model's as arrays that can be stored."""

import keras
import numpy as np
import numpy.typing as npt

from modeling.config import Adam, AdamW, OptimiserSection, Sgd
from modeling.schedules import Rate

State = list[npt.NDArray[np.generic]]


class _AveragesApart:
    """Leaves the average of weights where it is when `fit` ends, which it does after every epoch."""

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        """Keep the trained weights: the average is read out for evaluation alone."""

    def use_average(self, var_list: list[keras.Variable]) -> None:
        """Put the average of weights, if one is kept, in the place of the trained ones."""
        super().finalize_variable_values(var_list)  # type: ignore[misc]


class _Adam(_AveragesApart, keras.optimizers.Adam):  # type: ignore[misc]
    pass


class _AdamW(_AveragesApart, keras.optimizers.AdamW):  # type: ignore[misc]
    pass


class _Sgd(_AveragesApart, keras.optimizers.SGD):  # type: ignore[misc]
    pass


Optimiser = _Adam | _AdamW | _Sgd


def build_optimiser(settings: OptimiserSection, rate: Rate, head: keras.Model) -> Optimiser:
    """Return the optimiser of the configuration, built for the head's trainable variables."""
    shared = {"name": settings.kind, "learning_rate": rate, "global_clipnorm": settings.clip_norm}
    if settings.average_steps:
        shared |= {"use_ema": True, "ema_momentum": 1 - 1 / settings.average_steps}
    optimiser: Optimiser
    match settings:
        case Adam():
            optimiser = _Adam(**shared)
        case AdamW():
            optimiser = _AdamW(weight_decay=settings.weight_decay, **shared)
            optimiser.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
        case Sgd():
            optimiser = _Sgd(momentum=settings.momentum, nesterov=settings.momentum > 0, **shared)
    optimiser.build(head.trainable_variables)
    return optimiser


def read_state(head: keras.Model, optimiser: Optimiser) -> State:
    """Return copies of the head's variables, then the optimiser's."""
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in (*head.variables, *optimiser.variables)]


def write_state(head: keras.Model, optimiser: Optimiser, state: State) -> None:
    """Put a former state back."""
    for variable, value in zip((*head.variables, *optimiser.variables), state, strict=True):
        variable.assign(value)
