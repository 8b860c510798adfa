"""The fold loop: every fold advances one epoch at a time, and a killed run goes on where it stopped."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, Self

import keras
import numpy as np

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from modeling.augment import augmented_input
from modeling.config import PlateauSchedule
from modeling.devices import PREDICTED_AT_ONCE
from modeling.feeding import EpochBatches, Rows, Share, ahead
from modeling.losses import cross_entropy, targets
from modeling.metrics import label_aucs, mean_auc
from modeling.network import (
    Network,
    epoch_rows,
    fold_frequency,
    held_out_logits,
    judge_present_weights,
    start_fold,
    steps_per_epoch,
)
from modeling.optimise import read_state, write_state
from modeling.run import Run, read_checkpoint, write_checkpoint
from modeling.schedules import best_epoch, has_stopped, plateau_rate
from modeling.tracking.history import EpochRecord

ReadInputs = Callable[[Rows], FloatArray]


class Watch(Protocol):
    """Who follows a run: told of every epoch that begins and of all finished ones."""

    def callback(self, *, fold: int, epoch: int) -> keras.callbacks.Callback:
        """Return what follows the steps of one epoch, counted from 1."""
        ...

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        """Take note of all finished epochs of all folds, in order."""
        ...

    def stopped(self, fold: int) -> None:
        """Take note that the fold ended before its last epoch."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Epoch:
    """One epoch of one fold. `number` counts from 0; `order`: the rows it trains on."""

    fold: int
    number: int
    order: Rows
    read_inputs: ReadInputs


def train_folds(run: Run, network: Network, watch: Watch, *, folds: Sequence[int] | None = None) -> None:
    """Train all folds, or the given ones, up to the last epoch, resuming from their checkpoints.

    Epochs go outside and folds inside: a frozen trunk then runs once per epoch over one set of augmented images, and a
    run cut short leaves all folds at the same epoch. On an accelerator the trunk's features of the next epoch are made
    while the folds train.

    Raises: ConfigurationError when there is too little to train on, or the loss is no longer finite.
    """
    train = run.config.train
    chosen = range(train.folds) if folds is None else folds
    if not steps_per_epoch(run):
        raise ConfigurationError(f"a fold has fewer training images than a batch of {train.batch_size}")
    _meet(run, network)
    with ThreadPoolExecutor(1) as pool:
        coming: _Coming | None = None
        for number in range(train.epochs):
            pending = [fold for fold in chosen if not _finished(run, fold, number)]
            if not pending:
                continue
            present = coming if coming and coming.number == number else _Coming.of(run, network, number, pending)
            if number + 1 < train.epochs and network.can_look_ahead:
                coming = _Coming.of(run, network, number + 1, pending, pool)
            for fold in pending:
                epoch = _Epoch(fold=fold, number=number, order=present.orders[fold], read_inputs=present.inputs())
                _train_epoch(run, network, epoch, watch)
                watch.epochs(all_records(run))
                if _finished(run, fold, number + 1):
                    watch.stopped(fold)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Coming:
    """The inputs of an epoch of all folds that have not ended, which may still be in the making."""

    number: int
    orders: dict[int, Rows]
    inputs: Callable[[], ReadInputs]

    @classmethod
    def of(
        cls, run: Run, network: Network, number: int, folds: Sequence[int], pool: ThreadPoolExecutor | None = None
    ) -> Self:
        """Make the inputs now, or begin to make them in the pool, while the folds train on others."""
        orders = {fold: epoch_rows(run, fold, number) for fold in folds}
        rows = np.unique(np.concatenate(list(orders.values())))
        if pool is not None:
            return cls(
                number=number, orders=orders, inputs=pool.submit(epoch_inputs, run, network, number, rows=rows).result
            )
        made = epoch_inputs(run, network, number, rows=rows)
        return cls(number=number, orders=orders, inputs=lambda: made)


def is_finished(run: Run) -> bool:
    """Tell whether every fold has trained to its end."""
    return all(_finished(run, fold, run.config.train.epochs - 1) for fold in range(run.config.train.folds))


def all_records(run: Run) -> list[EpochRecord]:
    """Return the finished epochs of all folds, by epoch and fold."""
    records = [record for fold in range(run.config.train.folds) for record in run.records(fold)]
    return sorted(records, key=lambda record: (record.epoch, record.fold))


def _finished(run: Run, fold: int, number: int) -> bool:
    records = run.records(fold)
    return len(records) > number or has_stopped(run.config.train.stop_patience, _held_out_losses(records))


def _train_epoch(run: Run, network: Network, epoch: _Epoch, watch: Watch) -> None:
    train, fold, began = run.config.train, epoch.fold, time.monotonic()
    records = _restore(run, network, epoch)
    steps, frequency = steps_per_epoch(run), fold_frequency(run, fold)
    batches = EpochBatches(
        epoch.order,
        steps=steps,
        batch_size=train.batch_size,
        read_inputs=epoch.read_inputs,
        labels=run.labels,
        make_targets=lambda labels: targets(labels, frequency, run.config.loss),
        mixup=train.mixup,
        seed=(train.seed, epoch.number, fold),
        share=Share(index=network.spread.process_index, count=network.spread.process_count),
    )
    follower = watch.callback(fold=fold, epoch=epoch.number + 1)
    fitted = network.head.fit(batches, shuffle=False, verbose=0, callbacks=[follower])
    batches.release()
    loss = float(fitted.history["loss"][0])
    if not math.isfinite(loss):
        raise ConfigurationError(f"fold {fold}: the loss of epoch {epoch.number + 1} is {loss}; lower schedule.rate")
    state, seconds = read_state(network.head, network.optimiser), time.monotonic() - began
    record = EpochRecord(
        fold=fold,
        epoch=epoch.number + 1,
        loss=loss,
        rate=_present_rate(network),
        images_per_s=steps * train.batch_size / seconds,
        seconds=seconds,
        finished_at=datetime.now(tz=UTC).isoformat(timespec="seconds"),
        **_judge(run, network, epoch),
    )
    records = (*records, record)
    if network.spread.is_first:
        if train.stop_patience is not None and best_epoch(_held_out_losses(records)) == epoch.number:
            write_checkpoint(run.checkpoint(fold, best=True), records, state)
        write_checkpoint(run.checkpoint(fold), records, state)
    _meet(run, network)


def _meet(run: Run, network: Network) -> None:
    """Wait for the other hosts, and make sure that they see what the first has written: all decide by it what is next.

    Raises: ConfigurationError.
    """
    network.spread.meet()
    if not network.spread.agree(lambda: len(all_records(run))):
        raise ConfigurationError(f"not every host sees what another writes into {run.folder}")


def _restore(run: Run, network: Network, epoch: _Epoch) -> tuple[EpochRecord, ...]:
    """Put the fold's state before this epoch into the network, and return its finished epochs."""
    if not epoch.number:
        start_fold(run, network, epoch.fold)
        return ()
    checkpoint = read_checkpoint(run.checkpoint(epoch.fold))
    if checkpoint.is_final:
        raise ConfigurationError(f"{run.checkpoint(epoch.fold)} holds final weights: no training goes on from them")
    write_state(network.head, network.optimiser, checkpoint.state)
    if isinstance(run.config.schedule, PlateauSchedule):
        network.optimiser.learning_rate = plateau_rate(run.config.schedule, _held_out_losses(checkpoint.records))
    return checkpoint.records


def _judge(run: Run, network: Network, epoch: _Epoch) -> dict[str, float | None]:
    """Return the held-out measures of the weights as they stand, where the configuration asks for them now."""
    train = run.config.train
    last = epoch.number + 1 == train.epochs
    steered = train.stop_patience is not None or isinstance(run.config.schedule, PlateauSchedule)
    if not (last or steered or (epoch.number + 1) % train.evaluate_every == 0):
        return {"held_out_loss": None, "abnormality_auc": None, "findings_auc": None}
    judge_present_weights(run, network, epoch.fold)
    rows = np.flatnonzero(run.folds == epoch.fold)
    labels, logits = run.labels[rows], held_out_logits(run, network, rows)
    aucs = label_aucs(labels, logits)
    return {
        "held_out_loss": cross_entropy(labels, logits),
        "abnormality_auc": _known(aucs[0]),
        "findings_auc": _known(mean_auc(aucs[1:])),
    }


def epoch_inputs(run: Run, network: Network, number: int, *, rows: Rows) -> ReadInputs:
    """Return what gives the head's inputs for these rows of images, augmented anew for this epoch."""
    if network.trunk is None:
        return lambda wanted: _augmented(run, wanted, number)
    features = np.empty((len(run.folds), *network.trunk.output.shape[1:]), dtype=np.float16)

    def read(at: int) -> FloatArray:
        return _augmented(run, rows[at : at + PREDICTED_AT_ONCE], number)

    # Half precision, since all features of an epoch stay in memory.
    for at, images in ahead(read, range(0, len(rows), PREDICTED_AT_ONCE)):
        features[rows[at : at + PREDICTED_AT_ONCE]] = network.features(images)
    return lambda wanted: features[wanted].astype(np.float32)


def _augmented(run: Run, rows: Rows, number: int) -> FloatArray:
    """Return (rows, side, side, 1) images. The changes to an image depend on its row and the epoch alone."""
    settings, side = run.config.augment, run.config.input.side
    randoms = (np.random.default_rng((run.config.train.seed, number, int(row))) for row in rows)
    pairs = zip(run.radiographs.pixels[rows], randoms, strict=True)
    return np.stack([augmented_input(image, side, settings, random) for image, random in pairs])[..., np.newaxis]


def _present_rate(network: Network) -> float:
    return float(keras.ops.convert_to_numpy(network.optimiser.learning_rate))


def _held_out_losses(records: Sequence[EpochRecord]) -> list[float]:
    return [record.held_out_loss for record in records if record.held_out_loss is not None]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
