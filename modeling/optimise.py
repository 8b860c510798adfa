"""Optimisers, and their state together with a model's as arrays that can be stored."""

from collections.abc import Mapping

import keras
import numpy as np
import numpy.typing as npt

from modeling.config import Adam, AdamW, OptimiserSection, Sgd
from modeling.schedules import Rate

State = list[npt.NDArray[np.generic]]


class _Extended:
    """Leaves the average of weights where it is when `fit` ends, which it does after every epoch.

    `shares`: each trainable variable's share of the learning rate, in order, or nothing where all have the whole.
    """

    shares: tuple[float, ...] = ()

    def update_step(
        self, gradient: keras.KerasTensor, variable: keras.Variable, learning_rate: keras.KerasTensor
    ) -> None:
        """Change a variable at its own share of the rate."""
        if self.shares:
            # A backend's own variable, which knows no path, may be what is given here.
            learning_rate = learning_rate * self.shares[self._get_variable_index(variable)]  # type: ignore[attr-defined]
        super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        """Keep the trained weights: the average is read out for evaluation alone."""

    def use_average(self, var_list: list[keras.Variable]) -> None:
        """Put the average of weights, if one is kept, in the place of the trained ones."""
        super().finalize_variable_values(var_list)  # type: ignore[misc]


class _Adam(_Extended, keras.optimizers.Adam):  # type: ignore[misc]
    pass


class _AdamW(_Extended, keras.optimizers.AdamW):  # type: ignore[misc]
    pass


class _Sgd(_Extended, keras.optimizers.SGD):  # type: ignore[misc]
    pass


Optimiser = _Adam | _AdamW | _Sgd


def build_optimiser(
    settings: OptimiserSection, rate: Rate, head: keras.Model, shares: Mapping[str, float] | None = None
) -> Optimiser:
    """Return the optimiser of the configuration, built for the head's trainable variables.

    `shares`: by path, the share of the rate at which a variable learns, where that is not the whole.
    """
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
    if shares:
        optimiser.shares = tuple(shares.get(variable.path, 1.0) for variable in head.trainable_variables)
    optimiser.build(head.trainable_variables)
    return optimiser


def read_state(head: keras.Model, optimiser: Optimiser) -> State:
    """Return copies of the head's variables, then the optimiser's."""
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in (*head.variables, *optimiser.variables)]


def write_state(head: keras.Model, optimiser: Optimiser, state: State) -> None:
    """Put a former state back."""
    for variable, value in zip((*head.variables, *optimiser.variables), state, strict=True):
        variable.assign(value)


def write_weights(head: keras.Model, weights: State) -> None:
    """Put weights into the model, whatever precision they were kept in."""
    for variable, value in zip(head.variables, weights, strict=True):
        variable.assign(value.astype(variable.dtype))
