"""Curves in few points and bins: what they keep, and how sure they are."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from dicomnode.bundle.manifest import OperatingPointEntry, ReliabilityBin
from dicomnode.domain.wilson import wilson
from modeling.calibration import operating_points
from modeling.evaluation.curves import POINTS, curves_of, reliability_bins, roc_points, thinned, with_intervals
from modeling.evaluation.intervals import Resampler, Values
from modeling.evaluation.measures import auc, sensitivity_at
from modeling.evaluation.plots import COLOURS, save_roc
from modeling.metrics import BoolArray
from tests.modeling.test_populations import predictions


def drawn(images: int, frequency: float, apart: float, seed: int = 0) -> tuple[BoolArray, Values]:
    """Return labels and probabilities, which tell them apart a little."""
    random = np.random.default_rng(seed)
    truth = random.random(images) < frequency
    return truth, 1 / (1 + np.exp(2 - apart * truth - random.normal(0, 1, images)))


def area(false: Values, found: Values) -> float:
    return float(np.trapezoid(found, false))


@pytest.mark.parametrize(
    ("images", "frequency", "apart"), [(13_000, 0.4, 1.0), (13_000, 0.003, 1.4), (2_000, 0.1, 0.0), (300, 0.5, 3.0)]
)
def test_a_thinned_curve_keeps_its_area_and_never_falls(images: int, frequency: float, apart: float) -> None:
    truth, probability = drawn(images, frequency, apart)
    false, found = roc_points(truth, probability)
    chosen = thinned(false, found)
    assert len(chosen) == POINTS < len(false)
    assert area(false[chosen], found[chosen]) == pytest.approx(area(false, found), abs=0.001)
    assert (false[chosen[[0, -1]]].tolist(), found[chosen[[0, -1]]].tolist()) == ([0, 1], [0, 1])
    assert (np.diff(false[chosen]) >= 0).all()
    assert (np.diff(found[chosen]) >= 0).all()


def test_a_thinned_curve_goes_through_the_operating_points_and_stays_close_beside_them() -> None:
    truth, probability = drawn(5_000, 0.1, 1.0)
    false, found = roc_points(truth, probability)
    points = operating_points(truth, probability, frequency=0.1, never_ill=~truth)
    kept = [(1 - point.specificity, point.sensitivity) for point in points.values()]
    few = thinned(false, found, kept, at_most=20)
    assert len(few) == 20
    for x, y in kept:
        away = np.sort(np.abs(false[few] - x) + np.abs(found[few] - y))
        assert away[0] < 1e-12
        assert away[2] <= 0.02 + 1 / truth.sum()


def test_a_short_curve_is_kept_whole() -> None:
    false, found = roc_points(np.array([True, False, True]), np.array([0.9, 0.5, 0.2]))
    assert thinned(false, found).tolist() == [0, 1, 2, 3]
    assert (false.tolist(), found.tolist()) == ([0, 0, 1, 1], [0, 0.5, 0.5, 1])


def test_bins_hold_equally_many_images_and_each_once() -> None:
    truth, probability = drawn(1_003, 0.2, 1.0)
    bins = reliability_bins(truth, probability)
    assert [one.images for one in bins] == [101] * 3 + [100] * 7
    assert sum(round(one.observed * one.images) for one in bins) == truth.sum()
    lowest = np.argsort(probability)[:101]
    assert bins[0].predicted == pytest.approx(probability[lowest].mean(), abs=1e-5)
    low, high = wilson(int(truth[lowest].sum()), 101)
    assert bins[0].observed == pytest.approx(truth[lowest].mean(), abs=1e-5)
    assert (bins[0].low, bins[0].high) == pytest.approx((low, high), abs=1e-5)


def test_fewer_images_than_bins_are_a_bin_each() -> None:
    assert [one.images for one in reliability_bins(np.array([True, False]), np.array([0.7, 0.2]))] == [1, 1]


def test_a_bin_without_the_label_lies_in_its_interval() -> None:
    truth, probability = np.arange(1_000) >= 990, np.linspace(0, 0.02, 1_000)
    first = reliability_bins(truth, probability)[0]
    assert (first.observed, first.low) == (0, 0)
    assert first.high == pytest.approx(0.037, abs=0.001)


def test_believable_probabilities_lie_on_the_diagonal_also_where_the_label_is_enriched() -> None:
    random = np.random.default_rng(3)
    probability = random.beta(1, 12, 400_000)
    truth = random.random(len(probability)) < probability
    frequency = float(truth.mean())
    kept = truth | (random.random(len(truth)) < 0.2)
    enriched = reliability_bins(truth[kept], probability[kept], frequency=frequency)
    assert truth[kept].mean() > 2 * frequency
    assert all(one.low - 0.01 <= one.predicted <= one.high + 0.01 for one in enriched)
    untold = reliability_bins(truth[kept], probability[kept])
    assert untold[-1].low > untold[-1].predicted


def test_the_sensitivity_at_a_rate_lies_between_thresholds() -> None:
    truth, probability = np.array([True, False, True, False]), np.array([0.9, 0.6, 0.5, 0.1])
    found = sensitivity_at(truth, probability, np.array([0, 0.25, 0.5, 1.0]))(np.ones((1, 4)))
    assert found.tolist() == [[0.5, 0.5, 1.0, 1.0]]
    doubled = sensitivity_at(truth, probability, np.array([0.25]))(np.array([[3.0, 1, 1, 1]]))
    assert doubled.tolist() == [[0.75]]


@pytest.fixture(scope="module")
def measured() -> tuple[BoolArray, Values, dict[str, OperatingPointEntry], Resampler]:
    """Four images a patient that are all alike: as sure as 500 images, not as 2,000."""
    some = drawn(500, 0.2, 1.2, seed=4)
    truth, probability = np.repeat(some[0], 4), np.repeat(some[1], 4)
    points = operating_points(truth, probability, frequency=0.2, never_ill=~truth)
    return truth, probability, points, Resampler(np.repeat(np.arange(500), 4).astype(str), rounds=300, seed=1)


def test_curves_count_images_and_patients_and_agree_with_the_auc(
    measured: tuple[BoolArray, Values, dict[str, OperatingPointEntry], Resampler],
) -> None:
    truth, probability, points, resampler = measured
    rows = np.arange(2_000) >= 1_000
    seen, chance = truth[rows], probability[rows]
    curves = curves_of(seen, chance, points, resampler, rows, frequency=float(seen.mean()), derived_on="drawn")
    assert (curves.images, curves.patients, curves.derived_on) == (1_000, 250, "drawn")
    own = float(auc(seen, chance)(np.ones((1, 1_000)))[0])
    assert curves.roc.area == pytest.approx(own, abs=0.001)
    assert len(curves.roc.sensitivity) <= POINTS


def test_intervals_are_drawn_by_patient(
    measured: tuple[BoolArray, Values, dict[str, OperatingPointEntry], Resampler],
) -> None:
    truth, probability, points, by_patient = measured
    everything = np.ones(2_000, dtype=bool)
    by_image = Resampler(np.arange(2_000).astype(str), rounds=300, seed=1)
    widths = []
    for resampler in (by_image, by_patient):
        point = with_intervals(points["youden"], truth, probability, resampler, everything)
        assert point.sensitivity_interval is not None
        assert point.specificity_interval is not None
        roc = curves_of(truth, probability, points, resampler, everything, frequency=0.2, derived_on="drawn").roc
        assert roc.low is not None
        assert roc.high is not None
        band = np.subtract(roc.high, roc.low).mean()
        widths.append([np.diff(point.sensitivity_interval)[0], np.diff(point.specificity_interval)[0], band])
    assert (np.array(widths[1]) / np.array(widths[0]) > 1.5).all()


def test_the_band_is_of_95_percent_as_the_operating_points_intervals_are(
    measured: tuple[BoolArray, Values, dict[str, OperatingPointEntry], Resampler],
) -> None:
    truth, probability, points, resampler = measured
    everything = np.ones(2_000, dtype=bool)
    roc = curves_of(truth, probability, points, resampler, everything, frequency=0.2, derived_on="drawn").roc
    point = with_intervals(points["youden"], truth, probability, resampler, everything)
    assert point.sensitivity_interval is not None
    assert roc.low is not None
    assert roc.high is not None
    at = int(np.argmin(np.abs(np.array(roc.false_positive_rate) - 1 + point.specificity)))
    low, high = point.sensitivity_interval
    # The rate of false positives is drawn too, so the band is a little wider than the interval at a fixed threshold.
    assert 0.9 * (high - low) < roc.high[at] - roc.low[at] < 2.5 * (high - low)


def test_a_bin_says_what_it_holds() -> None:
    (only,) = reliability_bins(np.array([True, True, False, False]), np.full(4, 0.25), bins=1)
    low, high = wilson(2, 4)
    assert only == ReliabilityBin(predicted=0.25, observed=0.5, low=round(low, 5), high=round(high, 5), images=4)


def test_the_roc_of_held_out_predictions_is_a_picture_with_a_curve_for_each_label(tmp_path: Path) -> None:
    found = predictions()
    path = save_roc(tmp_path / "roc.png", found)
    picture = cv2.imread(str(path))
    assert picture is not None
    colours = {tuple(pixel) for pixel in picture.reshape(-1, 3)[::7].tolist()}
    for hexadecimal in COLOURS[: len(found.labels)]:
        red, green, blue = (int(hexadecimal[at : at + 2], 16) for at in (1, 3, 5))
        assert any(max(abs(blue - b), abs(green - g), abs(red - r)) < 12 for b, g, r in colours)
