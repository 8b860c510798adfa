"""The presentation state: contours on the source's own pixels, and the image shown as it is without them."""

from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from dicomnode.domain.answer import ResultKind
from dicomnode.domain.frame import FloatArray, Frame
from dicomnode.domain.instance import InstanceRef
from dicomnode.results.body import BoolArray
from dicomnode.results.gsps import MAXIMUM_POINTS, contours
from dicomnode.results.part10 import decode
from dicomnode.results.presentation import OUTLINE_LEVEL, heat_of
from tests.support.assessments import finding, frame, saliency
from tests.support.make import build, lut
from tests.support.products import image_results

REF = InstanceRef(study="1.2.3", series="1.2.3.4", sop_class="1.2.840.10008.5.1.4.1.1.1", sop_instance="1.2.3.4.5")


def state(source: Dataset, probabilities: dict[str, float] | None = None, **repair: Any) -> Dataset:
    (made,) = image_results(ResultKind.PRESENTATION_STATE, source, probabilities or {"Mass": 0.7}, **repair)
    return decode(made.part10)


def blank(rows: int, columns: int, *, turns: int = 0, mirrored: bool = False) -> Frame:
    return frame(REF, np.zeros((rows, columns), dtype=np.float32), turns=turns, mirrored=mirrored)


def everywhere() -> BoolArray:
    return np.ones((256, 256), dtype=bool)


def enlarged(values: FloatArray, shape: tuple[int, int]) -> FloatArray:
    heat = heat_of(values, shape, everywhere())
    assert heat is not None
    return heat.values


def points_of(ds: Dataset, annotation: int = 0) -> np.ndarray:
    data = ds.GraphicAnnotationSequence[annotation].GraphicObjectSequence[0].GraphicData
    return np.asarray(data, dtype=float).reshape(-1, 2)


def test_it_refers_to_the_analysed_image_and_no_other() -> None:
    source = build("dx")
    ds = state(source)
    (series,) = ds.ReferencedSeriesSequence
    referenced = [
        series.ReferencedImageSequence,
        ds.GraphicAnnotationSequence[0].ReferencedImageSequence,
        ds.DisplayedAreaSelectionSequence[0].ReferencedImageSequence,
    ]
    assert (ds.StudyInstanceUID, series.SeriesInstanceUID) == (source.StudyInstanceUID, source.SeriesInstanceUID)
    for items in referenced:
        assert [item.ReferencedSOPInstanceUID for item in items] == [source.SOPInstanceUID]
    assert (ds.Modality, ds.SeriesNumber, ds.InstanceNumber) == ("PR", 9904, 2)
    assert ds.SeriesDescription == "AI contours - Research use only - not for diagnosis"


def test_each_positive_finding_has_a_layer_a_closed_line_and_a_text() -> None:
    source = build("cr")
    ds = state(source, {"Mass": 0.7, "Pleural_Thickening": 0.5, "Edema": 0.29})
    texts = [item.TextObjectSequence[0].UnformattedTextValue for item in ds.GraphicAnnotationSequence]
    assert texts == [
        "AI: Mass 70.0%, above threshold (30.0%) (not reviewed)",
        "AI: Pleural Thickening 50.0%, above threshold (30.0%) (not reviewed)",
    ]
    assert [item.GraphicLayer for item in ds.GraphicAnnotationSequence] == ["AI_1", "AI_2"]
    assert [layer.GraphicLayer for layer in ds.GraphicLayerSequence] == ["AI_1", "AI_2"]
    assert ds.GraphicLayerSequence[0].GraphicLayerDescription == "Mass, contour at 60% of its map"
    for number in (0, 1):
        points = points_of(ds, number)
        assert np.array_equal(points[0], points[-1])
        assert 4 < len(points) <= MAXIMUM_POINTS
        assert (points.min(axis=0) >= 0).all()
        assert (points.max(axis=0) <= [source.Columns, source.Rows]).all()
    assert not np.array_equal(points_of(ds, 0), points_of(ds, 1))


def test_only_as_many_have_contours_as_there_are_colours_to_tell_them_apart() -> None:
    ds = state(build("cr"), {"Mass": 0.9, "Nodule": 0.8, "Edema": 0.7, "Hernia": 0.6, "Fibrosis": 0.5})
    drawn = ["GraphicObjectSequence" in item for item in ds.GraphicAnnotationSequence]
    assert drawn == [True, True, True, False, False]
    assert all(item.TextObjectSequence for item in ds.GraphicAnnotationSequence)
    colours = [tuple(layer.GraphicLayerRecommendedDisplayCIELabValue) for layer in ds.GraphicLayerSequence]
    assert len(set(colours[:4])) == 4
    assert ds.GraphicLayerSequence[3].GraphicLayerDescription == "Hernia, text only"


def test_where_nothing_is_above_its_threshold_there_is_none() -> None:
    assert image_results(ResultKind.PRESENTATION_STATE, build("cr"), {"Mass": 0.29}, abnormality=0.29) == []


def test_where_only_abnormality_is_above_its_threshold_the_contour_is_its_own() -> None:
    (layer,) = state(build("cr"), {"Mass": 0.29}).GraphicLayerSequence
    assert layer.GraphicLayerDescription == "Abnormality, contour at 60% of its map"


@pytest.mark.parametrize("shape", [(700, 700), (1400, 2100), (300, 200)])
def test_the_line_encloses_what_lies_above_the_level(shape: tuple[int, int]) -> None:
    entry = saliency("Mass", 2, 4)
    (line,) = contours(entry, blank(*shape), everywhere())
    values = enlarged(entry.values, shape)
    x, y = np.clip(line.astype(int), 0, [shape[1] - 1, shape[0] - 1]).T
    assert np.abs(values[y, x] - OUTLINE_LEVEL).max() < 0.1
    rows, columns = np.nonzero(values >= OUTLINE_LEVEL)
    tolerance = 2 + max(shape) / 256
    assert np.allclose(line.min(axis=0), [columns.min(), rows.min()], atol=tolerance)
    assert np.allclose(line.max(axis=0), [columns.max() + 1, rows.max() + 1], atol=tolerance)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_lines_on_a_righted_image_are_turned_and_mirrored_back(turns: int, mirrored: bool) -> None:
    stored = np.zeros((600, 400), dtype=np.float32)
    upright = np.rot90(stored, turns)
    entry = saliency("Mass", 1, 4)
    on_source = np.rot90(enlarged(entry.values, upright.shape), -turns)
    on_source = np.fliplr(on_source) if mirrored else on_source
    (line,) = contours(entry, blank(*upright.shape, turns=turns, mirrored=mirrored), everywhere())
    peak_row, peak_column = np.unravel_index(on_source.argmax(), on_source.shape)
    assert on_source.shape == stored.shape
    assert np.allclose(line.mean(axis=0), [peak_column, peak_row], atol=25)


def test_a_line_of_many_points_is_thinned() -> None:
    rough = np.random.default_rng(1).random((96, 96)).astype(np.float32)
    rough[20:76, 20:76] += 1.0
    entry = saliency("Mass", 1, 1)
    lines = contours(type(entry)(label="Mass", values=rough), blank(512, 512), everywhere())
    assert lines
    assert max(len(line) for line in lines) <= MAXIMUM_POINTS


def test_a_map_without_evidence_has_no_line_and_the_finding_keeps_its_text() -> None:
    entry = saliency("Mass", 1, 1)
    nothing = -np.ones((7, 7), dtype=np.float32)
    assert contours(type(entry)(label="Mass", values=nothing), blank(64, 64), everywhere()) == []


def test_lines_stay_on_the_body() -> None:
    half = everywhere()
    half[:, 128:] = False
    (line,) = contours(saliency("Mass", 3, 3), blank(512, 512), half)
    assert line[:, 0].max() <= 256 + 2


def test_lines_and_the_report_share_tracking_uids() -> None:
    source = build("cr")
    one = state(source).GraphicAnnotationSequence[0].GraphicObjectSequence[0]
    both = state(source, {"Mass": 0.7, "Edema": 0.5}).GraphicAnnotationSequence
    assert one.TrackingID == finding("Mass", 0.7).label
    assert one.TrackingUID == both[0].GraphicObjectSequence[0].TrackingUID
    assert one.TrackingUID != both[1].GraphicObjectSequence[0].TrackingUID


def test_the_displayed_area_is_the_whole_stored_image() -> None:
    item = state(build("cr", rows=640, columns=560)).DisplayedAreaSelectionSequence[0]
    assert list(item.DisplayedAreaTopLeftHandCorner) == [1, 1]
    assert list(item.DisplayedAreaBottomRightHandCorner) == [560, 640]
    assert list(item.PresentationPixelAspectRatio) == [1, 1]
    calibrated = state(build("sc", spacing_mm=(0.2, 0.3))).DisplayedAreaSelectionSequence[0]
    assert [float(value) for value in calibrated.PresentationPixelSpacing] == [0.2, 0.3]
    assert "PresentationPixelAspectRatio" not in calibrated


def test_rescale_and_windows_of_the_source_stay() -> None:
    ds = state(build("cr", rescale=(2.0, -1024.0), window=[(500.0, 300.0), (40.5, 80.0)], window_function="SIGMOID"))
    assert (float(ds.RescaleSlope), float(ds.RescaleIntercept), ds.RescaleType) == (2.0, -1024.0, "US")
    (voi,) = ds.SoftcopyVOILUTSequence
    assert [float(value) for value in voi.WindowCenter] == [500.0, 40.5]
    assert [float(value) for value in voi.WindowWidth] == [300.0, 80.0]
    assert voi.VOILUTFunction == "SIGMOID"


def test_an_image_without_a_window_is_shown_in_the_one_the_model_saw() -> None:
    (voi,) = state(build("cr"), window=(100.0, 3100.5)).SoftcopyVOILUTSequence
    assert (float(voi.WindowCenter), float(voi.WindowWidth)) == (1600.25, 3000.5)
    assert voi.VOILUTFunction == "LINEAR_EXACT"
    (own,) = state(build("cr", window=(500.0, 300.0)), window=(100.0, 3100.5)).SoftcopyVOILUTSequence
    assert float(own.WindowCenter) == 500.0
    assert "SoftcopyVOILUTSequence" not in state(build("cr"), window=(7.0, 7.0))


def test_tables_of_the_source_stay() -> None:
    table = [(7 * value) % 4096 for value in range(4096)]
    ds = state(build("cr", modality_lut=lut(table, bits=12), voi_lut=lut(table, first=-5, bits=12, explanation="VOI")))
    (modality,), (voi,) = ds.ModalityLUTSequence, ds.SoftcopyVOILUTSequence[0].VOILUTSequence
    assert list(modality.LUTDescriptor) == [4096, 0, 16]
    assert list(voi.LUTDescriptor) == [4096, -5, 16]
    assert list(np.frombuffer(modality.LUTData, "<u2")) == table
    # What a VOI LUT gives is a part of the full scale, which has grown from 12 to 16 bits.
    assert np.allclose(np.frombuffer(voi.LUTData, "<u2") / 65535, np.asarray(table) / 4095, atol=1 / 65535)
    assert voi.LUTExplanation == "VOI"


@pytest.mark.parametrize(
    "broken",
    [
        {"WindowCenter": ["1", "2"], "WindowWidth": "5"},
        {"WindowCenter": "100", "WindowWidth": "0"},
        {"RescaleSlope": "0", "RescaleIntercept": "3"},
    ],
    ids=str,
)
def test_a_grey_scale_that_cannot_be_meant_is_left_out(broken: dict[str, Any]) -> None:
    ds = state(build("cr", tags=broken))
    assert "SoftcopyVOILUTSequence" not in ds
    assert "RescaleSlope" not in ds
    assert ds.PresentationLUTShape == "IDENTITY"


def test_a_damaged_table_is_left_out() -> None:
    short = lut(range(256))
    short.LUTDescriptor = [4096, 0, 16]
    ds = state(build("cr", modality_lut=short, voi_lut=short))
    assert "ModalityLUTSequence" not in ds
    assert "SoftcopyVOILUTSequence" not in ds


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")])
def test_the_sense_of_the_grey_scale_stays(photometric: str, shape: str) -> None:
    assert state(build("cr", photometric=photometric)).PresentationLUTShape == shape
