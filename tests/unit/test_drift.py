"""Intervals of rates and the index of scores against the textbook, and that little is said of few images."""

import math
import random

import pytest

from dicomnode.bundle.scores import score_counts
from dicomnode.domain.wilson import wilson
from dicomnode.monitoring.drift import Change, Rate, compare_rates, newcombe, shift


def test_wilson_is_that_of_the_textbook() -> None:
    low, high = wilson(15, 148)
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605), "Newcombe 1998, table I"
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 20)[0] == 0.0
    assert round(wilson(0, 20)[1], 4) == 0.1611


def test_the_interval_of_a_difference_is_that_of_the_textbook() -> None:
    low, high = newcombe(Rate(hits=56, images=70), Rate(hits=48, images=80))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339), "Newcombe 1998, table II"


@pytest.mark.parametrize(("later", "former"), [((5, 99), (50, 1000)), ((50, 1000), (5, 99)), ((0, 0), (5, 1000))])
def test_of_few_images_nothing_is_said(later: tuple[int, int], former: tuple[int, int]) -> None:
    found = compare_rates(Rate(hits=later[0], images=later[1]), Rate(hits=former[0], images=former[1]))
    assert (found.change, found.difference) == (Change.FEW, None)
    assert shift((later[1],), (former[1],)).change is Change.FEW


@pytest.mark.parametrize(
    ("later", "change"),
    [
        (0.10, Change.NONE),
        (0.13, Change.SLIGHT),
        (0.17, Change.MODERATE),
        (0.40, Change.LARGE),
        (0.02, Change.MODERATE),
    ],
)
def test_a_difference_of_rates_has_a_size(later: float, change: Change) -> None:
    assert compare_rates(Rate(hits=round(later * 3000), images=3000), Rate(hits=300, images=3000)).change is change


def test_more_comparisons_ask_for_more() -> None:
    later, former = Rate(hits=66, images=500), Rate(hits=43, images=500)
    assert compare_rates(later, former).change is not Change.NONE
    assert compare_rates(later, former, comparisons=15).change is Change.NONE


def test_the_index_is_that_of_its_definition() -> None:
    found = shift((3000, 4000, 3000), (2000, 5000, 3000))
    assert found.psi == pytest.approx(0.1 * math.log(1.5) - 0.1 * math.log(0.8), rel=0.01)
    assert (found.bins, found.change) == (3, Change.SLIGHT)
    assert shift((100, 100, 800), (800, 100, 100)).change is Change.LARGE


def test_the_same_distribution_is_no_shift_however_often_it_is_drawn() -> None:
    draws = random.Random(4)
    flagged = 0
    for _ in range(400):
        former = score_counts(draws.betavariate(1, 8) for _ in range(500))
        later = score_counts(draws.betavariate(1, 8) for _ in range(200))
        flagged += shift(later, former).change is not Change.NONE
    assert flagged <= 0.08 * 400, "one of twenty is meant"


def test_rare_bins_are_joined_so_that_none_decides_alone() -> None:
    found = shift((0, 0, 990, 0, 10), (1, 2, 980, 3, 14))
    assert found.bins <= 2
    assert found.change in (Change.NONE, Change.UNKNOWN)
