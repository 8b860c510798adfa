import gc
import weakref
from collections.abc import Callable

import keras
import numpy as np
import pytest

from modeling.config import TrainSection
from modeling.feeding import EpochBatches, Share, ahead, drawn_rows

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

ALONE = Share(index=0, count=1)
ROWS = np.arange(100)
FINDING = ROWS < 40
PATIENTS = np.array([str(row // 10) for row in ROWS])


def train(**changes: object) -> TrainSection:
    return TrainSection.model_validate({"folds": 2, "epochs": 1, "batch_size": 8, "seed": 5} | changes)


VALUES = np.arange(100, dtype=np.float32)


def own_number(rows: np.ndarray) -> np.ndarray:
    return VALUES[rows][:, None]


def batches(
    mixup: float = 0.0, share: Share = ALONE, read_inputs: Callable[[np.ndarray], np.ndarray] = own_number
) -> EpochBatches:
    return EpochBatches(
        np.random.default_rng(0).permutation(100),
        steps=12,
        batch_size=8,
        read_inputs=read_inputs,
        labels=(VALUES[:, None] % 2).astype(np.float32),
        make_targets=lambda labels: labels,
        mixup=mixup,
        seed=(1, 2, 3),
        share=share,
    )


def test_every_epoch_has_an_order_of_its_own_that_can_be_repeated() -> None:
    first, again = (drawn_rows(train(), FINDING, PATIENTS, ROWS, fold=0, epoch=0) for _ in range(2))
    assert np.array_equal(first, again)
    assert sorted(first) == list(ROWS)
    assert not np.array_equal(first, drawn_rows(train(), FINDING, PATIENTS, ROWS, fold=0, epoch=1))
    assert not np.array_equal(first, drawn_rows(train(), FINDING, PATIENTS, ROWS, fold=1, epoch=0))


def test_undersampling_keeps_every_finding_and_draws_the_others_anew() -> None:
    settings = train(keep_no_finding=0.2)
    first, second = (drawn_rows(settings, FINDING, PATIENTS, ROWS, fold=0, epoch=epoch) for epoch in range(2))
    for drawn in (first, second):
        assert set(ROWS[FINDING]) <= set(drawn)
        assert len(drawn) == 40 + 12
        assert len(set(drawn)) == len(drawn)
    assert set(first) != set(second)


def test_an_epoch_takes_no_more_images_of_a_patient_than_it_may_and_others_each_time() -> None:
    settings = train(patient_images=3)
    first, second = (drawn_rows(settings, FINDING, PATIENTS, ROWS, fold=0, epoch=epoch) for epoch in range(2))
    for drawn in (first, second):
        assert np.unique(PATIENTS[drawn], return_counts=True)[1].tolist() == [3] * 10
        assert len(set(drawn)) == 30
    assert set(first) != set(second)


def test_batches_hold_the_images_of_their_labels() -> None:
    fed = batches()
    assert len(fed) == 12
    for index in range(12):
        inputs, labels = fed[index]
        assert inputs.shape == (8, 1)
        assert np.array_equal(inputs % 2, labels)


def test_a_batch_depends_on_its_position_alone() -> None:
    fed = batches(mixup=0.4)
    later, earlier = fed[7], fed[3]
    assert np.array_equal(later[0], fed[7][0])
    assert np.array_equal(earlier[1], fed[3][1])


def test_processes_share_every_batch_without_loss() -> None:
    whole, _ = batches()[5]
    parts = [batches(share=Share(index=index, count=4))[5][0] for index in range(4)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_mixup_mixes_labels_as_it_mixes_images() -> None:
    inputs, _ = batches()[0]
    mixed, labels = batches(mixup=0.4)[0]
    partner = inputs[::-1]
    share = (mixed - partner) / (inputs - partner)
    assert ((share >= 0) & (share <= 1)).all()
    assert np.allclose(labels, share * (inputs % 2) + (1 - share) * (partner % 2), atol=1e-4)
    assert not np.array_equal(mixed, inputs)


def test_work_done_ahead_comes_in_order_and_whole() -> None:
    done = list(ahead(lambda start: np.arange(start, min(start + 7, 50)), range(0, 50, 7)))
    assert [start for start, _ in done] == list(range(0, 50, 7))
    assert np.array_equal(np.concatenate([values for _, values in done]), np.arange(50))


def test_a_failure_ahead_is_not_lost() -> None:
    def fail(start: int) -> np.ndarray:
        raise OSError(f"no {start}")

    with pytest.raises(OSError, match="no 0"):
        list(ahead(fail, range(3)))


def test_after_an_epoch_its_images_are_let_go_although_the_framework_keeps_the_batches() -> None:
    images = np.zeros((100, 1), dtype=np.float32)
    watched = weakref.ref(images)
    fed = batches(read_inputs=lambda rows, held=images: held[rows])
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(fed, shuffle=False, verbose=0)
    fed.release()
    del images
    gc.collect()
    assert watched() is None
