"""Which objects the model may read: storage class, modality, frames, size, age, and that it is an object at all."""

import pytest
from pydicom import Dataset
from pydicom import uid as uids

from dicomnode.dicom import reader
from dicomnode.dicom.header import header_of
from dicomnode.domain.answer import RejectionReason
from dicomnode.domain.errors import UnreadableObject
from dicomnode.domain.identifiers import OWN_MODEL_NAME
from dicomnode.imaging.eligibility import age_years
from dicomnode.settings.node import EligibilitySettings
from tests.support.judged import reason, verdict
from tests.support.make import SOP_CLASSES, build, encode, ref_of


@pytest.mark.parametrize(
    ("sop_class", "expected"),
    [
        (uids.CTImageStorage, RejectionReason.NOT_A_PROJECTION),
        (uids.MRImageStorage, RejectionReason.NOT_A_PROJECTION),
        (uids.EncapsulatedPDFStorage, RejectionReason.NOT_A_PROJECTION),
        (uids.ComprehensiveSRStorage, RejectionReason.NOT_A_PROJECTION),
        (uids.DigitalMammographyXRayImageStorageForPresentation, RejectionReason.MODALITY),
        (uids.DigitalIntraOralXRayImageStorageForPresentation, RejectionReason.MODALITY),
        (uids.XRayRadiofluoroscopicImageStorage, RejectionReason.MODALITY),
        (uids.MultiFrameSingleBitSecondaryCaptureImageStorage, RejectionReason.NOT_A_PROJECTION),
    ],
)
def test_other_storage_classes_reject_whatever_their_modality_says(sop_class, expected):
    assert reason(build("cr", modality="DX", tags={"SOPClassUID": sop_class})) is expected


def test_an_unknown_storage_class_is_named_as_such_and_not_quoted():
    judged = verdict(build("cr", tags={"SOPClassUID": "1.2.3.4"}))

    assert judged.detail == "the object is of an unknown storage class, not a projection radiograph"


@pytest.mark.parametrize(
    ("kind", "modality", "expected"),
    [
        ("sc", "CR", None),
        ("sc", "DX", None),
        ("sc", "OT", RejectionReason.MODALITY),
        ("sc", None, RejectionReason.MODALITY),
        ("sc", "CT", RejectionReason.MODALITY),
        ("cr", None, None),
        ("dx", None, None),
        ("cr", "dx", None),
        ("dx", "MG", RejectionReason.MODALITY),
        ("cr", "RG", RejectionReason.MODALITY),
    ],
)
def test_modality_must_be_configured(kind, modality, expected):
    assert reason(build(kind, modality=modality)) is expected


def test_the_configured_modalities_are_the_ones_that_count():
    assert reason(build("cr", modality="RG"), EligibilitySettings(modalities=("CR", "DX", "RG"))) is None


def test_own_results_never_come_back_in():
    item = Dataset()
    item.ManufacturerModelName = OWN_MODEL_NAME
    as_device = build("sc", tags={"Manufacturer": "Clinic", "ManufacturerModelName": OWN_MODEL_NAME})
    as_contributor = build("sc", tags={"ContributingEquipmentSequence": [item]})
    report = build("sc", tags={"SOPClassUID": uids.Comprehensive3DSRStorage, "ManufacturerModelName": OWN_MODEL_NAME})

    assert [reason(ds) for ds in (as_device, as_contributor, report)] == [RejectionReason.OWN_RESULT] * 3


def test_an_annotated_capture_of_another_image_is_no_radiograph():
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = SOP_CLASSES["dx"], "1.2.3"
    ds = build("sc", tags={"BurnedInAnnotation": "YES", "SourceImageSequence": [source]})

    assert reason(ds) is RejectionReason.NOT_A_PROJECTION


def test_a_localizer_is_no_radiograph():
    assert (
        reason(build("sc", tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}))
        is RejectionReason.NOT_A_PROJECTION
    )


def test_several_frames_reject_and_a_single_one_does_not():
    assert reason(build("sc-multi-frame", frames=3)) is RejectionReason.MULTI_FRAME
    assert reason(build("sc", tags={"NumberOfFrames": 1})) is None


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (199, 400, RejectionReason.TOO_SMALL),
        (200, 200, None),
        (1000, 1001, RejectionReason.TOO_LARGE),
        (1000, 1000, None),
        (0, 400, RejectionReason.CORRUPT_PIXELS),
    ],
)
def test_size_has_two_bounds(rows, columns, expected):
    ds = build("cr", rows=32, columns=32, tags={"Rows": rows, "Columns": columns})

    assert reason(ds, maximum_pixels=1_000_000) is expected


@pytest.mark.parametrize(
    ("age", "born", "years"),
    [
        ("081Y", None, 81),
        ("81", None, 81),
        ("81Y", None, 81),
        ("018M", None, 1.5),
        ("026W", None, 0.4983),
        ("010D", None, 0.0274),
        ("414", None, None),
        ("abc", None, None),
        (None, "19840229", 40),
        (None, "1984-02-29", 40),
        (None, "20990101", None),
        (None, "19841332", None),
        (None, None, None),
    ],
)
def test_ages_are_read_as_they_are_written_in_the_wild(age, born, years):
    assert age_years(header_of(build("cr", age=age, birth_date=born))) == (years and pytest.approx(years, abs=2e-3))


def test_age_bounds_apply_only_when_configured():
    adults = EligibilitySettings(minimum_age_years=18, maximum_age_years=90)
    strict = EligibilitySettings(minimum_age_years=18, reject_missing_age=True)
    unknown = build("cr", age=None, birth_date=None)

    assert reason(build("cr", age="006M")) is None
    assert reason(build("cr", age="006M"), adults) is RejectionReason.AGE
    assert reason(build("cr", age="091Y"), adults) is RejectionReason.AGE
    assert reason(unknown, adults) is None
    assert reason(unknown, strict) is RejectionReason.AGE


@pytest.mark.parametrize(
    "part10", [b"", b"\0" * 200, b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\xff" * 300, b"%PDF-1.7"]
)
def test_bytes_that_are_no_dicom_file_are_unreadable(part10):
    with pytest.raises(UnreadableObject):
        reader.read(part10)


def test_a_missing_file_is_unreadable(tmp_path):
    with pytest.raises(UnreadableObject):
        reader.read(tmp_path / "absent.dcm")


def test_deflated_objects_are_refused_before_they_are_inflated():
    part10 = encode(build("cr", rows=64, columns=64), uids.DeflatedExplicitVRLittleEndian)

    with pytest.raises(UnreadableObject, match="Deflated"):
        reader.read(part10)


def test_identifiers_are_read_from_the_object_or_it_is_unreadable():
    ds = build("cr")

    assert reader.ref_of(ds) == ref_of(ds)
    del ds.StudyInstanceUID
    with pytest.raises(UnreadableObject, match="StudyInstanceUID"):
        reader.ref_of(ds)
