import csv
import io
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from rich.console import Console

from modeling.run_reporting import write_summary
from modeling.tracking.history import (
    CURVES,
    HISTORY_CSV,
    HISTORY_JSON,
    EpochRecord,
    curves_figure,
    mean_of_folds,
    series,
    write_history,
)
from modeling.tracking.progress import LOSS_EVERY_STEPS, Progress, duration
from tests.modeling.tracked import RECORD, records


def test_a_record_survives_json() -> None:
    assert EpochRecord(**json.loads(json.dumps(asdict(RECORD)))) == RECORD


def test_history_lists_every_epoch_of_every_fold_once_and_in_order(tmp_path: Path) -> None:
    write_history(tmp_path, list(reversed(records(folds=3, epochs=4))))
    with (tmp_path / HISTORY_CSV).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["fold"]) for row in rows[:4]] == [("1", "0"), ("1", "1"), ("1", "2"), ("2", "0")]
    assert len(rows) == 12
    held = [EpochRecord(**row) for row in json.loads((tmp_path / HISTORY_JSON).read_text(encoding="utf-8"))]
    assert held == records(folds=3, epochs=4)


def test_history_is_rewritten_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_history(tmp_path, records(folds=2, epochs=5))
    write_history(tmp_path, records(folds=2, epochs=1))
    assert len((tmp_path / HISTORY_CSV).read_text(encoding="utf-8").splitlines()) == 3
    assert {path.name for path in tmp_path.iterdir()} == {HISTORY_CSV, HISTORY_JSON, CURVES}


def test_what_was_not_measured_is_empty_and_a_diverged_loss_is_said(tmp_path: Path) -> None:
    write_history(tmp_path, [replace(RECORD, loss=float("nan"), held_out_loss=None, findings_auc=None)])
    [row] = csv.DictReader(io.StringIO((tmp_path / HISTORY_CSV).read_text(encoding="utf-8")))
    assert (row["loss"], row["held_out_loss"], row["abnormality_auc"]) == ("nan", "", "0.7")
    [held] = json.loads((tmp_path / HISTORY_JSON).read_text(encoding="utf-8"))
    assert (held["loss"], held["held_out_loss"], held["findings_auc"]) == ("nan", None, None)


def test_learning_curves_are_a_picture_that_shows_something(tmp_path: Path) -> None:
    write_history(tmp_path, records(folds=2, epochs=4))
    picture = cv2.imread(str(tmp_path / CURVES))
    assert picture is not None
    assert picture.shape[0] > 600
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_the_mean_curve_ends_where_a_fold_does() -> None:
    run = [record for record in records(folds=2, epochs=3) if (record.fold, record.epoch) != (1, 3)]
    folds, values = series(run, lambda record: record.loss)
    assert folds == [0, 1]
    assert mean_of_folds(values)[:2].tolist() == [1.5, 1.0]
    assert np.isnan(mean_of_folds(values)[2])


def test_curves_name_the_best_epoch_and_say_what_was_not_measured() -> None:
    run = [
        replace(record, abnormality_auc=0.8 if record.epoch == 2 else 0.6, findings_auc=None)
        for record in records(folds=2, epochs=3)
    ]
    _, abnormality, findings, _ = curves_figure(run).axes
    assert abnormality.get_title().endswith("best 0.800 at epoch 2")
    assert [text.get_text() for text in findings.texts] == ["not measured"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="modeling.tracking.progress")
    return caplog


def progress(clock: Clock, *, finished: dict[int, int] | None = None) -> Progress:
    console = Console(file=io.StringIO(), width=150)
    return Progress(folds=2, epochs=3, batch_size=32, clock=clock, console=console, finished=finished)


def run_epoch(shown: Progress, clock: Clock, *, fold: int, epoch: int, step_s: float = 1.0) -> None:
    for step in range(10, 101, 10):
        clock.now += 10 * step_s
        shown.step(fold=fold, epoch=epoch, step=step, steps=100, loss=0.25)


def test_a_log_gets_a_line_a_minute_with_rate_and_time_left(clock: Clock, told: pytest.LogCaptureFixture) -> None:
    with progress(clock) as shown:
        run_epoch(shown, clock, fold=0, epoch=1)
    assert told.messages == [
        "fold 0 (1/2) epoch 1/3 step 10/100, loss 0.2500",
        # 600 steps of a second, 70 of them done.
        "fold 0 (1/2) epoch 1/3 step 70/100, loss 0.2500, 32 images/s, about 9 min left",
    ]


def test_time_left_counts_what_lies_between_epochs(clock: Clock, told: pytest.LogCaptureFixture) -> None:
    with progress(clock) as shown:
        run_epoch(shown, clock, fold=0, epoch=1)
        clock.now += 300
        told.clear()
        shown.step(fold=1, epoch=1, step=1, steps=100)
    # Five epochs of 100 s and 299 s each, less the one step.
    assert told.messages[0].endswith("about 33 min left")


def test_a_resumed_run_waits_only_for_the_epochs_still_to_do(clock: Clock, told: pytest.LogCaptureFixture) -> None:
    with progress(clock, finished={0: 2, 1: 2}) as shown:
        run_epoch(shown, clock, fold=0, epoch=3)
    # 200 steps in all, 70 done.
    assert told.messages[-1].endswith("about 2 min left")


def test_a_fold_that_stopped_early_is_not_waited_for(clock: Clock, told: pytest.LogCaptureFixture) -> None:
    with progress(clock) as shown:
        shown.stopped(1)
        run_epoch(shown, clock, fold=0, epoch=1, step_s=60)
    # 300 steps of a minute; 100 done.
    assert told.messages[-1].endswith("about 3 h 20 min left")


def test_a_step_that_comes_late_from_another_thread_changes_nothing(clock: Clock) -> None:
    with progress(clock) as shown:
        run_epoch(shown, clock, fold=0, epoch=1)
        before = shown.images_per_s
        clock.now += 100
        shown.step(fold=0, epoch=1, step=50, steps=100)
    assert shown.images_per_s == before == 32


def test_a_terminal_gets_a_bar_and_no_lines(clock: Clock, told: pytest.LogCaptureFixture) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=150)
    with Progress(folds=2, epochs=3, batch_size=32, clock=clock, console=console) as shown:
        run_epoch(shown, clock, fold=1, epoch=2)
    assert told.messages == []
    for part in ("fold 1 (2/2) epoch 2/3 step 100/100, loss 0.2500, 32 images/s", "left", "%"):
        assert part in file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(12.4, "12 s"), (89, "1 min"), (3599, "1 h 00 min"), (5400, "1 h 30 min"), (90000, "1 d 1 h")],
)
def test_durations_are_said_no_more_exactly_than_an_estimate_is(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def small_model() -> keras.Model:
    inputs = keras.Input((4,), name="features")
    frozen = keras.layers.Dense(3, name="frozen", trainable=False)(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, name="logits")(frozen))


def test_keras_passes_every_fiftieth_step_on_and_the_last() -> None:
    model = small_model()
    seen: list[int] = []

    class Seen(Progress):
        def step(self, *, fold: int, epoch: int, step: int, steps: int, loss: float | None = None) -> None:
            assert (fold, epoch, steps) == (1, 2, 120)
            assert isinstance(loss, float)
            seen.append(step)

    shown = Seen(folds=2, epochs=3, batch_size=1, clock=Clock(), console=Console(file=io.StringIO()))
    model.compile(loss="mse", optimizer="sgd")
    images = np.zeros((120, 4), np.float32)
    model.fit(images, images[:, :1], batch_size=1, verbose=0, callbacks=[shown.callback(fold=1, epoch=2)])
    assert seen == [1, 1 + LOSS_EVERY_STEPS, 1 + 2 * LOSS_EVERY_STEPS, 120]


def test_the_summary_counts_what_learns_and_what_does_not(tmp_path: Path) -> None:
    trunk = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, name="shared")])
    write_summary(tmp_path, trunk=trunk, head=small_model(), facts={"devices": "2 x cpu", "precision": "float32"})
    lines = (tmp_path / "model.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:8] == [
        "input: batch x 2",
        "output: batch x 1",
        "between trunk and head: batch x 4",
        "parameters: 31",
        "trainable: 4",
        "not trained: 27 (frozen layers, statistics of batch normalisation)",
        "devices: 2 x cpu",
        "precision: float32",
    ]
    layers = {line.split()[0]: line.split()[-2:] for line in lines if "Dense" in line}
    assert layers == {"shared": ["12", "no"], "frozen": ["15", "no"], "logits": ["4", "yes"]}
