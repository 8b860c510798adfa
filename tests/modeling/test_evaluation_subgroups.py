"""Groups compared: their measures, and the gap between the best and the worst."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from modeling.evaluation.intervals import Resampler
from modeling.evaluation.predictions import Predictions
from modeling.evaluation.results import Axis
from modeling.evaluation.subgroups import MEAN_OF_FINDINGS, subgroups

IMAGES = 400


def compared() -> tuple[Predictions, dict[str, Axis]]:
    """Return images of which women are read well and men at random; ages fill two bands, 10 images have no view."""
    random = np.random.default_rng(0)
    women = np.arange(IMAGES) % 2 == 0
    truth = random.random((IMAGES, 2)) < 0.4
    strength = np.where(women, 3.0, 0.0)[:, None]
    probability = 1 / (1 + np.exp(-(random.normal(0, 1, (IMAGES, 2)) + strength * (truth - 0.5))))
    predictions = Predictions(
        labels=("Abnormal", "Mass"),
        images=np.arange(IMAGES).astype(str),
        patients=np.arange(IMAGES).astype(str),
        views=np.where(np.arange(IMAGES) < 10, "", "PA"),
        sexes=np.where(women, "F", "M"),
        ages=np.where(np.arange(IMAGES) < 200, 39, 40),
        gate=np.full(IMAGES, "typical"),
        sources=np.full(IMAGES, "typical"),
        truth=truth,
        probability=probability,
        members=probability[:, None],
    )
    resampler = Resampler(predictions.patients, rounds=300, seed=0)
    return predictions, subgroups(predictions, {"Abnormal": 0.5, "Mass": 0.5}, resampler)


def test_a_group_is_measured_on_its_own_images() -> None:
    predictions, found = compared()
    rows = predictions.sexes == "M"
    men = found["sex"].groups["M"].labels["Mass"]
    assert men.auc is not None
    assert men.auc.value == pytest.approx(roc_auc_score(predictions.truth[rows, 1], predictions.probability[rows, 1]))
    assert men.positives == predictions.truth[rows, 1].sum()
    assert men.sensitivity is not None
    flagged = predictions.probability[rows, 1][predictions.truth[rows, 1]] >= 0.5
    assert men.sensitivity.value == pytest.approx(flagged.mean())


def test_the_gap_names_the_groups_and_its_interval_leaves_out_zero() -> None:
    _, found = compared()
    for label in ("Mass", MEAN_OF_FINDINGS):
        gap = found["sex"].gaps[label]["auc"]
        assert (gap.best, gap.worst) == ("F", "M")
        assert gap.difference.low > 0.2


def test_ages_fall_into_bands_and_unknown_views_are_counted() -> None:
    _, found = compared()
    assert {name: group.images for name, group in found["age"].groups.items()} == {"18-39": 200, "40-59": 200}
    assert found["view"].unknown == 10
    assert found["view"].gaps == {}
