"""The parametric map: the Grad-CAM's own numbers, lying as the stored image does, claiming no place in the patient."""

from typing import Any

import numpy as np
import pytest
from highdicom.pm import ParametricMap
from pydicom import Dataset

from dicomnode.domain.answer import ResultKind
from dicomnode.results.part10 import decode
from tests.support.assessments import assessment
from tests.support.make import build, chest, ref_of
from tests.support.products import image_results


def maps(source: Dataset, probabilities: dict[str, float] | None = None, **repair: Any) -> list[Dataset]:
    made = image_results(ResultKind.PARAMETRIC_MAP, source, probabilities or {"Mass": 0.7}, **repair)
    return [decode(result.part10) for result in made]


def grad_cam(source: Dataset, label: str) -> np.ndarray:
    said = assessment(ref_of(source))
    return np.maximum(next(entry.values for entry in said.saliency if entry.label == label), 0)


def values_of(ds: Dataset) -> np.ndarray:
    return np.frombuffer(ds.FloatPixelData, "<f4").reshape(ds.Rows, ds.Columns)


def test_each_positive_finding_has_the_numbers_of_its_map_in_a_series_of_its_own() -> None:
    source = build("cr")
    made = maps(source, {"Mass": 0.7, "Edema": 0.5, "Nodule": 0.29})
    described = [ds.SeriesDescription.split(" - ")[0] for ds in made]
    assert described == ["AI map: Mass", "AI map: Edema"]
    for ds, label in zip(made, ("Mass", "Edema"), strict=True):
        assert np.array_equal(values_of(ds), grad_cam(source, label))
        assert ds.StudyInstanceUID == source.StudyInstanceUID
        assert (ds.SeriesNumber, ds.InstanceNumber, ds.NumberOfFrames) == (9905, 2, 1)
    assert len({ds.SeriesInstanceUID for ds in made} | {source.SeriesInstanceUID}) == 3
    assert maps(source, {"Nodule": 0.29}, abnormality=0.29) == []
    (abnormality,) = maps(source, {"Nodule": 0.29})
    assert abnormality.SeriesDescription.startswith("AI map: Abnormality")


def test_cells_outside_the_body_are_0() -> None:
    pixels = np.zeros((640, 560), dtype=np.float32)
    pixels[:, 280:] = chest(640, 280)
    (ds,) = maps(build("cr"), pixels=pixels)
    expected = grad_cam(build("cr"), "Mass")
    assert expected[:, :3].max() > 0
    assert values_of(ds)[:, :3].max() == 0
    assert np.array_equal(values_of(ds)[3:6, 4:6], expected[3:6, 4:6])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_map_of_a_righted_image_lies_as_the_stored_one(turns: int, mirrored: bool) -> None:
    source = build("cr")
    (ds,) = maps(source, turns=turns, mirrored=mirrored)
    stored = np.rot90(grad_cam(source, "Mass"), -turns)
    assert np.array_equal(values_of(ds), np.fliplr(stored) if mirrored else stored)


def test_the_numbers_say_what_they_are() -> None:
    source = build("cr")
    (ds,) = maps(source)
    (mapping,) = ds.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert (quantity.CodeValue, quantity.CodingSchemeDesignator) == ("130403", "DCM")
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == pytest.approx(float(grad_cam(source, "Mass").max()))


def test_it_names_the_image_it_was_made_of() -> None:
    source = build("dx")
    (ds,) = maps(source)
    derived = ds.SharedFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert derived.ReferencedSOPInstanceUID == source.SOPInstanceUID
    (series,) = ds.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_a_projection_has_no_place_in_the_patient_and_the_detectors_spacing_is_not_the_patients() -> None:
    (ds,) = maps(build("cr", spacing_mm=(0.2, 0.2), tags={"FrameOfReferenceUID": "1.2.3"}))
    shared = ds.SharedFunctionalGroupsSequence[0]
    groups = (shared.PlanePositionSequence, shared.PlaneOrientationSequence, shared.PixelMeasuresSequence)
    assert [len(group[0]) for group in groups] == [0, 0, 0]
    assert ds.FrameOfReferenceUID != "1.2.3"


@pytest.mark.parametrize("turns", [0, 1])
def test_a_stated_pixel_spacing_becomes_that_of_the_cells(turns: int) -> None:
    source = build("sc", rows=640, columns=560, spacing_mm=(0.7, 0.5))
    (ds,) = maps(source, turns=turns)
    spacing = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert [float(value) for value in spacing] == pytest.approx([0.7 * 640 / 7, 0.5 * 560 / 7])


def test_highdicom_and_pydicom_read_it_back() -> None:
    source = build("cr")
    (ds,) = maps(source)
    read = ParametricMap.from_dataset(ds)
    assert np.array_equal(np.squeeze(read.pixel_array), grad_cam(source, "Mass"))


def test_the_same_arguments_give_the_same_bytes() -> None:
    first, second = (image_results(ResultKind.PARAMETRIC_MAP, build("cr"), {"Mass": 0.7})[0] for _ in range(2))
    assert first.part10 == second.part10
