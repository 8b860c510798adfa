"""Where the body is in a radiograph: not in the air, not behind the collimator, and all of it where nobody can tell."""

import numpy as np
import pytest

from dicomnode.domain.frame import FloatArray
from dicomnode.results.body import BoolArray, body_mask, onto
from tests.support.make import chest

SHAPE = (1280, 1120)


def mask_of(pixels: FloatArray) -> BoolArray:
    """Return where the body is, at the size of the pixels."""
    return onto(body_mask(pixels), pixels.shape) > 0


def lungs_of(mask: BoolArray) -> BoolArray:
    """Return the part of a mask where drawn chests have their lungs."""
    rows, columns = mask.shape
    return mask[int(0.3 * rows) : int(0.65 * rows), int(0.27 * columns) : int(0.73 * columns)]


@pytest.mark.parametrize("seed", range(5))
def test_the_lungs_of_a_drawn_chest_are_body_and_the_air_beside_the_neck_is_not(seed: int) -> None:
    mask = mask_of(chest(*SHAPE, seed=seed))
    assert lungs_of(mask).all()
    assert not mask[:40, :40].any()
    assert not mask[:40, -40:].any()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collimator_is_outside_at_either_end_of_the_grey_scale(value: float) -> None:
    pixels = np.full(SHAPE, value, dtype=np.float32)
    pixels[200:-200, 150:-150] = chest(SHAPE[0] - 400, SHAPE[1] - 300)
    mask = mask_of(pixels)
    assert lungs_of(mask).all()
    assert not mask[:180].any()
    assert not mask[:, :130].any()


def test_a_line_along_the_edges_of_a_scan_does_not_hide_the_air() -> None:
    pixels = chest(*SHAPE).copy()
    pixels[:3] = pixels[-3:] = pixels[:, :3] = pixels[:, -3:] = 0.6
    assert not mask_of(pixels)[10:60, 10:60].any()


def test_a_lung_as_dark_as_air_that_runs_into_it_stays_body() -> None:
    pixels = chest(*SHAPE).copy()
    pixels[: SHAPE[0] // 2, 220:420] = 0.02
    assert mask_of(pixels)[int(0.35 * SHAPE[0]) : int(0.45 * SHAPE[0]), 330:400].all()


def test_a_white_abdomen_along_the_lower_edge_is_body() -> None:
    pixels = chest(*SHAPE).copy()
    pixels[-300:] = 1.0
    assert mask_of(pixels)[-250:, 300:-300].all()


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_in_an_image_without_structure_everything_counts_as_body(value: float) -> None:
    assert body_mask(np.full((300, 200), value, dtype=np.float32)).all()


@pytest.mark.parametrize("shape", [(200, 2000), (2000, 200), (201, 203)])
def test_the_mask_has_the_proportions_of_the_image(shape: tuple[int, int]) -> None:
    mask = body_mask(np.asarray(np.random.default_rng(1).random(shape), dtype=np.float32))
    assert max(mask.shape) == 256
    assert mask.shape[0] / mask.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.05)
