import math

import pytest
from keras import ops

from modeling.config import ConstantSchedule, CosineSchedule, PlateauSchedule, RampSchedule, ScheduleSection
from modeling.schedules import best_epoch, build_schedule, has_stopped, plateau_rate

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

COSINE = CosineSchedule(kind="cosine", rate=1e-3, warmup_fraction=0.1)
RAMP = RampSchedule(
    kind="ramp", start_rate=1e-5, rate=1.5e-4, least_rate=1e-5, rise_epochs=20, hold_epochs=10, decay=0.8
)
PLATEAU = PlateauSchedule(kind="plateau", rate=1e-2, factor=0.1, patience=3, least_rate=1e-5)


def rate_at(settings: ScheduleSection, step: int, *, steps_per_epoch: int = 10, epochs: int = 10) -> float:
    schedule = build_schedule(settings, steps_per_epoch=steps_per_epoch, epochs=epochs)
    assert not isinstance(schedule, float)
    return float(schedule(ops.convert_to_tensor(step)))


def test_a_cosine_warms_up_peaks_and_ends_at_zero() -> None:
    assert rate_at(COSINE, 0) == pytest.approx(1e-4)
    assert rate_at(COSINE, 9) == pytest.approx(1e-3)
    assert rate_at(COSINE, 54) == pytest.approx(0.5e-3)
    assert rate_at(COSINE, 99) == pytest.approx(0.0, abs=1e-9)


def test_a_cosine_without_warm_up_begins_near_its_peak() -> None:
    settings = CosineSchedule(kind="cosine", rate=1.0)
    assert rate_at(settings, 0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 100)), rel=1e-5)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 1e-5),
        (10, 8e-5),
        (20, 1.5e-4),
        (29, 1.5e-4),
        (30, 1.5e-4),
        (31, 1e-5 + 1.4e-4 * 0.8),
        (40, 1e-5 + 1.4e-4 * 0.8**10),
    ],
)
def test_the_ramp_is_the_first_systems(epoch: int, rate: float) -> None:
    assert rate_at(RAMP, epoch * 10) == pytest.approx(rate, rel=1e-4)
    assert rate_at(RAMP, epoch * 10 + 9) == pytest.approx(rate, rel=1e-4)


def test_a_ramp_without_a_rise_begins_at_its_peak() -> None:
    assert rate_at(RAMP.model_copy(update={"rise_epochs": 0}), 0) == pytest.approx(1.5e-4, rel=1e-5)


def test_constant_and_plateau_begin_as_configured() -> None:
    assert build_schedule(ConstantSchedule(kind="constant", rate=0.5), steps_per_epoch=1, epochs=1) == 0.5
    assert build_schedule(PLATEAU, steps_per_epoch=1, epochs=1) == 1e-2


def test_a_plateau_cuts_the_rate_after_its_patience_and_waits_again() -> None:
    assert plateau_rate(PLATEAU, []) == 1e-2
    assert plateau_rate(PLATEAU, [1.0, 1.1, 1.2]) == 1e-2
    assert plateau_rate(PLATEAU, [1.0, 1.1, 1.2, 1.0]) == pytest.approx(1e-3)
    assert plateau_rate(PLATEAU, [1.0, 1.1, 1.2, 1.0, 1.0, 1.0]) == pytest.approx(1e-3)
    assert plateau_rate(PLATEAU, [1.0] * 7) == pytest.approx(1e-4)
    assert plateau_rate(PLATEAU, [1.0, 1.1, 0.9, 1.1, 1.2]) == 1e-2


def test_a_plateau_stops_falling_at_its_least_rate() -> None:
    assert plateau_rate(PLATEAU, [1.0] * 40) == 1e-5


def test_stopping_waits_for_the_patience_and_none_never_stops() -> None:
    losses = [1.0, 0.8, 0.9, 0.85]
    assert best_epoch(losses) == 1
    assert has_stopped(2, losses)
    assert not has_stopped(3, losses)
    assert not has_stopped(None, losses)
    assert not has_stopped(1, [])
