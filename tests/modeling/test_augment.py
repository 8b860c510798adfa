import numpy as np
import pytest

from dicomnode.bundle.phantom import draw_chest
from modeling.augment import augmented_inputs, network_inputs
from modeling.config import AugmentSection

STILL = AugmentSection(rotation_degrees=0, zoom=0, shift=0, brightness=0, contrast=0, gamma=0, blur=0)
LIVELY = AugmentSection(rotation_degrees=10, zoom=0.1, shift=0.06, brightness=0.1, contrast=0.2, gamma=0.2, blur=0.3)
IMAGES = np.rint(np.stack([draw_chest(64, 64, np.random.default_rng(n)) for n in range(3)]) * 255).astype(np.uint8)


def test_no_change_allowed_means_the_network_sees_the_same_image() -> None:
    still = augmented_inputs(IMAGES, 64, STILL, np.random.default_rng(0))
    assert np.allclose(still, network_inputs(IMAGES, 64), atol=1e-6)


def test_enlarging_while_augmenting_keeps_the_image_in_place() -> None:
    still = augmented_inputs(IMAGES, 96, STILL, np.random.default_rng(0))
    plain = network_inputs(IMAGES, 96)
    inner = np.s_[:, 8:-8, 8:-8]
    assert np.abs(still[inner] - plain[inner]).mean() < 0.03


def test_each_draw_differs_and_stays_in_range() -> None:
    random = np.random.default_rng(0)
    first, second = (augmented_inputs(IMAGES, 64, LIVELY, random) for _ in range(2))
    assert not np.allclose(first, second)
    assert first.min() >= 0
    assert first.max() <= 1


def test_an_erased_rectangle_has_one_grey_value_and_its_bound() -> None:
    random = np.random.default_rng(5)
    for _ in range(20):
        (changed,) = augmented_inputs(IMAGES[:1], 64, AugmentSection(erase=0.4), random)
        rows, columns = np.nonzero(np.abs(changed - network_inputs(IMAGES[:1], 64)[0])[..., 0] > 1e-6)
        if len(rows):
            assert np.ptp(rows) < 26
            assert np.ptp(columns) < 26
            assert len(np.unique(changed[rows, columns])) == 1


def test_a_lower_resolution_takes_away_detail_alone() -> None:
    noisy = np.random.default_rng(6).integers(0, 256, (1, 64, 64), dtype=np.uint8)
    changed = augmented_inputs(noisy, 64, AugmentSection(least_resolution=0.3), np.random.default_rng(0))
    assert changed.std() < 0.8 * network_inputs(noisy, 64).std()
    assert changed.mean() == pytest.approx(network_inputs(noisy, 64).mean(), abs=0.01)


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    grey = np.full((1, 64, 64), 128, dtype=np.uint8)
    noisy = augmented_inputs(grey, 64, AugmentSection(noise=0.05), np.random.default_rng(0))
    assert noisy.std() == pytest.approx(0.05, rel=0.1)


def dot(row: int, column: int, side: int = 65) -> np.ndarray:
    image = np.zeros((1, side, side), dtype=np.uint8)
    image[0, row - 1 : row + 2, column - 1 : column + 2] = 255
    return image


def centre(image: np.ndarray) -> tuple[float, float]:
    weights = image[..., 0] / image.sum()
    rows, columns = np.indices(weights.shape)
    return float((rows * weights).sum()), float((columns * weights).sum())


def places(settings: AugmentSection, image: np.ndarray, times: int = 40) -> np.ndarray:
    random = np.random.default_rng(3)
    return np.array([centre(augmented_inputs(image, 65, settings, random)[0]) for _ in range(times)])


def test_rotation_keeps_the_distance_from_the_centre_and_its_bound() -> None:
    found = places(AugmentSection(rotation_degrees=15), dot(32, 52)) - 32
    assert np.allclose(np.hypot(*found.T), 20, atol=0.3)
    angles = np.rad2deg(np.arctan2(found[:, 0], found[:, 1]))
    assert 8 < np.abs(angles).max() <= 15.1
    assert angles.min() < 0 < angles.max()


def test_normal_draws_pass_the_bound_that_uniform_ones_keep() -> None:
    found = places(AugmentSection(rotation_degrees=15, draw="normal"), dot(32, 52), times=200) - 32
    angles = np.rad2deg(np.arctan2(found[:, 0], found[:, 1]))
    assert np.abs(angles).max() > 25
    assert np.std(angles) == pytest.approx(15, rel=0.2)


def test_shear_moves_along_the_row_as_far_as_the_row_is_from_the_centre() -> None:
    found = places(AugmentSection(shear_degrees=20), dot(52, 32)) - 32
    assert np.allclose(found[:, 0], 20, atol=0.3)
    assert 3 < np.abs(found[:, 1]).max() <= 20 * np.tan(np.deg2rad(20)) + 0.3


def test_zoom_changes_the_distance_alone() -> None:
    found = places(AugmentSection(zoom=0.2), dot(32, 52)) - 32
    assert np.allclose(found[:, 0], 0, atol=0.3)
    assert found[:, 1].min() < 18
    assert 22 < found[:, 1].max() <= 24.3


def test_shift_moves_everything_within_its_share_of_the_side() -> None:
    found = places(AugmentSection(shift=0.1), dot(32, 32)) - 32
    assert 3 < np.abs(found).max() <= 6.6


def test_a_flip_mirrors_left_and_right_and_only_when_asked() -> None:
    flipped = augmented_inputs(IMAGES, 64, AugmentSection(flip=1.0), np.random.default_rng(0))
    assert np.allclose(flipped, network_inputs(IMAGES, 64)[:, :, ::-1], atol=1e-5)
    half = [places(AugmentSection(flip=0.5), dot(32, 52), times=60)[:, 1]]
    assert 15 < int((np.array(half) < 32).sum()) < 45


@pytest.mark.parametrize(("border", "filled"), [("black", 0.0), ("edge", 1.0), ("reflect", 1.0)])
def test_the_border_fills_what_moves_into_view(border: str, filled: float) -> None:
    white = np.full((1, 64, 64), 255, dtype=np.uint8)
    settings = AugmentSection.model_validate({"shift": 0.3, "border": border})
    moved = [augmented_inputs(white, 64, settings, np.random.default_rng(n))[0] for n in range(5)]
    assert min(image.min() for image in moved) == pytest.approx(filled, abs=1e-4)


def test_a_reflected_border_shows_what_lies_inside() -> None:
    image = np.zeros((1, 64, 64), dtype=np.uint8)
    image[:, :, 20:] = 255
    settings = AugmentSection(shift=0.2, border="reflect")
    moved = augmented_inputs(image, 64, settings, np.random.default_rng(1))[0]
    assert {0, 1} <= set(np.rint(moved[32, :, 0]).astype(int))


def test_noise_has_the_deviation_asked_for() -> None:
    grey = np.full((1, 64, 64), 128, dtype=np.uint8)
    noisy = augmented_inputs(grey, 64, AugmentSection(noise=0.05), np.random.default_rng(0))
    assert noisy.std() == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("change", ["brightness", "contrast", "gamma"])
def test_each_grey_scale_change_moves_grey_values_and_keeps_places(change: str) -> None:
    settings = AugmentSection.model_validate({change: 0.3})
    changed = augmented_inputs(IMAGES, 64, settings, np.random.default_rng(0))
    plain = network_inputs(IMAGES, 64)
    assert np.abs(changed - plain).mean() > 0.01
    assert min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(changed, plain, strict=True)) > 0.95


def test_blur_takes_the_fine_detail_away() -> None:
    fine = (np.indices((1, 64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert augmented_inputs(fine, 64, AugmentSection(blur=1.0), np.random.default_rng(0)).std() < 0.05
    assert augmented_inputs(fine, 64, AugmentSection(), np.random.default_rng(0)).std() > 0.4
