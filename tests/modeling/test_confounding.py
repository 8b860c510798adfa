import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dicomnode.bundle.manifest import InputSpec
from modeling.confounding import fit_row, judged_labels
from modeling.nih import LABELS, Radiographs, read_radiographs

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

PNEUMONIA = LABELS.index("Pneumonia")


@pytest.fixture(scope="module")
def two_sources(drawn_archive: Path) -> Radiographs:
    """Return drawn images of which the sharper half alone is labelled with pneumonia."""
    radiographs = read_radiographs(drawn_archive, None, InputSpec(side=64, source_side=64))
    labels = radiographs.labels.copy()
    labels[:, PNEUMONIA] = 0
    labels[30:45, PNEUMONIA] = 1
    return dataclasses.replace(radiographs, labels=labels, source_px=np.repeat([64, 256], 30))


def test_a_source_without_a_label_does_not_judge_it(two_sources: Radiographs) -> None:
    judged = judged_labels(two_sources.labels, two_sources.source_px, 0.05)
    assert np.isnan(judged[:30, PNEUMONIA]).all()
    assert np.array_equal(judged[30:, PNEUMONIA], two_sources.labels[30:, PNEUMONIA])
    others = np.delete(judged, PNEUMONIA, axis=1)
    assert not np.isnan(others[:, 0]).any()


def test_one_source_judges_everything(two_sources: Radiographs) -> None:
    assert not np.isnan(judged_labels(two_sources.labels, np.full(60, 128), 0.05)).any()


def test_a_label_that_is_not_known_stays_so_and_silences_no_source(two_sources: Radiographs) -> None:
    labels = two_sources.labels.copy()
    labels[0, 1] = np.nan
    judged = judged_labels(labels, np.full(60, 128), 0.05)
    assert np.isnan(judged[0, 1])
    assert np.isnan(judged).sum() == 1


def test_a_row_fitted_within_one_source_ignores_what_tells_sources_apart() -> None:
    random = np.random.default_rng(0)
    truth = random.random(400) < 0.3
    pooled = random.normal(0, 1, (400, 6)).astype(np.float32)
    pooled[:, 0] += truth
    pooled[:, 5] = 7.0
    weights, _ = fit_row(pooled, truth, 1e-2)
    assert weights[0] > 0
    assert abs(weights[5]) < 1e-3 * weights[0]
