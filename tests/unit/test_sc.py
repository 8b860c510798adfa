"""The heatmap object: derived from its source, honest about it, and the same for the same arguments."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dicomnode.dicom.header import header_of
from dicomnode.domain.answer import ResultInstance, ResultKind
from dicomnode.domain.identifiers import OWN_MODEL_NAME
from dicomnode.results.context import SourceContext
from dicomnode.results.inputs import ImageResultInputs
from dicomnode.results.overlay import draw
from dicomnode.results.sc import write_heatmap
from dicomnode.settings.node import ResultSettings
from tests.support.assessments import NOW, assessment, equipment, frame, identity
from tests.support.make import build, chest
from tests.support.products import image_results


def heatmap(source: Dataset, *, turns: int = 0, inverted: bool = False, **settings: Any) -> ResultInstance:
    context = SourceContext.of(header_of(source))
    inputs = ImageResultInputs(
        source=context,
        frame=frame(context.ref, chest(400, 320), turns=turns, inverted=inverted),
        assessment=assessment(context.ref, {"Pleural_Thickening": 0.7}),
        equipment=equipment(**settings),
        identity=identity(context.ref.study),
        now=NOW,
        number=2,
    )
    return write_heatmap(inputs)


def opened(result: ResultInstance) -> Dataset:
    return dcmread(BytesIO(result.part10))


def test_the_same_arguments_give_the_same_bytes() -> None:
    assert heatmap(build("cr")).part10 == heatmap(build("cr")).part10


def test_the_object_is_a_derived_secondary_capture_of_the_same_study() -> None:
    source = build("dx", tags={"AccessionNumber": "A1"})
    result = heatmap(source)
    ds = opened(result)
    assert result.part10[:132] == b"\x00" * 128 + b"DICM"
    assert result.kind is ResultKind.SECONDARY_CAPTURE
    assert result.transfer_syntax == ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert result.ref.sop_class == ds.SOPClassUID == SecondaryCaptureImageStorage
    assert result.ref.sop_instance == ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
    assert result.ref.series == ds.SeriesInstanceUID != source.SeriesInstanceUID
    assert result.ref.study == ds.StudyInstanceUID == source.StudyInstanceUID
    assert (ds.PatientName, ds.PatientID) == (source.PatientName, source.PatientID)
    assert (ds.AccessionNumber, ds.Modality, ds.InstanceNumber) == ("A1", "OT", 2)
    assert ds.ManufacturerModelName == OWN_MODEL_NAME
    assert result.derived_from == (source.SOPInstanceUID,)


def test_the_pixels_are_the_picture() -> None:
    source = build("cr")
    context = SourceContext.of(header_of(source))
    picture = draw(
        frame(context.ref, chest(400, 320)),
        assessment(context.ref, {"Pleural_Thickening": 0.7}),
        equipment(),
        orientation=context.patient_orientation,
    ).pixels
    assert np.array_equal(opened(heatmap(source)).pixel_array, picture)


def test_the_derivation_names_the_source_and_what_was_done() -> None:
    source = build("cr")
    ds = opened(heatmap(source, turns=1, inverted=True))
    item = ds.SourceImageSequence[0]
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (source.SOPClassUID, source.SOPInstanceUID)
    assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert list(ds.ImageType) == ["DERIVED", "SECONDARY"]
    assert "Grad-CAM of: Pleural Thickening" in ds.DerivationDescription
    assert "turned by 90" in ds.DerivationDescription
    assert "inverted" in ds.DerivationDescription
    assert ds.BurnedInAnnotation == "YES"


def test_the_series_description_carries_the_mark() -> None:
    assert opened(heatmap(build("cr"))).SeriesDescription == "AI heatmap - Research use only - not for diagnosis"
    assert opened(heatmap(build("cr"), mark="")).SeriesDescription == "AI heatmap"


def test_a_chest_has_no_laterality_and_the_orientation_is_copied() -> None:
    ds = opened(heatmap(build("cr", tags={"Laterality": "R", "PatientOrientation": ["L", "F"]})))
    assert "Laterality" not in ds
    assert ds.BodyPartExamined == "CHEST"
    assert list(ds.PatientOrientation) == ["L", "F"]
    assert not opened(heatmap(build("cr", tags={"PatientOrientation": None}))).PatientOrientation


def test_pixel_spacing_follows_scale_and_turn_and_is_not_made_of_the_detectors() -> None:
    spacing = {"PixelSpacing": ["0.8", "0.4"], "PixelSpacingCalibrationType": "FIDUCIAL"}
    scale = 1280 / 400
    straight = opened(heatmap(build("sc", tags=spacing)))
    turned = opened(heatmap(build("sc", tags=spacing), turns=1))
    assert [float(value) for value in straight.PixelSpacing] == pytest.approx([0.8 / scale, 0.4 / scale])
    assert [float(value) for value in turned.PixelSpacing] == pytest.approx([0.4 / scale, 0.8 / scale])
    assert straight.PixelSpacingCalibrationType == "FIDUCIAL"
    detector = opened(heatmap(build("cr", spacing_mm=(0.2, 0.2))))
    assert "PixelSpacing" not in detector
    assert "ImagerPixelSpacing" not in detector


def test_lossy_compression_of_the_source_is_inherited() -> None:
    lossy = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "12.5",
        "LossyImageCompressionMethod": "ISO_15444_1",
    }
    ds = opened(heatmap(build("cr", tags=lossy)))
    assert (ds.LossyImageCompression, float(ds.LossyImageCompressionRatio)) == ("01", 12.5)
    assert ds.LossyImageCompressionMethod == "ISO_15444_1"
    assert opened(heatmap(build("cr"))).LossyImageCompression == "00"


def finding_heatmaps(source: Dataset, probabilities: dict[str, float]) -> list[Dataset]:
    return [opened(result) for result in image_results(ResultKind.FINDING_CAPTURE, source, probabilities)]


def test_every_positive_finding_has_a_heatmap_of_it_alone() -> None:
    source = build("cr")
    made = finding_heatmaps(source, {"Mass": 0.7, "Pleural_Thickening": 0.5, "Edema": 0.29})
    titles = ["AI: Mass", "AI: Pleural Thickening"]
    assert [ds.SeriesDescription for ds in made] == [f"{title} - {ResultSettings().mark}" for title in titles]
    assert "Grad-CAM of: Mass." in made[0].DerivationDescription
    assert "Grad-CAM of: Pleural Thickening." in made[1].DerivationDescription
    assert not np.array_equal(made[0].pixel_array, made[1].pixel_array)
    assert [ds.InstanceNumber for ds in made] == [2, 2]
    (whole,) = finding_heatmaps(source, {"Edema": 0.29})
    assert whole.SeriesDescription == f"AI: Abnormality - {ResultSettings().mark}"


def test_heatmaps_of_findings_have_series_and_instances_of_their_own() -> None:
    source = build("cr")
    made = [*finding_heatmaps(source, {"Mass": 0.7, "Edema": 0.5}), opened(heatmap(source))]
    assert len({ds.SOPInstanceUID for ds in made}) == len({ds.SeriesInstanceUID for ds in made}) == 3
    alone = finding_heatmaps(source, {"Mass": 0.7})[0]
    assert alone.SOPInstanceUID == made[0].SOPInstanceUID
