import keras
import numpy as np
import pytest

from modeling.config import BinaryCrossEntropy, FocalLoss, LossSection, WeightedBinaryCrossEntropy
from modeling.losses import build_loss, cross_entropy, label_frequency, logit_shift, prior_logits, targets

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

BCE = BinaryCrossEntropy(kind="bce")
WEIGHTED = WeightedBinaryCrossEntropy(kind="weighted-bce")
FOCAL = FocalLoss(kind="focal", gamma=2.0, alpha=0.75)
HALF = np.full(1, 0.5, dtype=np.float32)


def loss_of(settings: LossSection, label: float, logit: float, frequency: float = 0.5) -> float:
    target = targets(np.array([[label]], dtype=np.float32), np.array([frequency], dtype=np.float32), settings)
    return float(build_loss(settings)(target, np.array([[logit]], dtype=np.float32)))


def sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


@pytest.mark.parametrize("logit", [-3.0, 0.0, 2.5])
def test_cross_entropy_of_both_labels(logit: float) -> None:
    assert loss_of(BCE, 1.0, logit) == pytest.approx(-np.log(sigmoid(logit)), rel=1e-5)
    assert loss_of(BCE, 0.0, logit) == pytest.approx(-np.log(1 - sigmoid(logit)), rel=1e-5)


@pytest.mark.parametrize("logit", [-3.0, 0.0, 2.5])
def test_the_focal_loss_has_both_terms(logit: float) -> None:
    chance = sigmoid(logit)
    assert loss_of(FOCAL, 1.0, logit) == pytest.approx(-0.75 * (1 - chance) ** 2 * np.log(chance), rel=1e-4)
    assert loss_of(FOCAL, 0.0, logit) == pytest.approx(-0.25 * chance**2 * np.log(1 - chance), rel=1e-4)


def test_a_confident_mistake_outweighs_an_easy_example_more_under_the_focal_loss() -> None:
    mistaken, easy = loss_of(FOCAL, 0.0, 4.0), loss_of(FOCAL, 0.0, -4.0)
    assert mistaken / easy > 100 * loss_of(BCE, 0.0, 4.0) / loss_of(BCE, 0.0, -4.0)


def test_weights_are_the_frequency_of_the_other_class() -> None:
    assert loss_of(WEIGHTED, 1.0, 0.3, frequency=0.1) == pytest.approx(0.9 * loss_of(BCE, 1.0, 0.3), rel=1e-5)
    assert loss_of(WEIGHTED, 0.0, 0.3, frequency=0.1) == pytest.approx(0.1 * loss_of(BCE, 0.0, 0.3), rel=1e-5)


def test_the_weighted_loss_is_least_at_the_shifted_logit() -> None:
    frequency, share = 0.05, 0.3
    logits = np.linspace(-4, 6, 20001)
    expected = [
        share * (1 - frequency) * np.log1p(np.exp(-z)) + (1 - share) * frequency * np.log1p(np.exp(z)) for z in logits
    ]
    least = logits[int(np.argmin(expected))]
    shift = logit_shift(np.array([frequency], dtype=np.float32), WEIGHTED)[0]
    assert least - shift == pytest.approx(np.log(share / (1 - share)), abs=1e-3)


def test_only_the_weighted_loss_shifts_logits() -> None:
    frequency = np.array([0.1, 0.4], dtype=np.float32)
    assert not logit_shift(frequency, BCE).any()
    assert not logit_shift(frequency, FOCAL).any()
    assert logit_shift(frequency, WEIGHTED) == pytest.approx([np.log(9), np.log(1.5)], rel=1e-5)


def test_an_unknown_label_costs_nothing_and_teaches_nothing() -> None:
    labels = np.array([[1.0, np.nan]], dtype=np.float32)
    target = targets(labels, np.full(2, 0.5, dtype=np.float32), BCE)
    loss = build_loss(BCE)
    low, high = (float(loss(target, np.array([[0.0, z]], dtype=np.float32))) for z in (-9.0, 9.0))
    assert low == high
    assert np.isfinite(low)


def test_the_first_output_weighs_as_configured_and_weights_have_a_mean_of_one() -> None:
    settings = BinaryCrossEntropy(kind="bce", abnormality_weight=3.0)
    weights = targets(np.zeros((1, 3), dtype=np.float32), np.full(3, 0.5, dtype=np.float32), settings)[0, 1]
    assert weights[0] == pytest.approx(3 * weights[1])
    assert weights.mean() == pytest.approx(1.0)


def test_smoothing_moves_targets_towards_one_half() -> None:
    settings = BinaryCrossEntropy(kind="bce", label_smoothing=0.1)
    smoothed = targets(np.array([[1.0], [0.0]], dtype=np.float32), HALF, settings)[:, 0, 0]
    assert smoothed == pytest.approx([0.95, 0.05])


def test_gradients_reach_the_logits_through_every_loss() -> None:
    for settings in (BCE, WEIGHTED, FOCAL):
        dense = keras.layers.Dense(2)
        model = keras.Sequential([keras.Input((3,)), dense])
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss=build_loss(settings), jit_compile=False)
        before = dense.get_weights()[0].copy()
        labels = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
        model.train_on_batch(np.ones((2, 3), dtype=np.float32), targets(labels, np.array([0.3, 0.2]), settings))
        assert not np.array_equal(before, dense.get_weights()[0])


def test_frequency_counts_what_an_epoch_draws_and_only_known_labels() -> None:
    labels = np.array([[1.0], [0.0], [0.0], [np.nan]], dtype=np.float32)
    assert label_frequency(labels, np.array([1.0, 1.0, 1.0, 1.0]))[0] == pytest.approx(1.5 / 4)
    assert label_frequency(labels, np.array([1.0, 0.5, 0.5, 1.0]))[0] == pytest.approx(1.5 / 3)


def test_prior_logits_are_those_of_the_frequency() -> None:
    assert prior_logits(np.array([0.25], dtype=np.float32))[0] == pytest.approx(np.log(1 / 3), rel=1e-5)


def test_the_measure_of_all_runs_leaves_unknown_labels_out() -> None:
    labels, logits = np.array([[1.0, np.nan]]), np.array([[0.0, 50.0]])
    assert cross_entropy(labels.astype(np.float32), logits.astype(np.float32)) == pytest.approx(np.log(2), rel=1e-6)
