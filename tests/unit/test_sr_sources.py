"""Whatever a source says of itself, results get what is fit to be said again, and no error escapes."""

import warnings
from io import BytesIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage

from dicomnode.dicom.header import PixelSpacing, header_of
from dicomnode.dicom.reader import read
from dicomnode.domain.errors import UnreadableObject
from dicomnode.results.context import LossyHistory, SourceContext
from dicomnode.results.inputs import ReportInputs
from dicomnode.results.sr import write_report
from tests.support.assessments import NOW, assessment, equipment, identity
from tests.support.elements import add_raw
from tests.support.make import build, encode


def as_received(ds: Dataset) -> Dataset:
    """Return the data set as it is after the network: raw bytes, not yet decoded."""
    return read(encode(ds))


def reported(ds: Dataset) -> Dataset:
    context = SourceContext.of(header_of(ds))
    inputs = ReportInputs(
        sources={context.ref.sop_instance: context},
        assessments=[assessment(context.ref)],
        rejections=(),
        predecessors=(),
        equipment=equipment(),
        identity=identity(context.ref.study),
        now=NOW,
    )
    return dcmread(BytesIO(write_report(inputs).part10))


@pytest.mark.parametrize("terms", [None, "ISO_IR 100", ["", "ISO 2022 IR 87"]])
def test_an_institution_that_the_source_could_not_write_moves_the_report_to_utf_8(
    terms: str | list[str] | None,
) -> None:
    context = SourceContext.of(header_of(as_received(build("cr", character_set=terms))))
    inputs = ReportInputs(
        sources={context.ref.sop_instance: context},
        assessments=[assessment(context.ref)],
        rejections=(),
        predecessors=(),
        equipment=equipment(institution="東京 Hôpital"),
        identity=identity(context.ref.study),
        now=NOW,
    )
    ds = dcmread(BytesIO(write_report(inputs).part10))
    assert (ds.SpecificCharacterSet, ds.InstitutionName) == ("ISO_IR 192", "東京 Hôpital")


def test_absent_type_2_attributes_are_empty_and_absent_optional_ones_stay_absent() -> None:
    source = build("sc", age=None)
    required = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
    for keyword in (
        *required,
        "AccessionNumber",
        "ReferringPhysicianName",
        "PatientOrientation",
        "SpecificCharacterSet",
    ):
        source.pop(keyword, None)
    ds = reported(as_received(source))
    assert all(keyword in ds and not ds[keyword].value for keyword in required)
    assert "PatientAge" not in ds
    assert "StudyDescription" not in ds


@pytest.mark.parametrize(
    ("keyword", "raw", "kept"),
    [
        ("StudyDate", b"2024.02.29", "20240229"),
        ("StudyDate", b"20240231", ""),
        ("StudyTime", b"10:15:00", "101500"),
        ("StudyTime", b"99", ""),
        ("PatientSex", b"female", ""),
        ("PatientSex", b"m", "M"),
        ("PatientAge", b"81", None),
        ("PatientWeight", b"heavy", None),
        ("PatientBirthDate", b"unknown", ""),
        ("StudyDescription", b"x" * 80, "x" * 64),
        ("PatientID", b"1" * 70, "1" * 70),
        ("AccessionNumber", b"A" * 20, "A" * 20),
        ("PatientID", b"12\\34", ["12", "34"]),
    ],
)
def test_ill_formed_values_are_mended_or_dropped_but_identifiers_kept(
    keyword: str, raw: bytes, kept: str | list[str] | None
) -> None:
    source = build("cr")
    add_raw(source, keyword, raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an over-long identifier is kept, and pydicom says so
        assert reported(source).get(keyword) == kept


def test_a_deidentified_source_without_method_still_gives_a_complete_patient_module() -> None:
    ds = reported(build("cr", tags={"PatientIdentityRemoved": "YES"}))
    assert ds.DeidentificationMethod == "not stated by the source image"
    assert "DeidentificationMethod" not in reported(build("cr", tags={"DeidentificationMethod": "by hand"}))


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"])
def test_an_object_without_its_identifiers_is_unreadable(keyword: str) -> None:
    source = build("cr")
    del source[keyword]
    with pytest.raises(UnreadableObject, match="the object has no"):
        SourceContext.of(header_of(source))


@pytest.mark.parametrize(
    ("orientation", "turns", "expected"),
    [
        (["L", "F"], 0, ("L", "F")),
        # Stored lying down: the rows run to the head, or to the feet.
        (["H", "L"], 1, ("L", "F")),
        (["F", "R"], 3, ("L", "F")),
        (["F", "R"], 1, None),
        (["H", "L"], 3, None),
        (["R", "H"], 2, ("L", "F")),
        (["L", "F"], 2, None),
        (["L"], 0, None),
        (["X", "Y"], 0, None),
        (None, 1, None),
    ],
)
def test_orientation_turns_with_the_image(
    orientation: list[str] | None, turns: int, expected: tuple[str, str] | None
) -> None:
    context = SourceContext.of(header_of(build("cr", tags={"PatientOrientation": orientation})))
    assert context.orientation_after(turns) == expected


def test_lossy_history_comes_from_the_flag_or_the_transfer_syntax() -> None:
    stated = build(
        "cr",
        tags={
            "LossyImageCompression": "01",
            "LossyImageCompressionRatio": ["10", "3.5"],
            "LossyImageCompressionMethod": ["ISO_10918_1", "ISO_15444_1"],
        },
    )
    assert SourceContext.of(header_of(stated)).lossy == LossyHistory(
        ratios=("10", "3.5"), methods=("ISO_10918_1", "ISO_15444_1")
    )
    assert SourceContext.of(header_of(build("cr"))).lossy is None
    silent = dcmread(BytesIO(encode(build("cr"), "1.2.840.10008.1.2.4.91")))
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        del silent[keyword]
    lossy = SourceContext.of(header_of(silent)).lossy
    assert lossy is not None
    assert lossy.methods == ("ISO_15444_1",)
    assert float(lossy.ratios[0]) > 1


@pytest.mark.parametrize(("spacing", "kept"), [(["0.2", "0.3"], (0.2, 0.3)), (["0", "0"], None), (["25", "25"], None)])
def test_pixel_spacing_is_kept_only_when_a_radiograph_can_have_it(
    spacing: list[str], kept: tuple[float, float] | None
) -> None:
    found = SourceContext.of(header_of(build("sc", tags={"PixelSpacing": spacing}))).spacing
    if kept is None:
        assert found is None
    else:
        assert found == PixelSpacing(row_mm=kept[0], column_mm=kept[1])


_KEYWORDS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyDate",
    "StudyTime", "AccessionNumber", "StudyDescription", "PatientOrientation", "PixelSpacing", "TimezoneOffsetFromUTC",
    "LossyImageCompression", "LossyImageCompressionRatio", "Modality", "ReferringPhysicianName", "PatientSize",
)  # fmt: skip


def test_texts_that_no_code_string_can_hold_are_left_out_of_results() -> None:
    item = Dataset()
    for keyword, value in (("UniversalEntityID", b"1.2"), ("UniversalEntityIDType", "Ω".encode())):
        add_raw(item, keyword, value)
    add_raw(item, "IdentifierTypeCode", b"\xff\xfe")
    tags = {"IssuerOfPatientIDQualifiersSequence": [item], "LossyImageCompression": "01"}
    source = build("cr", character_set="ISO_IR 192", tags=tags)
    add_raw(source, "LossyImageCompressionMethod", "ßß".encode())
    ds = reported(source)
    assert "IssuerOfPatientIDQualifiersSequence" not in ds
    assert SourceContext.of(header_of(source)).lossy == LossyHistory(ratios=(), methods=())


@given(
    values=st.dictionaries(st.sampled_from(_KEYWORDS), st.binary(max_size=40), max_size=8),
    character_set=st.sampled_from([b"ISO_IR 192", b"ISO_IR 100", b"GB18030   "])
    | st.binary(min_size=10, max_size=10).filter(lambda term: 0 not in term),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_in_any_attribute_keep_a_report_from_being_written(
    values: dict[str, bytes], character_set: bytes
) -> None:
    source = build("cr", rows=8, columns=8)
    for keyword, value in values.items():
        add_raw(source, keyword, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part10 = encode(source).replace(b"ISO_IR 100", character_set, 1)
        assert reported(dcmread(BytesIO(part10))).SOPClassUID == Comprehensive3DSRStorage
