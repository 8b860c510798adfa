"""Measures against values computed by hand, by brute force, or by scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from modeling.evaluation import measures
from modeling.evaluation.intervals import Resampler, Statistic, auc_covariance, compare_aucs, estimate_of
from modeling.evaluation.measures import averages, rates_at

TRUTH = np.array([False, False, True, True])
SCORES = np.array([0.1, 0.4, 0.35, 0.8])


def value(statistic: Statistic, images: int) -> float:
    return float(statistic(np.ones((1, images)))[0])


def drawn(images: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.random(images) < 0.3
    return truth, 1 / (1 + np.exp(-(random.normal(0, 1, images) + truth - 0.8)))


def test_auc_of_four_images_is_three_of_four_pairs() -> None:
    assert value(measures.auc(TRUTH, SCORES), 4) == pytest.approx(0.75)


def test_a_tie_counts_half() -> None:
    assert value(measures.auc(np.array([False, True]), np.array([0.5, 0.5])), 2) == 0.5


def test_average_precision_of_four_images() -> None:
    # Ranked: positive (1/1), negative, positive (2/3), negative.
    assert value(measures.average_precision(TRUTH, SCORES), 4) == pytest.approx((1 + 2 / 3) / 2)


def test_auc_and_average_precision_agree_with_scikit_learn_also_with_ties_and_weights() -> None:
    truth, scores = drawn()
    rounded = np.round(scores, 1)
    weights = np.random.default_rng(1).integers(0, 4, (3, len(truth))).astype(float)
    own_auc = measures.auc(truth, rounded)(weights)
    own_precision = measures.average_precision(truth, rounded)(weights)
    for row, weight in enumerate(weights):
        assert own_auc[row] == pytest.approx(roc_auc_score(truth, rounded, sample_weight=weight))
        assert own_precision[row] == pytest.approx(average_precision_score(truth, rounded, sample_weight=weight))


def test_expected_calibration_error_of_two_bins() -> None:
    truth = np.array([True, False, True, True])
    probability = np.array([0.15, 0.15, 0.95, 0.95])
    # Bin 0.1-0.2 says 0.15 and sees 0.5; bin 0.9-1 says 0.95 and sees 1; half of the images each.
    assert value(measures.expected_calibration_error(truth, probability), 4) == pytest.approx(0.5 * 0.35 + 0.5 * 0.05)


def test_a_probability_of_one_belongs_to_the_last_bin() -> None:
    assert value(measures.expected_calibration_error(np.array([True, True]), np.array([1.0, 1.0])), 2) == 0


def test_brier_score_of_two_images() -> None:
    assert value(measures.brier(np.array([True, False]), np.array([0.8, 0.4])), 2) == pytest.approx((0.04 + 0.16) / 2)


def test_calibration_line_is_the_logistic_regression_on_the_logit() -> None:
    truth, probability = drawn(2000)
    logit = np.log(probability / (1 - probability))
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit[:, None], truth)
    line = measures.calibration_line(truth, probability)
    assert line is not None
    slope, intercept = line(np.ones((1, len(truth))))[0]
    assert slope == pytest.approx(float(reference.coef_[0, 0]), abs=1e-4)
    assert intercept == pytest.approx(float(reference.intercept_[0]), abs=1e-4)


def test_one_newton_step_is_close_to_the_full_refit() -> None:
    truth, probability = drawn(3000, seed=3)
    logit = np.log(probability / (1 - probability))
    weights = np.random.default_rng(5).multinomial(3000, np.full(3000, 1 / 3000)).astype(float)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit[:, None], truth, weights)
    line = measures.calibration_line(truth, probability)
    assert line is not None
    assert line(weights[None])[0, 0] == pytest.approx(float(reference.coef_[0, 0]), abs=0.01)


def test_overconfident_probabilities_have_a_slope_below_one() -> None:
    random = np.random.default_rng(2)
    logit = random.normal(0, 1, 20_000)
    truth = random.random(20_000) < 1 / (1 + np.exp(-logit))
    line = measures.calibration_line(truth, 1 / (1 + np.exp(-2 * logit)))
    assert line is not None
    assert line(np.ones((1, 20_000)))[0, 0] == pytest.approx(0.5, abs=0.03)


def test_separable_classes_have_no_calibration_line() -> None:
    assert measures.calibration_line(np.array([False, False, True, True]), np.array([0.1, 0.2, 0.8, 0.9])) is None


def test_rates_of_a_confusion_table() -> None:
    found = measures.rates(np.array([8.0, 10.0, 2.0, 80.0]))
    assert found == pytest.approx([0.8, 80 / 90, 8 / 18, 80 / 82, 16 / 28])


def test_a_rate_without_a_denominator_is_unknown() -> None:
    resampler = Resampler(np.array(["a", "b"]), rounds=10, seed=0)
    found = rates_at(np.array([False, False]), np.array([False, False]), resampler)
    assert found["sensitivity"] is None
    assert found["ppv"] is None
    assert found["specificity"] is not None


def test_averages_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(4)
    truth, flagged = random.random((60, 5)) < 0.3, random.random((60, 5)) < 0.4
    resampler = Resampler(np.arange(60).astype(str), rounds=20, seed=0)
    found = averages(truth, flagged, resampler)
    for kind in ("micro", "macro", "weighted", "samples"):
        precision, recall, f1, _ = precision_recall_fscore_support(truth, flagged, average=kind, zero_division=0)
        own = [found[kind][rate] for rate in ("ppv", "sensitivity", "f1")]
        assert [one.value for one in own if one is not None] == pytest.approx([precision, recall, f1])


def test_samples_f1_of_two_images_is_the_mean_of_theirs() -> None:
    truth = np.array([[True, True, False], [False, False, True]])
    flagged = np.array([[True, False, False], [False, True, False]])
    found = averages(truth, flagged, Resampler(np.array(["a", "b"]), rounds=10, seed=0))["samples"]["f1"]
    assert found is not None
    assert found.value == pytest.approx((2 / 3 + 0) / 2)


def brute_force_variance(truth: np.ndarray, scores: np.ndarray) -> float:
    """DeLong's variance from its definition: every positive against every negative."""
    positive, negative = scores[truth], scores[~truth]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    by_positive, by_negative = wins.mean(axis=1), wins.mean(axis=0)
    return float(by_positive.var(ddof=1) / len(positive) + by_negative.var(ddof=1) / len(negative))


def test_delong_agrees_with_its_definition() -> None:
    truth, first = drawn(120)
    second = np.round(first + np.random.default_rng(7).normal(0, 0.2, 120), 1)
    aucs, covariance = auc_covariance(truth, np.stack([first, second]))
    assert aucs == pytest.approx([roc_auc_score(truth, first), roc_auc_score(truth, second)])
    assert covariance[0, 0] == pytest.approx(brute_force_variance(truth, first))
    assert covariance[1, 1] == pytest.approx(brute_force_variance(truth, second))
    # The win of a difference is the difference of wins, so its variance fixes the covariance.
    paired = compare_aucs(truth, first, second)
    positive = (first[truth][:, None] > first[~truth]) + 0.5 * (first[truth][:, None] == first[~truth])
    positive = positive - (second[truth][:, None] > second[~truth]) - 0.5 * (second[truth][:, None] == second[~truth])
    variance = positive.mean(axis=1).var(ddof=1) / truth.sum() + positive.mean(axis=0).var(ddof=1) / (~truth).sum()
    assert paired.standard_error == pytest.approx(np.sqrt(variance))
    assert paired.difference == pytest.approx(aucs[1] - aucs[0])


def test_the_same_scores_do_not_differ() -> None:
    truth, scores = drawn(80)
    assert compare_aucs(truth, scores, scores * 0.5).p_value == 1.0


def test_delong_rejects_a_true_difference_and_rarely_a_false_one() -> None:
    random = np.random.default_rng(11)
    p_values = []
    for _ in range(300):
        truth = np.arange(200) < 60
        noise = random.normal(0, 1, (2, 200)) + truth
        p_values.append(compare_aucs(truth, noise[0], noise[1]).p_value)
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09
    truth, good = np.arange(200) < 60, random.normal(0, 1, 200)
    assert compare_aucs(truth, good, good + 3 * truth).p_value < 1e-6


def test_the_bootstrap_draws_patients_so_copies_of_an_image_do_not_narrow_the_interval() -> None:
    truth, scores = drawn(100)
    single = Resampler(np.arange(100).astype(str), rounds=2000, seed=1)
    own = single.estimate(measures.auc(truth, scores))
    nine = (np.repeat(truth, 9), np.repeat(scores, 9))
    by_patient = Resampler(np.repeat(np.arange(100).astype(str), 9), rounds=2000, seed=1)
    same = by_patient.estimate(measures.auc(*nine))
    by_image = Resampler(np.arange(900).astype(str), rounds=2000, seed=1).estimate(measures.auc(*nine))
    assert own is not None
    assert same is not None
    assert by_image is not None
    assert (same.low, same.high) == pytest.approx((own.low, own.high), abs=0.01)
    assert (by_image.high - by_image.low) < 0.5 * (same.high - same.low)


def test_the_interval_is_that_of_delong_when_every_patient_has_one_image() -> None:
    truth, scores = drawn(600, seed=9)
    found = Resampler(np.arange(600).astype(str), rounds=2000, seed=0).estimate(measures.auc(truth, scores))
    assert found is not None
    error = np.sqrt(brute_force_variance(truth, scores))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_rows_of_a_subgroup_draw_with_the_whole() -> None:
    truth, scores = drawn(200)
    rows = np.arange(200) < 90
    resampler = Resampler((np.arange(200) // 3).astype(str), rounds=50, seed=0)
    part = resampler.values(measures.auc(truth[rows], scores[rows]), rows)
    # Weight 0 outside the group is the same as leaving the image out.
    statistic = measures.auc(truth, scores)
    whole = resampler.values(lambda weights: statistic(weights * rows))
    assert part == pytest.approx(whole)


def test_an_undefined_value_has_no_estimate() -> None:
    assert estimate_of(np.array([np.nan, 0.5, 0.6])) is None
