"""The picture keeps the anatomy visible, says what the model said, and fits whatever radiograph it is given."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from dicomnode.domain.finding import Assessment, Presence, SaliencyMap
from dicomnode.domain.frame import FloatArray
from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.terminology import ABNORMALITY
from dicomnode.results.overlay import OUTLINES, SMALLEST_SIDE, Overlay, draw
from dicomnode.results.presentation import findings_with_heat, percent, repairs
from tests.support.assessments import assessment, equipment, finding, frame
from tests.support.make import chest

REF = InstanceRef(study="1.2.1", series="1.2.2", sop_class="1.2.840.10008.5.1.4.1.1.1", sop_instance="1.2.3")
AMBER = (255, 193, 60)


def radiograph(rows: int = 1280, columns: int = 1200) -> FloatArray:
    """Return a ramp with structure everywhere, so that no part of it is taken for air."""
    ramp = np.linspace(0.2, 0.8, rows * columns, dtype=np.float32).reshape(rows, columns)
    y, x = np.mgrid[0:rows, 0:columns]
    return np.asarray(ramp + 0.1 * (((x * 96 // columns) + (y * 96 // rows)) % 2), dtype=np.float32)


def drawn(said: Assessment, pixels: FloatArray | None = None, **settings: object) -> Overlay:
    return draw(frame(REF, radiograph() if pixels is None else pixels), said, equipment(**settings))


def without_maps(said: Assessment) -> Assessment:
    return with_maps(said, np.full((7, 7), -1.0, dtype=np.float32))


def with_maps(said: Assessment, values: FloatArray) -> Assessment:
    return Assessment(
        source=said.source,
        model=said.model,
        abnormality=said.abnormality,
        findings=said.findings,
        saliency=tuple(SaliencyMap(label=entry.label, values=values) for entry in said.saliency),
        assessed_at=said.assessed_at,
    )


def has(pixels: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> bool:
    return bool((pixels == np.asarray(colour, dtype=np.uint8)).all(axis=2).any())


def anatomy(overlay: Overlay, columns: int = 1200) -> npt.NDArray[np.uint8]:
    return overlay.pixels[:, :columns]


def test_the_same_arguments_give_the_same_picture() -> None:
    said = assessment(REF, {"Mass": 0.7})
    assert (drawn(said).pixels == drawn(said).pixels).all()


def test_without_evidence_the_radiograph_stands_untouched_beside_the_panel() -> None:
    overlay = drawn(without_maps(assessment(REF, {"Mass": 0.7})))
    grey = np.round(radiograph() * 255).astype(np.uint8)
    assert overlay.shown == ()
    assert (anatomy(overlay) == grey[:, :, None]).all()
    assert overlay.pixels.shape[1] > 1200 + 500


def test_evidence_that_is_everywhere_tints_only_where_it_stands_out() -> None:
    values = np.full((7, 7), 0.6, dtype=np.float32)
    values[0, 0] = 1.0
    picture = anatomy(drawn(with_maps(assessment(REF, {"Mass": 0.7}), values)))
    corners = picture[20, 20], picture[-20, -20]
    assert [bool(np.ptp(corner)) for corner in corners] == [True, False]


def test_the_map_tints_where_the_evidence_is_and_leaves_the_rest_clear() -> None:
    said = assessment(REF, {"Mass": 0.7})
    overlay = drawn(said)
    values = next(entry.values for entry in said.saliency if entry.label == "Mass")
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    hot = anatomy(overlay)[round((row + 0.5) * 1280 / 7), round((column + 0.5) * 1200 / 7)]
    assert int(hot[0]) - int(hot[2]) > 40
    far = anatomy(overlay)[-60:, -60:] if row < 4 else anatomy(overlay)[:60, :60]
    assert (far[..., 0] == far[..., 2]).all()


def test_under_the_hottest_spot_contrast_of_the_anatomy_survives() -> None:
    pixels = np.full((1280, 1200), 0.4, dtype=np.float32)
    pixels[::2] = 0.6
    overlay = drawn(assessment(REF, {"Mass": 0.7}), pixels)
    bright, dark = (anatomy(overlay)[start::2].astype(int) for start in (0, 1))
    contrast = np.abs(bright - dark)[20:-20, 20:-20].max(axis=2)
    assert np.percentile(contrast, 1) > 0.5 * 0.2 * 255


def test_every_positive_finding_is_shown_and_the_first_ones_have_an_outline_of_their_own() -> None:
    said = assessment(REF, {"Mass": 0.9, "Nodule": 0.8, "Effusion": 0.7, "Edema": 0.6, "Fibrosis": 0.5, "Hernia": 0.4})
    overlay = drawn(said)
    assert overlay.shown == ("Mass", "Nodule", "Effusion", "Edema", "Fibrosis", "Hernia")
    assert all(has(anatomy(overlay), colour) for colour in OUTLINES)
    alone = drawn(assessment(REF, {"Mass": 0.9}))
    assert [has(anatomy(alone), colour) for colour in OUTLINES] == [True, False, False]


@pytest.mark.parametrize(
    "said",
    [
        assessment(REF, {"Effusion": 0.2, "Mass": 0.29}),
        assessment(REF, {}, undetermined=("Hernia",)),
        assessment(REF, {}, undetermined=("Hernia",), abnormality=0.29),
    ],
)
def test_where_nothing_is_above_its_threshold_there_is_neither_heat_nor_outline(said: Assessment) -> None:
    overlay = drawn(said)
    grey = np.round(radiograph() * 255).astype(np.uint8)
    assert overlay.shown == ()
    assert (anatomy(overlay) == grey[:, :, None]).all()
    assert overlay.content.legend() == ("No heatmap", "Nothing is above its threshold.")


def test_where_only_abnormality_is_above_its_threshold_its_map_is_drawn() -> None:
    overlay = drawn(assessment(REF, {"Mass": 0.29}, abnormality=0.6))
    assert overlay.shown == (ABNORMALITY,)
    assert overlay.content.legend()[1] == "Shown: Abnormality"
    assert has(anatomy(overlay), OUTLINES[0])


def test_a_map_that_was_asked_for_is_drawn_and_its_legend_says_that_it_is_below_threshold() -> None:
    said = assessment(REF, {"Mass": 0.2})
    mass = next(entry for entry in said.findings if entry.label == "Mass")
    overlay = draw(frame(REF, radiograph()), said, equipment(), only=mass)
    assert overlay.shown == ("Mass",)
    assert overlay.content.legend()[1] == "Shown: Mass, below threshold"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("collimator", [0, 60])
def test_heat_and_outlines_never_lie_on_air_or_on_the_collimator(seed: int, collimator: int) -> None:
    pixels = chest(1280, 1200, seed=seed, collimator=collimator)
    values = np.ones((7, 7), dtype=np.float32)
    values[0, 0] = values[0, -1] = values[3, -1] = 4.0
    said = with_maps(assessment(REF, {"Mass": 0.7}), values)
    coloured = np.ptp(anatomy(drawn(said, pixels)).astype(int), axis=2) > 0
    outside = cv2.erode((pixels < 0.12).astype(np.uint8), np.ones((21, 21))) > 0
    outside[:collimator] = outside[-collimator or 1280 :] = outside[:, :collimator] = True
    assert outside.mean() > 0.02
    assert coloured.mean() > 0.01
    assert not (coloured & outside).any()


@pytest.mark.parametrize(
    ("rows", "columns", "scale"),
    [
        (1280, 1200, 1.0),
        (256, 200, 5.0),
        (2560, 4096, 0.3125),
        (2048, 2048, 0.625),
        (2560, 1000, 0.5),
        (640, 1280, 1.0),
    ],
)
def test_the_radiograph_keeps_its_size_unless_it_is_too_large_or_too_small_for_the_text(
    rows: int, columns: int, scale: float
) -> None:
    overlay = drawn(assessment(REF), radiograph(rows, columns))
    assert overlay.scale == pytest.approx(scale)
    height, width, _ = overlay.pixels.shape
    assert height == max(round(rows * scale), SMALLEST_SIDE)
    assert width > round(columns * scale)
    assert overlay.pixels.flags.c_contiguous


def test_the_configured_maximum_also_bounds_the_enlargement() -> None:
    assert drawn(assessment(REF), radiograph(256, 256), maximum_side=512).scale == pytest.approx(2.0)


def test_a_repaired_image_says_so_in_a_colour_of_warning() -> None:
    said = assessment(REF, {"Mass": 0.7})
    plain = draw(frame(REF, radiograph()), said, equipment(mark=""))
    repaired = draw(frame(REF, radiograph(), turns=1, inverted=True), said, equipment(mark=""))
    assert not has(plain.pixels[:, 1216:], AMBER)
    assert has(repaired.pixels[:, 1216:], AMBER)
    assert repairs(frame(REF, radiograph(), turns=1, inverted=True, mirrored=True)) == [
        "Image mirrored left to right by this software",
        "Image turned by 90° counter-clockwise by this software",
        "Grey scale inverted by this software",
    ]
    assert repairs(frame(REF, radiograph())) == []


def test_the_mark_is_burned_in_unless_it_is_configured_away() -> None:
    said = assessment(REF, {"Mass": 0.7})
    assert has(drawn(said).pixels[:, 1216:], AMBER)
    assert not has(drawn(said, mark="").pixels[:, 1216:], AMBER)


def test_a_model_with_many_labels_still_fits_the_panel() -> None:
    base = assessment(REF)
    many = Assessment(
        source=REF,
        model=base.model,
        abnormality=base.abnormality,
        findings=tuple(finding(f"A finding with a very long name, number {i}", 0.5) for i in range(60)),
        saliency=base.saliency,
        assessed_at=base.assessed_at,
    )
    overlay = drawn(many)
    assert overlay.pixels.shape[0] == 1280
    assert all(entry.presence is Presence.PRESENT for entry in findings_with_heat(many))
    assert len(findings_with_heat(many)) == 60


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "<0.1%"), (0.0123, "1.2%"), (0.5, "50.0%"), (0.9995, ">99.9%"), (1.0, ">99.9%")]
)
def test_probabilities_are_written_for_reading(value: float, text: str) -> None:
    assert percent(value) == text
