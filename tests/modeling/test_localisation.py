"""Maps compared with boxes, beside baselines that see no image."""

import numpy as np
import pytest

from dicomnode.domain.finding import SaliencyMap
from modeling.evaluation.pointing import Box, compare_with_boxes, localisation

LEFT, RIGHT = Box(left=0.0, top=0.25, width=0.25, height=0.25), Box(left=0.75, top=0.25, width=0.25, height=0.25)


def map_with(*cells: tuple[int, int, float]) -> SaliencyMap:
    values = np.full((8, 8), -1.0, dtype=np.float32)
    for row, column, value in cells:
        values[row, column] = value
    return SaliencyMap(label="Mass", values=values)


def test_the_share_inside_counts_positive_values_alone() -> None:
    boxes = {"a": {"Mass": (LEFT,)}}
    (inside,) = compare_with_boxes("a.png", "1", [map_with((2, 0, 5.0), (3, 1, 5.0))], boxes)
    (outside,) = compare_with_boxes("a.png", "1", [map_with((6, 6, 5.0))], boxes)
    (nothing,) = compare_with_boxes("a.png", "1", [map_with()], boxes)
    assert inside.share_inside > 0.7
    assert outside.share_inside == pytest.approx(0.0, abs=0.02)
    assert nothing.share_inside == 0.0


def test_the_mean_box_is_of_other_patients_and_is_the_baseline_of_the_gain() -> None:
    # Every patient but the last has the box on the left; every map points to its own box.
    maps = []
    for patient in range(10):
        box = LEFT if patient < 9 else RIGHT
        cell = (3, 1, 9.0) if patient < 9 else (3, 7, 9.0)
        maps += compare_with_boxes(f"{patient}.png", str(patient), [map_with(cell)], {str(patient): {"Mass": (box,)}})
    found = localisation(maps, rounds=200, seed=0)["Mass"]
    assert (found.images, found.hits) == (10, 10)
    assert found.mean_box_rate is not None
    assert found.mean_box_rate.value == pytest.approx(0.9)
    assert found.rate_gain is not None
    assert found.rate_gain.value == pytest.approx(0.1)
    assert found.centre_rate is not None
    assert found.centre_rate.value == 0.0
    assert found.flat_share == pytest.approx(1 / 16)
    assert found.mean_box_share is not None
    assert 0.7 < found.mean_box_share.value < 0.9


def test_images_of_one_patient_have_no_mean_box() -> None:
    maps = []
    for number in range(3):
        maps += compare_with_boxes(f"{number}.png", "1", [map_with((3, 1, 9.0))], {str(number): {"Mass": (LEFT,)}})
    found = localisation(maps, rounds=100, seed=0)["Mass"]
    assert found.mean_box_rate is None
    assert found.rate_gain is None
    assert found.rate is not None


def test_overlapping_boxes_count_once() -> None:
    (compared,) = compare_with_boxes("a.png", "1", [map_with((3, 1, 9.0))], {"a": {"Mass": (LEFT, LEFT)}})
    assert localisation([compared], rounds=100, seed=0)["all"].flat_share == pytest.approx(1 / 16)
