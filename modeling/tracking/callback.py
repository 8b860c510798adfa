"""Keras tells how far an epoch is."""

from typing import TYPE_CHECKING, Any

import keras

from modeling.tracking.progress import LOSS_EVERY_STEPS

if TYPE_CHECKING:
    from modeling.tracking.progress import Progress


class StepCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Passes every 50th step of one epoch on.

    Keras turns the logs of each batch into numbers, which waits for the device. `async_safe` lets it do so in a
    thread of its own, where the backend allows it, so that the next steps are already on their way.
    """

    async_safe = True

    def __init__(self, progress: "Progress", *, fold: int, epoch: int) -> None:
        super().__init__()
        self._progress, self._fold, self._epoch = progress, fold, epoch
        self._passed_on = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Pass on the first step, when the graph is compiled, each 50th, and the last."""
        step, steps = batch + 1, self.params["steps"]
        due = step == steps or not self._passed_on or step - self._passed_on >= LOSS_EVERY_STEPS
        if due:
            self._passed_on = step
            loss = (logs or {}).get("loss")
            self._progress.step(fold=self._fold, epoch=self._epoch, step=step, steps=steps, loss=loss)
