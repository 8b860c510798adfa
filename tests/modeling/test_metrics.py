import numpy as np
import pytest

from modeling.metrics import auc, bootstrap_aucs, estimate, label_aucs, mean_auc


def test_auc_counts_ranked_pairs_and_halves_ties() -> None:
    truth = np.array([True, True, False, False])
    assert auc(truth, np.array([0.9, 0.5, 0.5, 0.1])) == pytest.approx(3.5 / 4)


def test_auc_of_one_class_is_not_a_number() -> None:
    assert np.isnan(auc(np.array([True, True]), np.array([0.1, 0.2])))


def test_labels_with_few_positives_have_no_auc() -> None:
    labels = np.zeros((100, 2), dtype=np.float32)
    labels[:40, 0] = 1
    labels[:5, 1] = 1
    aucs = label_aucs(labels, np.linspace(1, 0, 100, dtype=np.float32)[:, None].repeat(2, axis=1))
    assert aucs[0] == 1.0
    assert np.isnan(aucs[1])
    assert mean_auc(aucs) == 1.0


def test_repeated_images_of_a_patient_do_not_narrow_the_interval() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((150, 1)) < 0.4).astype(np.float32)
    scores = (labels + random.normal(0, 1, (150, 1))).astype(np.float32)
    patients = np.arange(150).astype(str)
    once = bootstrap_aucs(labels, scores, patients, rounds=300, seed=1)
    fourfold = bootstrap_aucs(
        labels.repeat(4, axis=0), scores.repeat(4, axis=0), patients.repeat(4), rounds=300, seed=1
    )
    assert np.std(fourfold) == pytest.approx(np.std(once), rel=0.2)


def test_estimate_of_nothing_is_none() -> None:
    assert estimate(float("nan"), np.array([np.nan])) is None
