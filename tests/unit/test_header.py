"""What a radiograph says of itself is read once, by the standard, and never raises for what a peer can send."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom import uid as uids

from dicomnode.dicom.attributes import integer, numbers, text, texts
from dicomnode.dicom.header import header_of, read_radiograph
from dicomnode.dicom.identity import CodedText, HierarchicDesignator
from dicomnode.domain.errors import UnreadableObject
from dicomnode.domain.evidence import Evidence, describe
from dicomnode.domain.frame import Righting, righting_of
from tests.support.elements import add_raw, raw_element
from tests.support.make import build, encode, lut, ref_of
from tests.support.names import with_raw


def sent(**raw: bytes) -> Dataset:
    """Return a small radiograph as it is after the network, with these undecoded values."""
    ds = build("cr", rows=8, columns=8)
    for keyword, value in raw.items():
        add_raw(ds, keyword, value)
    return ds


# Where the two readers of former versions differed: what is right by the standard.


def test_a_backslash_in_an_identifier_is_part_of_it() -> None:
    assert text(sent(PatientID=rb"12\34"), "PatientID") == r"12\34"


def test_a_coded_value_that_must_be_single_and_is_not_is_left_ambiguous() -> None:
    assert text(sent(ViewPosition=rb"PA\LL"), "ViewPosition") == r"PA\LL"


def test_an_attribute_of_several_values_gives_its_first() -> None:
    assert text(sent(ImageType=rb"ORIGINAL\PRIMARY"), "ImageType") == "ORIGINAL"


def test_bytes_and_items_are_no_text() -> None:
    ds = sent()
    ds.add_new("PatientID", "OB", b"12345678")
    ds.add_new("StudyDescription", "SQ", [Dataset()])
    assert (text(ds, "PatientID"), text(ds, "StudyDescription")) == ("", "")


@pytest.mark.parametrize("raw", [b"1_0", b"nan", b"inf", "１０".encode(), b"0x10", b"ten"])
def test_only_decimal_strings_are_numbers(raw: bytes) -> None:
    assert numbers(sent(RescaleSlope=raw), "RescaleSlope") == ()


def test_a_fraction_is_no_integer() -> None:
    assert integer(sent(NumberOfFrames=b"2.5"), "NumberOfFrames") is None
    assert integer(sent(NumberOfFrames=b"0"), "NumberOfFrames") == 0


def test_an_empty_value_before_a_number_makes_the_list_unreadable_and_one_behind_it_does_not() -> None:
    assert numbers(sent(WindowCenter=rb"\2048"), "WindowCenter") == ()
    assert numbers(sent(WindowCenter=b"2048\\"), "WindowCenter") == (2048.0,)


def test_line_breaks_separate_words_and_other_control_characters_are_no_text() -> None:
    ds = sent(SeriesDescription=b"CHEST\r\nPA", StudyDescription=b"Tho\x07rax\x1b$)A")
    assert (text(ds, "SeriesDescription"), text(ds, "StudyDescription")) == ("CHEST PA", "Thorax")


def test_a_text_is_cut_where_no_lawful_text_ends() -> None:
    assert len(text(sent(PatientName=b"x" * 5000), "PatientName")) == 1024


@pytest.mark.parametrize(
    ("raw", "read"),
    [(b"2024.02.29", "20240229"), (b"2024/02/29", "20240229"), (b"2024-02-29", "20240229"), (b"2024.02-29", "")],
)
def test_dates_are_read_in_the_forms_devices_write(raw: bytes, read: str) -> None:
    header = header_of(sent(StudyDate=raw))
    assert header.study.date == read
    assert (header.study_date is not None) == bool(read)


def test_a_code_string_is_what_was_sent_in_capitals_even_when_it_is_ill_formed() -> None:
    assert header_of(sent(Modality=b"c-r")).modality == "C-R"


def test_windows_are_pairs_and_impossible_ones_are_left_out() -> None:
    ds = sent(WindowCenter=rb"2048\1000", WindowWidth=rb"4096\0.5")
    assert [(window.centre, window.width) for window in header_of(ds).greyscale.windows] == [(2048, 4096)]


def test_lists_of_centres_and_widths_of_different_lengths_are_no_windows() -> None:
    assert header_of(sent(WindowCenter=rb"2048\1000", WindowWidth=b"4096")).greyscale.windows == ()


def test_every_alternative_lookup_table_is_read_and_a_damaged_one_left_out() -> None:
    ds = build("dx", rows=8, columns=8, tags={"VOILUTSequence": [Dataset(), lut([0, 5, 10, 15], bits=12)]})
    (table,) = header_of(ds).greyscale.voi_tables
    assert (table.first, table.bits, list(table.entries)) == (0, 12, [0, 5, 10, 15])


def test_a_table_for_signed_input_may_have_an_unsigned_descriptor() -> None:
    item = lut([1, 2, 3])
    item.add_new("LUTDescriptor", "US", [3, 65534, 16])
    ds = build("cr", rows=8, columns=8, signed=True, tags={"ModalityLUTSequence": [item]})
    table = header_of(ds).greyscale.modality_table
    assert table is not None
    assert table.first == -2


def test_a_table_of_bytes_is_read_as_bytes() -> None:
    item = lut([0] * 4)
    item.add_new("LUTData", "OW", bytes([1, 2, 3, 4]))
    table = header_of(build("cr", rows=8, columns=8, tags={"VOILUTSequence": [item]})).greyscale.voi_tables[0]
    assert np.array_equal(table.entries, [1, 2, 3, 4])


@pytest.mark.parametrize("spacing", ["0.001", "11", "-1", "x"])
def test_a_spacing_that_no_radiograph_has_is_none(spacing: str) -> None:
    assert header_of(sent(PixelSpacing=f"{spacing}\\{spacing}".encode())).pixel_spacing is None


def test_issuers_are_read_with_their_qualifiers() -> None:
    qualifiers, facility, authority = Dataset(), Dataset(), Dataset()
    facility.LocalNamespaceEntityID = "WARD"
    qualifiers.UniversalEntityID, qualifiers.UniversalEntityIDType = "1.2.3", "ISO"
    qualifiers.AssigningFacilitySequence = [facility]
    authority.LocalNamespaceEntityID = "RIS"
    header = header_of(
        build(
            "cr",
            rows=8,
            columns=8,
            tags={
                "IssuerOfPatientIDQualifiersSequence": [qualifiers],
                "IssuerOfAccessionNumberSequence": [authority],
            },
        )
    )
    issuer = header.patient.issuer_qualifiers
    assert issuer is not None
    assert (issuer.universal_id, issuer.facility) == (
        "1.2.3",
        HierarchicDesignator(local_namespace="WARD", universal_id="", universal_id_type=""),
    )
    assert header.study.accession_issuer == HierarchicDesignator(
        local_namespace="RIS", universal_id="", universal_id_type=""
    )


@pytest.mark.parametrize("raw", ["ärzte".encode("latin-1"), b"x" * 65, rb"1.2\1.3", b"1.2;3"])
def test_an_object_whose_identifier_is_no_uid_is_unreadable(raw: bytes) -> None:
    with pytest.raises(UnreadableObject, match="StudyInstanceUID of the object is no UID"):
        header_of(sent(StudyInstanceUID=raw))


def test_codes_are_read_with_their_meaning() -> None:
    ds = build("dx", rows=8, columns=8, view_code=("399348003", "SCT", "Antero-posterior"))
    (view,) = header_of(ds).projection.view_codes
    assert (view.attribute, view.code) == (
        "ViewCodeSequence",
        CodedText(value="399348003", scheme="SCT", meaning="Antero-posterior"),
    )


def test_a_repair_of_the_character_set_is_told() -> None:
    ds = build("cr", rows=8, columns=8, character_set="ISO_IR 192")
    read = read_radiograph(with_raw(ds, PatientName=b"M\xfcller"))
    assert read.header.patient.name == "Müller"
    assert [repair.attribute for repair in read.header.repairs] == ["SpecificCharacterSet"]
    assert read_radiograph(encode(build("cr", rows=8, columns=8))).header.repairs == ()


@pytest.mark.parametrize(
    ("keyword", "raw", "what"),
    [
        ("StudyDate", b"2024.02.29", "brought into the form of the standard"),
        ("PatientSex", b"m", "brought into the form of the standard"),
        ("PatientBirthDate", b"unknown", "left out, since it is not of the form of the standard"),
        ("PatientOrientation", b"L", "left out, since it is not of the form of the standard"),
        ("WindowCenter", rb"1\2", "left out, since it is not of the form of the standard"),
    ],
)
def test_what_is_mended_or_left_out_is_told(keyword: str, raw: bytes, what: str) -> None:
    assert [(repair.attribute, repair.what) for repair in header_of(sent(**{keyword: raw})).repairs] == [
        (keyword, what)
    ]


def test_pixel_data_comes_as_it_was_sent() -> None:
    ds = build("cr", rows=8, columns=8)
    assert read_radiograph(encode(ds)).pixel_data == ds.PixelData
    del ds.PixelData
    assert read_radiograph(encode(ds)).pixel_data == b""


# Elements that stand twice. Source: PS3.5 7.1.


def test_an_element_that_stands_twice_with_different_values_is_unreadable() -> None:
    part10 = encode(build("cr", rows=8, columns=8))
    doubled = part10 + raw_element("StudyInstanceUID", b"1.2.3.99")

    with pytest.raises(UnreadableObject, match="Study Instance UID stands twice"):
        read_radiograph(doubled)


def test_an_element_that_stands_twice_with_the_same_value_does_no_harm() -> None:
    ds = build("cr", rows=8, columns=8)
    doubled = encode(ds) + raw_element("StudyInstanceUID", str(ds.StudyInstanceUID).encode())
    assert read_radiograph(doubled).header.ref == ref_of(ds)


def test_thousands_of_repeated_elements_are_refused_without_comparing_them() -> None:

    doubled = encode(build("cr", rows=8, columns=8)) + raw_element("PatientID", b"12") * 5000
    with pytest.raises(UnreadableObject, match="more than once"):
        read_radiograph(doubled)


# Which way up.

_UPRIGHT = np.array([["RH", "LH"], ["RF", "LF"]])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_a_patient_orientation_undoes_every_turn_and_flip(turns: int, mirrored: bool) -> None:
    stored = np.rot90(_UPRIGHT, turns)
    stored = np.fliplr(stored) if mirrored else stored
    row = "".join(set(stored[0, 1]) - set(stored[0, 0]))
    column = "".join(set(stored[1, 0]) - set(stored[0, 0]))
    righting = header_of(build("dx", rows=8, columns=8, tags={"PatientOrientation": [row, column]})).righting
    assert righting is not None
    righted = np.rot90(np.fliplr(stored) if righting.mirrored else stored, righting.quarter_turns)
    assert np.array_equal(righted, _UPRIGHT)
    assert righting.orientation(row, column) == ("L", "F")


@pytest.mark.parametrize("orientation", [("A", "F"), ("L", "P"), ("L", "R"), ("H", "F"), ("F", "F")])
def test_an_orientation_of_no_frontal_image_says_nothing(orientation: tuple[str, str]) -> None:
    assert righting_of(orientation) is None


def test_an_upright_image_needs_no_righting() -> None:
    assert righting_of(("LF", "F")) == Righting(mirrored=False, quarter_turns=0)


_KEYWORDS = (
    "PatientName", "PatientID", "PatientBirthDate", "Rows", "BitsStored", "PixelRepresentation", "StudyDate",
    "StudyTime", "ImageType", "PatientOrientation", "PixelSpacing", "WindowCenter", "ShutterShape", "RescaleSlope",
    "SourceImageSequence", "VOILUTSequence", "ViewCodeSequence", "LossyImageCompressionRatio", "AcquisitionDate",
)  # fmt: skip


@given(sent_values=st.dictionaries(st.sampled_from(_KEYWORDS), st.binary(max_size=24), max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_in_any_attribute_keep_a_header_from_being_read(sent_values: dict[str, bytes]) -> None:
    ds = sent(**sent_values)
    assert header_of(ds).transfer_syntax == uids.ExplicitVRLittleEndian
    assert all(isinstance(value, str) for value in texts(ds, "PatientName"))


def test_evidence_is_told_in_words() -> None:
    evidence = (
        Evidence(fact="view", value="PA", attribute="ViewPosition"),
        Evidence(fact="body part", value="not stated", attribute=""),
    )
    assert describe(evidence) == "view: PA (View Position); body part: not stated"


def test_a_header_is_the_same_from_bytes_and_from_a_data_set() -> None:
    part10 = encode(build("cr", rows=8, columns=8))
    assert read_radiograph(part10).header.patient == header_of(dcmread(BytesIO(part10))).patient
