"""Elements of data sets as bytes, undecoded and in places where the standard has none."""

import struct

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag


def add_raw(ds: Dataset, keyword: str, value: bytes) -> None:
    """Put undecoded bytes into a data set, as reading does."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    padded = value + b" " * (len(value) % 2)
    ds._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(padded), padded, 0, False, True)


def raw_element(keyword: str, value: bytes) -> bytes:
    """Return an element of a short text VR in Explicit VR Little Endian, to be put anywhere."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    vr = dictionary_VR(tag).encode()
    padded = value + (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", tag.group, tag.element, vr, len(padded)) + padded
