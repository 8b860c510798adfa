"""Batches of one epoch of one fold, each a function of its position alone, so that no thread changes what is learnt."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from dicomnode.domain.frame import FloatArray
from modeling.config import TrainSection

Rows = npt.NDArray[np.int64]
_THREADS = min(16, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which part of every batch this process feeds, of several that train together."""

    index: int
    count: int

    def of(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return this process's part of what a batch holds."""
        size = len(batch) // self.count
        return batch[self.index * size : (self.index + 1) * size]


def drawn_rows(
    train: TrainSection,
    finding: npt.NDArray[np.bool_],
    patients: npt.NDArray[np.str_],
    rows: Rows,
    *,
    fold: int,
    epoch: int,
) -> Rows:
    """Return the rows of one epoch in a new order, with the wanted share of those without a finding.

    `finding`: (N,) whether the image has one; `patients`: (N,). The share, and the images of a patient of whom not all
    are wanted, are drawn anew each epoch, so that in time all are seen.
    """
    random = np.random.default_rng((train.seed, epoch, fold))
    order = random.permutation(rows)
    if train.keep_no_finding < 1:
        without = order[~finding[order]]
        left_out = without[round(len(without) * train.keep_no_finding) :]
        order = order[~np.isin(order, left_out)]
    if train.patient_images is not None:
        order = order[_place_among_own(patients[order]) < train.patient_images]
    return order


def _place_among_own(patients: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    """Return (N,) how many earlier rows are of the same patient."""
    by_patient = np.argsort(patients, kind="stable")
    _, first, counts = np.unique(patients[by_patient], return_index=True, return_counts=True)
    places = np.empty(len(patients), dtype=np.int64)
    places[by_patient] = np.arange(len(patients)) - np.repeat(first, counts)
    return places


class EpochBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """The whole batches of an epoch: (inputs, targets) of `order`, cut into `batch_size`; what is left over waits.

    `read_inputs` takes (N,) rows and `make_targets` (N, outputs) labels. With `mixup` each image is mixed with another
    of its batch, by a share drawn from Beta(mixup, mixup). Source: Zhang et al., "mixup", ICLR 2018.
    """

    def __init__(
        self,
        order: Rows,
        *,
        steps: int,
        batch_size: int,
        read_inputs: Callable[[Rows], FloatArray],
        labels: FloatArray,
        make_targets: Callable[[FloatArray], FloatArray],
        mixup: float,
        seed: tuple[int, ...],
        share: Share,
    ) -> None:
        super().__init__(workers=_THREADS, use_multiprocessing=False, max_queue_size=2 * _THREADS)
        self._order, self._steps, self._batch_size = order, steps, batch_size
        self._read_inputs, self._labels, self._make_targets = read_inputs, labels, make_targets
        self._mixup, self._seed, self._share = mixup, seed, share

    def __len__(self) -> int:
        """Return the number of whole batches."""
        return self._steps

    def __getitem__(self, index: int) -> tuple[FloatArray, FloatArray]:
        """Return the inputs and targets of this process's share of one batch."""
        whole = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        rows = self._share.of(whole)
        inputs, labels = self._read_inputs(rows), self._labels[rows]
        if self._mixup:
            random = np.random.default_rng((*self._seed, index))
            kept = self._share.of(random.beta(self._mixup, self._mixup, len(whole)).astype(np.float32))
            inputs, labels = _mixed(inputs, kept), _mixed(labels, kept)
        return inputs, self._make_targets(labels)

    def release(self) -> None:
        """Let go of the epoch's images: TensorFlow keeps the datasets that it was fed from."""
        del self._read_inputs


def _mixed(values: FloatArray, kept: FloatArray) -> FloatArray:
    """Return each row mixed with its mirror in the batch, whose order is random already."""
    share = kept.reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray(share * values + (1 - share) * values[::-1], dtype=np.float32)


def ahead(work: Callable[[int], FloatArray], starts: range) -> Iterator[tuple[int, FloatArray]]:
    """Yield `work(start)` for each start in order, computed by threads a few starts ahead."""
    with ThreadPoolExecutor(_THREADS) as pool:
        futures = []
        for start in starts:
            futures.append((start, pool.submit(work, start)))
            if len(futures) > 2 * _THREADS:
                done, future = futures.pop(0)
                yield done, future.result()
        for done, future in futures:
            yield done, future.result()
