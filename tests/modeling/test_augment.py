import numpy as np

from modeling.augment import augmented_inputs, network_inputs
from modeling.config import AugmentSection
from modeling.phantom import chest_phantom

STILL = AugmentSection(rotation_degrees=0, zoom=0, shift=0, brightness=0, contrast=0, gamma=0, blur=0)
LIVELY = AugmentSection(rotation_degrees=10, zoom=0.1, shift=0.06, brightness=0.1, contrast=0.2, gamma=0.2, blur=0.3)
IMAGES = np.rint(np.stack([chest_phantom(64, np.random.default_rng(n)) for n in range(3)]) * 255).astype(np.uint8)


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
