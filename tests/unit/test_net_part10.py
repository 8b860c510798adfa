"""Reading the head of a data set, and writing the meta information before it, without decoding."""

import random
import struct
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom import uid as uids
from pydicom.sequence import Sequence

from dicomnode.dicom.part10 import part10_bytes, read_file_head, read_ref, with_even_lengths
from dicomnode.domain.errors import UnreadableObject
from tests.support.make import build, encode

EXPLICIT, IMPLICIT = str(uids.ExplicitVRLittleEndian), str(uids.ImplicitVRLittleEndian)
CR = str(uids.ComputedRadiographyImageStorage)


def encoded(ds: Dataset, transfer_syntax: str = EXPLICIT) -> bytes:
    part10 = encode(ds, transfer_syntax)
    return part10[read_file_head(part10).offset :]


def small(**tags: object) -> Dataset:
    return build("cr", rows=8, columns=8, tags=dict(tags))


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("undefined_length", [False, True])
def test_the_four_uids_are_found_behind_nested_sequences(transfer_syntax: str, undefined_length: bool) -> None:
    inner = Dataset()
    inner.StudyInstanceUID = "1.9.9"  # of another study: must not be taken for this one's
    inner.is_undefined_length_sequence_item = undefined_length
    outer = Dataset()
    outer.ReferencedStudySequence = Sequence([inner])
    outer["ReferencedStudySequence"].is_undefined_length = undefined_length
    ds = small(ReferencedStudySequence=Sequence([outer, inner]))
    ds["ReferencedStudySequence"].is_undefined_length = undefined_length
    ref = read_ref(encoded(ds, transfer_syntax), transfer_syntax)
    assert (ref.study, ref.series) == (ds.StudyInstanceUID, ds.SeriesInstanceUID)
    assert (ref.sop_class, ref.sop_instance) == (ds.SOPClassUID, ds.SOPInstanceUID)


def test_an_implicit_sequence_within_an_unknown_element_is_passed_over() -> None:
    item = struct.pack("<HHL", 0x0008, 0x0060, 2) + b"CR"
    nested = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + item + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    unknown = struct.pack("<HH2sHL", 0x0009, 0x1001, b"UN", 0, 0xFFFFFFFF) + nested
    unknown += struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    data_set = encoded(small())
    at = data_set.index(struct.pack("<HH", 0x0010, 0x0010))
    assert read_ref(data_set[:at] + unknown + data_set[at:], EXPLICIT) == read_ref(data_set, EXPLICIT)


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT])
def test_a_data_set_that_would_continue_the_meta_information_is_refused(transfer_syntax: str) -> None:
    vr = struct.pack("<2sH", b"UI", 2) if transfer_syntax == EXPLICIT else struct.pack("<L", 2)
    element = struct.pack("<HH", 0x0002, 0x0010) + vr + b"1\0"
    with pytest.raises(UnreadableObject, match="begins with group 0002H"):
        read_ref(element + encoded(small(), transfer_syntax), transfer_syntax)


@pytest.mark.parametrize(("written", "declared"), [(IMPLICIT, EXPLICIT), (EXPLICIT, IMPLICIT)])
def test_a_data_set_in_another_encoding_than_declared_is_still_read(written: str, declared: str) -> None:
    ds = small()
    assert read_ref(encoded(ds, written), declared).study == ds.StudyInstanceUID


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_missing_uid_is_named(keyword: str) -> None:
    ds = small()
    data_set = encoded(ds)
    del ds[keyword]
    buffer = BytesIO()
    ds.save_as(buffer, implicit_vr=False, little_endian=True)
    without = buffer.getvalue()
    without = without[without.index(struct.pack("<HH", 0x0008, 0x0005)) :]
    assert len(without) < len(data_set)
    with pytest.raises(UnreadableObject, match="has no"):
        read_ref(without, EXPLICIT)


@pytest.mark.parametrize("value", ["1..2", "1.02.3", "a.b", "../../x", "1.2.", "1" * 65])
def test_an_invalid_uid_is_not_taken(value: str) -> None:
    data_set = b"".join(
        struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"UI", len(text)) + text
        for tag, text in [(0x00080016, b"1.2"), (0x00080018, b"1.2.3"), (0x0020000D, value.encode())]
    )
    with pytest.raises(UnreadableObject, match="Study Instance UID is not a valid UID"):
        read_ref(data_set, EXPLICIT)


def test_endless_empty_elements_are_refused_quickly() -> None:
    element = struct.pack("<HH2sH", 0x0009, 0x1001, b"LO", 0)
    with pytest.raises(UnreadableObject, match="too many elements"):
        read_ref(element * 200_000, EXPLICIT)


def test_endless_nesting_is_refused_without_recursion() -> None:
    deeper = struct.pack("<HH2sHL", 0x0008, 0x1110, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(UnreadableObject):
        read_ref((deeper + item) * 100_000, EXPLICIT)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([EXPLICIT, IMPLICIT]))
def test_any_bytes_either_name_an_instance_or_are_unreadable(data: bytes, transfer_syntax: str) -> None:
    with pytest.raises(UnreadableObject):
        read_ref(data, transfer_syntax)


def test_a_damaged_data_set_never_escapes_the_error_tree() -> None:
    source, whole = random.Random(7), bytearray(encoded(small()))
    for _ in range(2000):
        damaged = bytearray(whole[: source.randrange(1, len(whole))])
        for _ in range(source.randrange(1, 20)):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        try:
            ref = read_ref(bytes(damaged), EXPLICIT)
        except UnreadableObject:
            continue
        assert ref.study


def test_a_written_file_is_a_conformant_dicom_file_with_the_bytes_unchanged() -> None:
    ds = small()
    data_set = encoded(ds)
    part10 = part10_bytes(data_set, sop_class=CR, sop_instance=ds.SOPInstanceUID, transfer_syntax=EXPLICIT)
    head = read_file_head(part10)
    assert (head.sop_class, head.sop_instance, head.transfer_syntax) == (CR, ds.SOPInstanceUID, EXPLICIT)
    assert part10[head.offset :] == data_set
    assert dcmread(BytesIO(part10)).SOPInstanceUID == ds.SOPInstanceUID


@pytest.mark.parametrize("data", [b"", b"DICM", bytes(132), bytes(128) + b"DICM"], ids=len)
def test_what_is_no_dicom_file_is_unreadable(data: bytes) -> None:
    with pytest.raises(UnreadableObject):
        read_file_head(data)


def native(value: bytes, transfer_syntax: str, *, behind: bytes = b"") -> bytes:
    """Return a file whose Pixel Data are these bytes, whatever their length."""
    ds = small()
    del ds.PixelData
    head = {"sop_class": CR, "sop_instance": str(ds.SOPInstanceUID), "transfer_syntax": transfer_syntax}
    vr = b"" if transfer_syntax == IMPLICIT else b"OW\0\0"
    element = b"\xe0\x7f\x10\x00" + vr + struct.pack("<L", len(value)) + value
    return part10_bytes(encoded(ds, transfer_syntax) + element + behind, **head)


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("behind", [b"", b"\0"], ids=["as-it-is", "padded-but-not-counted"])
def test_pixel_data_of_an_odd_length_is_padded_with_null(transfer_syntax: str, behind: bytes) -> None:
    padded = with_even_lengths(native(b"\1\2\3", transfer_syntax, behind=behind))
    assert dcmread(BytesIO(padded)).PixelData == b"\1\2\3\0"
    assert padded == native(b"\1\2\3\0", transfer_syntax)


def test_text_of_an_odd_length_is_padded_with_a_blank_and_a_uid_with_null() -> None:
    head = {"sop_class": CR, "sop_instance": "1.2", "transfer_syntax": EXPLICIT}
    text = b"\x10\x00\x20\x00LO" + struct.pack("<H", 3) + b"ABC"
    uid = b"\x20\x00\x0d\x00UI" + struct.pack("<H", 3) + b"1.2"
    padded = with_even_lengths(part10_bytes(text + uid, **head))
    assert padded[read_file_head(padded).offset :] == (
        text[:6] + struct.pack("<H", 4) + b"ABC " + uid[:6] + struct.pack("<H", 4) + b"1.2\0"
    )


def fragments(*values: bytes) -> bytes:
    return b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(value)) + value for value in values)


def test_odd_fragments_are_padded_and_the_offset_table_follows() -> None:
    head = {"sop_class": CR, "sop_instance": "1.2", "transfer_syntax": str(uids.JPEG2000Lossless)}
    start, end = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff", struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    odd = start + fragments(struct.pack("<3L", 0, 11, 23), b"abc", b"defg", b"h") + end
    even = start + fragments(struct.pack("<3L", 0, 12, 24), b"abc\0", b"defg", b"h\0") + end
    assert with_even_lengths(part10_bytes(odd, **head)) == part10_bytes(even, **head)


@pytest.mark.parametrize(
    "file",
    [
        native(b"\1\2\3\4", EXPLICIT),
        native(b"\1\2\3", EXPLICIT)[:-2],
        native(b"\1\2\3", str(uids.DeflatedExplicitVRLittleEndian)),
        native(b"\1\2\3", str(uids.ExplicitVRBigEndian)),
    ],
    ids=["even", "cut-off", "deflated", "big-endian"],
)
def test_a_file_without_an_odd_length_or_that_cannot_be_read_stays_as_it_is(file: bytes) -> None:
    assert with_even_lengths(file) == file


@given(st.binary(max_size=400), st.sampled_from([EXPLICIT, IMPLICIT, str(uids.JPEG2000Lossless)]))
@settings(max_examples=300, deadline=None)
def test_no_data_set_makes_padding_fail(data: bytes, transfer_syntax: str) -> None:
    file = part10_bytes(data, sop_class=CR, sop_instance="1.2", transfer_syntax=transfer_syntax)
    try:
        padded = with_even_lengths(file)
    except UnreadableObject:  # of what follows the file meta information too little is there to tell how it is encoded
        return
    assert len(padded) >= len(file)
