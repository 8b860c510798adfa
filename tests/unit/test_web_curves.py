"""Where the curves of an output stand in their plane."""

import pytest

from dicomnode.bundle.manifest import Calibration, Curves, LabelEntry, OperatingPointEntry, ReliabilityBin, RocCurve
from dicomnode.web.model import SIDE, is_shifted, reliability_plot, roc_plot
from tests.support.bundles import made_curves


def point(sensitivity: float, specificity: float, **more: object) -> OperatingPointEntry:
    return OperatingPointEntry.model_validate(
        {"threshold": 0.3, "sensitivity": sensitivity, "specificity": specificity}
        | {"derived_on": "nothing", "chosen_by": "hand"}
        | more
    )


def label(curves: Curves | None = None, *, positives: int = 200, **points: OperatingPointEntry) -> LabelEntry:
    return LabelEntry(
        name="Mass",
        code=None,
        site=None,
        calibration=Calibration(slope=1, intercept=0),
        operating_points=points or {"standard": point(0.8, 0.7)},
        positives=positives,
        curves=curves,
    )


def places(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, _, y in (place.partition(",") for place in line.split())]


def bins(*held: tuple[float, float, float]) -> Curves:
    """Return curves with bins of 100 images: predicted, observed and the interval's upper end."""
    made = [ReliabilityBin(predicted=said, observed=seen, low=0.0, high=high, images=100) for said, seen, high in held]
    roc = RocCurve(false_positive_rate=(0, 1), sensitivity=(0, 1))
    return Curves(derived_on="x", images=100 * len(made), patients=1, roc=roc, reliability=tuple(made))


def test_a_curve_and_its_band_go_from_corner_to_corner() -> None:
    plot = roc_plot(label(made_curves()), "standard", side=100)
    assert places(plot.line) == [(0, 100), (10, 50), (30, 20), (100, 0)]
    assert places(plot.band) == [(0, 95), (10, 43), (30, 16), (100, 0), (100, 0), (30, 25), (10, 58), (0, 100)]
    assert [(tick.at, tick.said) for tick in plot.ticks][:2] == [(0, "0"), (20, "20")]


def test_without_a_curve_the_line_joins_the_operating_points() -> None:
    plot = roc_plot(label(standard=point(0.8, 0.7), strict=point(0.3, 0.95)), "standard", side=100)
    assert places(plot.line) == [(0, 100), (5, 70), (30, 20), (100, 0)]
    assert plot.band == ""


def test_operating_points_of_one_place_are_one_named_by_the_one_in_use_first() -> None:
    entry = label(youden=point(0.8, 0.7), standard=point(0.801, 0.7), strict=point(0.3, 0.95))
    strict, standard = roc_plot(entry, "standard").points
    assert (strict.names, strict.is_in_use) == (("strict",), False)
    assert (standard.names, standard.is_in_use) == (("standard", "youden"), True)
    assert standard.entry.sensitivity == 0.801


def test_the_intervals_of_a_point_are_bars_through_it() -> None:
    held = point(0.8, 0.7, sensitivity_interval=(0.75, 0.84), specificity_interval=(0.66, 0.73))
    (placed,) = roc_plot(label(standard=held), "standard", side=100).points
    assert (placed.x, placed.y) == (30, 20)
    assert placed.across == (27, 34)
    assert placed.along == (16, 25)
    assert roc_plot(label(), "standard").points[0].across is None


def test_names_stand_apart_inside_the_drawing() -> None:
    entry = label(low=point(0.01, 0.99), lower=point(0.04, 0.97), a_longer_name=point(0.97, 0.1))
    low, lower, right = roc_plot(entry, "low").points
    assert low.name_y <= SIDE
    assert low.name_y - lower.name_y >= 13
    assert low.is_begun
    assert low.name_x > low.x
    assert not right.is_begun
    assert right.name_x < SIDE + 16


def test_a_rare_labels_bins_fill_the_plane() -> None:
    plot = reliability_plot(bins((0.001, 0.0, 0.004), (0.016, 0.02, 0.026)), threshold=0.034, side=100)
    assert [(one.x, one.y, one.along) for one in plot.bins][1] == (53.33, 33.33, (13.33, 100))
    assert [tick.said for tick in plot.ticks] == ["0", "1", "2", "3"]
    assert plot.threshold is None


@pytest.mark.parametrize(("most", "ticks"), [(0.05, 6), (0.051, 4), (0.43, 6), (1.0, 6), (0.0, 3)])
def test_an_axis_has_few_ticks_and_holds_everything(most: float, ticks: int) -> None:
    plot = reliability_plot(bins((most, most, most)), threshold=0.0, side=100)
    assert len(plot.ticks) == ticks
    assert plot.ticks[-1].at == 100
    assert 0 <= plot.bins[0].x <= 100
    assert plot.threshold == 0


def test_shares_shifted_to_another_frequency_are_told() -> None:
    curves = bins((0.1, 0.1, 0.2), (0.3, 0.3, 0.4))
    assert not is_shifted(label(curves, positives=40), curves)
    assert is_shifted(label(curves, positives=90), curves)
