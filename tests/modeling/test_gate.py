import numpy as np
import pytest
import tensorflow as tf

from dicomnode.bundle.manifest import InputSpec
from dicomnode.bundle.phantom import draw_chest
from modeling.config import GateSection
from modeling.gate import ORIENTATIONS, GateSample, cell_features, fit_gate, turn_pixels

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

SETTINGS = GateSection(images=200, components=4, residual_weight=0.4, quantile=0.95, certain=0.9)


def sample(count: int = 200, axes: int = 12) -> GateSample:
    """Return features in which each orientation moves its own axis by ten deviations."""
    random = np.random.default_rng(0)

    def around(axis: int) -> np.ndarray:
        cells = random.normal(0, 1, (count, axes)).astype(np.float32)
        cells[:, axis] += 10
        return cells

    folds = np.arange(count) % 4
    turned = tuple(around(axis) for axis in range(1, len(ORIENTATIONS)))
    return GateSample(plain=around(0), restyled=around(0), folds=folds, turned=turned, turned_folds=folds)


def test_the_stated_share_of_training_images_passes_and_turns_are_recognised() -> None:
    fit = fit_gate(sample(), SETTINGS)
    assert fit.rejected == pytest.approx(0.05, abs=0.02)
    assert min(fit.repaired.values()) > 0.95
    assert max(fit.unnoticed.values()) == 0.0


def test_strangers_are_further_off_than_the_threshold() -> None:
    fit = fit_gate(sample(), SETTINGS)
    stranger = np.full((1, 12), 20.0, dtype=np.float32)
    assert fit.gate.typicality(stranger)[0] > fit.spec.typicality_threshold


def test_the_graph_computes_what_the_fit_computed() -> None:
    # Two channels over 3 x 3 cells of two pixels each give 18 features, as many as the fit must know.
    gate = fit_gate(sample(axes=18), SETTINGS).gate
    maps = np.random.default_rng(1).normal(0, 1, (5, 6, 6, 2)).astype(np.float32)
    cells = np.asarray(cell_features(tf.constant(maps)))
    outputs = gate.outputs(tf.constant(maps))
    assert np.allclose(cells[:, 0], maps[:, :2, :2, 0].mean(axis=(1, 2)), atol=1e-6)
    assert np.allclose(outputs.typicality, gate.typicality(cells), rtol=1e-4)
    assert np.allclose(outputs.orientation, gate.orientation(cells), atol=1e-4)


@pytest.mark.parametrize("orientation", range(8), ids=ORIENTATIONS)
def test_turning_follows_the_named_orientation(orientation: int) -> None:
    image = np.rint(draw_chest(64, 64, np.random.default_rng(0)) * 255).astype(np.uint8)
    turned = turn_pixels(image[None], orientation, InputSpec(side=64, source_side=64))[0]
    righted = np.rot90(turned, -(orientation % 4)).astype(float)
    correlation = np.corrcoef(righted.ravel(), image.ravel())[0, 1]
    assert correlation < -0.8 if orientation >= 4 else correlation > 0.9
