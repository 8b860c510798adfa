"""The bytes of a DICOM file, without decoding them: the head of a data set, and the file meta information before it.

Everything here reads bytes that a peer chose: the work is bounded, nothing recurses, and every failure is
`UnreadableObject`.
Source: PS3.5 chapter 7 (encoding of data elements); PS3.10 chapter 7 (file meta information).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicomnode.domain.errors import UnreadableObject
from dicomnode.domain.identifiers import IMPLEMENTATION_CLASS_UID, is_valid_uid
from dicomnode.domain.instance import InstanceRef

# Without the node's version: the same object received again after an upgrade must give the same bytes.
_FILE_IMPLEMENTATION_NAME = "CXRNODE"

_PREAMBLE_BYTES = 128
_PREFIX = b"DICM"
# PS3.5 7.1.2: these value representations have a 32-bit length in explicit VR.
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"}
    | {b"ST", b"TM", b"UI", b"UL", b"US"}
)
_UNDEFINED = 0xFFFFFFFF
_PADDED_WITH_BLANKS = frozenset(
    {b"AE", b"AS", b"CS", b"DA", b"DS", b"DT", b"IS", b"LO", b"LT", b"PN", b"SH", b"ST", b"TM", b"UC", b"UR", b"UT"}
)
_OFFSET_BYTES = 4
_ITEM_GROUP = 0xFFFE
_ITEM_DELIMITERS = frozenset({0xFFFEE00D, 0xFFFEE0DD})
# No head in the wild comes near; a hostile one of empty elements would otherwise cost minutes.
_MAXIMUM_ELEMENTS = 100_000
# PS3.5 7.1: groups below are of commands, file meta information and directories.
_FIRST_GROUP = 0x0008

_SOP_CLASS = 0x00080016
_SOP_INSTANCE = 0x00080018
_STUDY = 0x0020000D
_SERIES = 0x0020000E
_HEAD = frozenset({_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES})
_HEAD_ENDS_AFTER_GROUP = 0x0020
_PIXEL_DATA = 0x7FE00010
_META_SOP_CLASS = 0x00020002
_META_SOP_INSTANCE = 0x00020003
_META_TRANSFER_SYNTAX = 0x00020010


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHead:
    """What the file meta information says; `offset` is where the data set begins."""

    sop_class: str
    sop_instance: str
    transfer_syntax: str
    offset: int


def read_ref(data_set: bytes, transfer_syntax: str) -> InstanceRef:
    """Read the four UIDs that name an instance from an encoded little endian data set, stopping before the pixels.

    Raises: UnreadableObject when one is absent or not a valid UID, or the encoding makes no sense.
    """
    if transfer_syntax == ExplicitVRBigEndian:
        raise UnreadableObject("big endian data sets are not read")
    if data_set and _group(data_set, 0) < _FIRST_GROUP:
        # Behind the meta information written here it would be read as part of it, another transfer syntax for one.
        raise UnreadableObject(f"the data set begins with group {_group(data_set, 0):04X}H, which belongs before it")
    implicit = _is_implicit(data_set, declared=transfer_syntax == ImplicitVRLittleEndian)
    found: dict[int, str] = {}
    for tag, start, end in _elements(data_set, 0, implicit=implicit):
        if tag >> 16 > _HEAD_ENDS_AFTER_GROUP:
            break
        if tag in _HEAD:
            found[tag] = _uid(data_set[start:end], tag)
            if len(found) == len(_HEAD):
                break
    missing = sorted(_HEAD - found.keys())
    if missing:
        raise UnreadableObject(f"the data set has no {_name(missing[0])}")
    return InstanceRef(
        study=found[_STUDY], series=found[_SERIES], sop_class=found[_SOP_CLASS], sop_instance=found[_SOP_INSTANCE]
    )


def read_file_head(part10: bytes) -> FileHead:
    """Read the file meta information of Part 10 bytes.

    Raises: UnreadableObject when this is no DICOM file, or its meta information is incomplete.
    """
    start = _PREAMBLE_BYTES + len(_PREFIX)
    if part10[_PREAMBLE_BYTES:start] != _PREFIX:
        raise UnreadableObject("not a DICOM file")
    found: dict[int, str] = {}
    offset = start
    for tag, begin, end in _elements(part10, start, implicit=False, last_group=0x0002):
        if tag in (_META_SOP_CLASS, _META_SOP_INSTANCE, _META_TRANSFER_SYNTAX):
            found[tag] = _uid(part10[begin:end], tag)
        offset = end
    missing = sorted({_META_SOP_CLASS, _META_SOP_INSTANCE, _META_TRANSFER_SYNTAX} - found.keys())
    if missing:
        raise UnreadableObject(f"the file meta information has no {_name(missing[0])}")
    return FileHead(
        sop_class=found[_META_SOP_CLASS],
        sop_instance=found[_META_SOP_INSTANCE],
        transfer_syntax=found[_META_TRANSFER_SYNTAX],
        offset=offset,
    )


def part10_bytes(data_set: bytes, *, sop_class: str, sop_instance: str, transfer_syntax: str) -> bytes:
    """Return a DICOM file of an encoded data set, which stays as it is.

    The preamble is zero, whatever the peer had there: a polyglot cannot pass (CVE-2019-11687). Nothing in the meta
    information depends on the association, so the same object sent twice gives the same bytes.
    """
    return b"".join((_file_meta(sop_class, sop_instance, transfer_syntax), data_set))


def with_even_lengths(part10: bytes) -> bytes:
    """Return a DICOM file in which no value of the top level has an odd length, nor a fragment of Pixel Data.

    Peers refuse such objects, or end the association. Each value gets the padding of its value representation, and the
    Basic Offset Table is corrected. A file without a fault, and one that cannot be read, is returned as it is.
    Raises: UnreadableObject when the file meta information cannot be read. Source: PS3.5 6.2, 7.1.1 and A.4.
    """
    head = read_file_head(part10)
    if head.transfer_syntax in (ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        return part10
    data = part10[head.offset :]
    implicit = _is_implicit(data, declared=head.transfer_syntax == ImplicitVRLittleEndian)
    try:
        changes = dict(_paddings(data, implicit=implicit))
    except UnreadableObject:
        return part10
    if not changes:
        return part10
    pieces, position = [part10[: head.offset]], 0
    for start, (end, replacement) in sorted(changes.items()):
        pieces += [data[position:start], replacement]
        position = end
    return b"".join([*pieces, data[position:]])


_Change = tuple[int, tuple[int, bytes]]
"""From where to where bytes are replaced, and by what."""


def _paddings(data: bytes, *, implicit: bool) -> Iterator[_Change]:
    """Give what makes every length of the top level even. Raises: UnreadableObject."""
    position = 0
    for _ in range(_MAXIMUM_ELEMENTS):
        if position >= len(data):
            return
        tag, length, start, _ = _element(data, position, implicit=implicit)
        end = start + length
        if length == _UNDEFINED:
            end = _end_of_nested(data, start, implicit=implicit)
            if tag == _PIXEL_DATA:
                yield from _fragment_paddings(data, start)
        elif length % 2:
            is_padded = tag == _PIXEL_DATA and end + 1 == len(data)
            yield from _padding(data, position, start, end, implicit=implicit, is_padded=is_padded)
            end += is_padded
        if end > len(data):
            raise UnreadableObject("the data set ends within an element")
        position = end


def _padding(data: bytes, position: int, start: int, end: int, *, implicit: bool, is_padded: bool) -> Iterator[_Change]:
    vr = _dictionary_vr(data, position).encode() if implicit else data[position + 4 : position + 6]
    width = 2 if not implicit and vr in _SHORT_VRS else 4
    length = end - start + 1
    if length < 1 << 8 * width:
        yield start - width, (start, length.to_bytes(width, "little"))
        if not is_padded:
            yield end, (end, b" " if vr in _PADDED_WITH_BLANKS else b"\0")


def _fragment_paddings(data: bytes, position: int) -> Iterator[_Change]:
    """Give what makes the fragments of encapsulated Pixel Data even, and corrects the Basic Offset Table."""
    items: list[tuple[int, int]] = []
    for _ in range(_MAXIMUM_ELEMENTS):
        tag, length, start, _ = _element(data, position, implicit=True)
        if tag in _ITEM_DELIMITERS or length == _UNDEFINED:
            break
        items.append((start, length))
        position = start + length
    odd = [(start, length) for start, length in items[1:] if length % 2]
    for start, length in odd:
        yield start - 4, (start, (length + 1).to_bytes(4, "little"))
        yield start + length, (start + length, b"\0")
    if odd and items[0][1] >= _OFFSET_BYTES:
        table, size = items[0]
        first = table + size
        offsets = struct.unpack_from(f"<{size // _OFFSET_BYTES}L", data, table)
        moved = [offset + sum(start - 8 < first + offset for start, _ in odd) for offset in offsets]
        yield table, (table + len(moved) * _OFFSET_BYTES, struct.pack(f"<{len(moved)}L", *moved))


def _dictionary_vr(data: bytes, position: int) -> str:
    """Return the value representation that the data dictionary has for an element, UN for one that it does not know."""
    group, element = struct.unpack_from("<HH", data, position)
    try:
        return dictionary_VR(group << 16 | element)
    except KeyError:
        return "UN"


@lru_cache(maxsize=32)
def _file_meta(sop_class: str, sop_instance: str, transfer_syntax: str) -> bytes:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance)
    meta.TransferSyntaxUID = UID(transfer_syntax)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = _FILE_IMPLEMENTATION_NAME
    buffer = BytesIO()
    writer = DicomIO(buffer)
    writer.is_little_endian = True
    writer.is_implicit_VR = False
    write_file_meta_info(writer, meta)
    return bytes(_PREAMBLE_BYTES) + _PREFIX + buffer.getvalue()


def _elements(
    data: bytes, position: int, *, implicit: bool, last_group: int | None = None
) -> Iterator[tuple[int, int, int]]:
    """Yield (tag, start of value, end of value) of the top level's elements, passing over sequences."""
    for _ in range(_MAXIMUM_ELEMENTS):
        if position == len(data) or (last_group is not None and _group(data, position) > last_group):
            return
        tag, length, start, _ = _element(data, position, implicit=implicit)
        position = _end_of_nested(data, position, implicit=implicit) if length == _UNDEFINED else start + length
        if position > len(data):
            raise UnreadableObject("the data set ends within an element")
        yield tag, start, position
    raise UnreadableObject("the data set has too many elements")


def _end_of_nested(data: bytes, position: int, *, implicit: bool) -> int:
    """Return where an element of undefined length ends, counting what opens and what closes."""
    encodings: list[bool] = [implicit]
    for _ in range(_MAXIMUM_ELEMENTS):
        tag, length, start, unknown = _element(data, position, implicit=encodings[-1])
        position = start if length == _UNDEFINED else start + length
        if tag in _ITEM_DELIMITERS:
            encodings.pop()
        elif length == _UNDEFINED:
            # PS3.5 6.2.2: within a UN element of undefined length everything is implicit VR.
            encodings.append(encodings[-1] or unknown)
        if len(encodings) == 1:
            return position
        if not encodings:
            break
    raise UnreadableObject("the sequences of the data set are not balanced")


def _element(data: bytes, position: int, *, implicit: bool) -> tuple[int, int, int, bool]:
    """Return (tag, length, start of value, whether the VR is UN) of the element at `position`."""
    try:
        group, element = struct.unpack_from("<HH", data, position)
        tag = group << 16 | element
        if implicit or group == _ITEM_GROUP:
            return tag, struct.unpack_from("<L", data, position + 4)[0], position + 8, False
        vr = data[position + 4 : position + 6]
        if vr in _SHORT_VRS:
            return tag, struct.unpack_from("<H", data, position + 6)[0], position + 8, False
        if _is_vr(vr):  # PS3.5 6.2: a VR that is yet to come has the long form, too
            return tag, struct.unpack_from("<L", data, position + 8)[0], position + 12, vr == b"UN"
    except struct.error as error:
        raise UnreadableObject("the data set ends within an element") from error
    raise UnreadableObject("an element has no value representation")


def _is_implicit(data: bytes, *, declared: bool) -> bool:
    """Say how the data set is encoded; some devices write one encoding and declare the other, and readers cope."""
    vr = data[4:6]
    if vr in _LONG_VRS or vr in _SHORT_VRS:
        return False
    return declared or not _is_vr(vr)


def _is_vr(vr: bytes) -> bool:
    return len(vr) == 2 and vr.isalpha() and vr.isupper()


def _group(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 2], "little")


def _uid(value: bytes, tag: int) -> str:
    # Some senders pad UIDs with blanks; PS3.5 9.1 says a null.
    text = value.rstrip(b"\x00 ").decode("ascii", errors="replace")
    if not is_valid_uid(text):
        raise UnreadableObject(f"{_name(tag)} is not a valid UID")
    return text


_NAMES = {
    _SOP_CLASS: "SOP Class UID",
    _SOP_INSTANCE: "SOP Instance UID",
    _STUDY: "Study Instance UID",
    _SERIES: "Series Instance UID",
    _META_SOP_CLASS: "Media Storage SOP Class UID",
    _META_SOP_INSTANCE: "Media Storage SOP Instance UID",
    _META_TRANSFER_SYNTAX: "Transfer Syntax UID",
}


def _name(tag: int) -> str:
    return _NAMES[tag]
