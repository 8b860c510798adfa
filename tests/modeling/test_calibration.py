import numpy as np
import pytest

from dicomnode.bundle.manifest import Calibration
from dicomnode.domain.errors import ConfigurationError
from modeling.calibration import fit_calibration, operating_points, probabilities, with_frequency


def test_recovers_the_slope_and_intercept_that_made_the_labels() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 40_000)
    truth = random.random(40_000) < probabilities(Calibration(slope=0.7, intercept=-1.0), logits)
    fitted = fit_calibration(truth, logits)
    assert fitted.slope == pytest.approx(0.7, abs=0.03)
    assert fitted.intercept == pytest.approx(-1.0, abs=0.05)


def test_separable_classes_stay_finite() -> None:
    fitted = fit_calibration(np.array([True] * 5 + [False] * 5), np.array([9.0] * 5 + [-9.0] * 5))
    assert 0 < fitted.slope < 10


def test_logits_that_mislead_give_the_frequency_not_a_negative_slope() -> None:
    truth = np.array([True] * 10 + [False] * 30)
    fitted = fit_calibration(truth, np.where(truth, -1.0, 1.0))
    assert probabilities(fitted, np.zeros(1))[0] == pytest.approx(0.25, abs=0.01)


def test_a_label_without_positives_cannot_be_calibrated() -> None:
    with pytest.raises(ConfigurationError, match="without positives"):
        fit_calibration(np.zeros(4, dtype=bool), np.zeros(4))


def test_operating_points_have_the_sensitivity_and_specificity_they_state() -> None:
    random = np.random.default_rng(1)
    truth = random.random(2000) < 0.3
    probability = np.clip(0.3 + 0.2 * truth + random.normal(0, 0.15, 2000), 0.01, 0.99)
    points = operating_points(truth, probability, frequency=float(truth.mean()), never_ill=~truth)
    for point in points.values():
        positive = probability >= point.threshold
        assert positive[truth].mean() == pytest.approx(point.sensitivity)
        assert (~positive[~truth]).mean() == pytest.approx(point.specificity)
    assert points["sensitivity_95"].sensitivity >= 0.95
    assert points["specificity_95"].specificity >= 0.95
    assert "out of fold" in points["youden"].derived_on


def test_nine_in_ten_images_of_patients_who_were_never_ill_are_spared() -> None:
    random = np.random.default_rng(3)
    truth, never_ill = random.random(4000) < 0.3, random.random(4000) < 0.4
    never_ill &= ~truth
    probability = np.clip(0.4 + 0.15 * truth - 0.1 * never_ill + random.normal(0, 0.1, truth.size), 0.01, 0.99)
    point = operating_points(truth, probability, frequency=0.3, never_ill=never_ill)["never_ill_90"]
    assert (probability[never_ill] < point.threshold).mean() == pytest.approx(0.9, abs=0.002)
    assert point.specificity == pytest.approx((probability[~truth] < point.threshold).mean())
    assert point.specificity < 0.9, "healthy images of patients who are ill at other times are harder"
    alone = operating_points(truth, probability, frequency=0.3, never_ill=np.zeros_like(truth))["never_ill_90"]
    assert alone.specificity == pytest.approx(0.9, abs=0.002)


def test_a_rare_label_is_marked_only_where_one_mark_in_ten_is_right() -> None:
    random = np.random.default_rng(2)
    truth = random.random(20_000) < 0.3
    probability = np.clip(0.3 + 0.15 * truth + random.normal(0, 0.12, truth.size), 0.01, 0.99)
    rare = operating_points(truth, probability, frequency=0.005, never_ill=~truth)["ppv_10"]
    common = operating_points(truth, probability, frequency=0.3, never_ill=~truth)
    right, wrong = rare.sensitivity * 0.005, (1 - rare.specificity) * 0.995
    assert right / (right + wrong) >= 0.1
    assert rare.threshold > common["ppv_10"].threshold == common["specificity_95"].threshold


def test_another_frequency_moves_the_odds_by_the_ratio_of_the_priors() -> None:
    moved = with_frequency(Calibration(slope=1.0, intercept=0.0), fitted=0.5, wanted=0.2)
    assert probabilities(moved, np.zeros(1))[0] == pytest.approx(0.2)
