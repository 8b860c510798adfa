"""How far a run is, how fast it goes, and how long it will take: a bar on a terminal, lines in a log elsewhere."""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import keras
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)

LOSS_EVERY_STEPS = 50
_LINE_EVERY_S = 60.0
_REMEMBERED = 20


class Pace:
    """The recent seconds a step takes, and the seconds between the last step of an epoch and the first of the next."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._steps: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self._between: deque[float] = deque(maxlen=_REMEMBERED)
        self._at: tuple[tuple[int, int], int, float] | None = None

    def passed(self, part: tuple[int, int], step: int) -> None:
        """Record that this step of a part of the run, one fold's epoch, is done now."""
        now, former = self._clock(), self._at
        self._at = (part, step, now)
        if former is None:
            return
        former_part, former_step, then = former
        if former_part == part:
            self._steps.append((step - former_step, now - then))
        elif (step_s := self.step_s) is not None:
            self._between.append(max(0.0, now - then - step * step_s))

    @property
    def step_s(self) -> float | None:
        """Seconds a step takes; None until two steps of the same epoch were seen."""
        steps = sum(number for number, _ in self._steps)
        return sum(seconds for _, seconds in self._steps) / steps if steps else None

    @property
    def between_s(self) -> float:
        """Seconds from one epoch's last step to the next one's first: evaluation, checkpoint, frozen layers."""
        return sum(self._between) / len(self._between) if self._between else 0.0


class Progress:
    """Shows one run; a context manager. `finished`: epochs done of each fold that a resumed run does not begin with.

    `clock` returns seconds, as `time.monotonic` does. On a console that is no terminal a line is logged each minute.
    Safe to call from several threads: Keras may call its callbacks from a pool.
    """

    def __init__(
        self,
        *,
        folds: int,
        epochs: int,
        batch_size: int,
        clock: Callable[[], float],
        console: Console,
        finished: Mapping[int, int] | None = None,
    ) -> None:
        self._folds, self._epochs, self._batch_size = folds, epochs, batch_size
        self._clock = clock
        self._done = {fold: (finished or {}).get(fold, 0) for fold in range(folds)}
        self._pace = Pace(clock)
        self._latest: tuple[int, int, int] | None = None
        self._loss: float | None = None
        self._told = -math.inf
        self._lock = threading.Lock()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Bar(
            *columns, console=console, transient=True, refresh_per_second=2, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("starting", total=1.0, left="")
        self._terminal = console.is_terminal

    def __enter__(self) -> Self:
        """Begin to show."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._bar.stop()

    def step(self, *, fold: int, epoch: int, step: int, steps: int, loss: float | None = None) -> None:
        """Report that `step` of `steps` of an epoch, counted from 1, is done; `loss`: the mean so far, if known."""
        with self._lock:
            # A pool of threads may bring an earlier step after a later one.
            if self._latest is not None and self._latest[:2] == (fold, epoch) and step <= self._latest[2]:
                return
            self._latest = (fold, epoch, step)
            self._loss = loss if loss is not None else self._loss
            self._pace.passed((fold, epoch), step)
            self._done[fold] = epoch if step == steps else epoch - 1
            begun = step if step < steps else 0
            self._show(self._line(fold, epoch, step, steps), self._left_s(begun, steps), begun / steps)

    def stopped(self, fold: int) -> None:
        """Report that the fold ends early, so that its other epochs no longer count as work to do."""
        with self._lock:
            self._done[fold] = self._epochs

    def callback(self, *, fold: int, epoch: int) -> keras.callbacks.Callback:
        """Return the Keras callback of one epoch, which calls `step`."""
        return StepCallback(self, fold=fold, epoch=epoch)

    @property
    def images_per_s(self) -> float | None:
        """Images trained on per second, lately, without the time between epochs."""
        return self._batch_size / self._pace.step_s if self._pace.step_s else None

    def _left_s(self, begun: int, steps: int) -> float | None:
        step_s = self._pace.step_s
        if step_s is None:
            return None
        epochs = sum(self._epochs - done for done in self._done.values())
        return (epochs * steps - begun) * step_s + epochs * self._pace.between_s

    def _line(self, fold: int, epoch: int, step: int, steps: int) -> str:
        parts = [f"fold {fold} ({fold + 1}/{self._folds}) epoch {epoch}/{self._epochs} step {step}/{steps}"]
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4f}")
        if (rate := self.images_per_s) is not None:
            parts.append(f"{rate:.0f} images/s")
        return ", ".join(parts)

    def _show(self, line: str, left_s: float | None, begun: float) -> None:
        left = "" if left_s is None else f"{duration(left_s)} left"
        share = (sum(self._done.values()) + begun) / (self._folds * self._epochs)
        self._bar.update(self._task, description=line, completed=share, left=left)
        now = self._clock()
        if not self._terminal and now - self._told >= _LINE_EVERY_S:
            self._told = now
            log.info("%s", f"{line}, about {left}" if left else line)


def duration(seconds: float) -> str:
    """Return a duration in minutes, hours or days, rounded as an estimate should be."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


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
