"""Part 10 bytes to a data set, pixels untouched.

The standard lets each element stand once (PS3.5 7.1). Where one stands twice with different values, readers differ in
which they take: a study's images could be stored under one Study Instance UID and its results sent under another. Such
an object is unreadable.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset
from pydicom.datadict import dictionary_description, dictionary_has_tag
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicomnode.dicom.attributes import text
from dicomnode.dicom.character_set import correct_character_set
from dicomnode.dicom.hostile import HOSTILE_DATA_RAISES, quiet
from dicomnode.domain.errors import UnreadableObject
from dicomnode.domain.instance import InstanceRef

log = logging.getLogger(__name__)

_PREAMBLE = 132
_UID = re.compile(r"[0-9.]{1,64}")
_LONGEST_META = 1 << 20
# Each repeated element costs one more reading of the data set.
_MOST_REPEATED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What was read although it is not as the standard has it: a keyword, and in words what was done about it."""

    attribute: str
    what: str


def read(part10: bytes | Path) -> Dataset:
    """Read a DICOM file, held in memory or named by its path, without decoding its pixels.

    Its Specific Character Set is corrected where the texts are not in it.
    Deflated objects are refused before they are inflated: their size is not known beforehand.
    Raises: UnreadableObject.
    """
    return read_and_repair(part10)[0]


def read_and_repair(part10: bytes | Path) -> tuple[Dataset, tuple[Repair, ...]]:
    """Read a DICOM file as `read` does, and tell what was repaired.

    Raises: UnreadableObject.
    """
    try:
        with quiet(), _open(part10) as file:
            _check_transfer_syntax(file)
            ds = _read_once(file)
            corrected = correct_character_set(ds)
    except HOSTILE_DATA_RAISES as error:
        log.warning("file-not-parsed", extra={"error": type(error).__name__})
        raise UnreadableObject("the bytes are not a DICOM file this node can parse") from None
    if len(ds) == 0:
        raise UnreadableObject("the file holds no data set")
    if not corrected:
        return ds, ()
    return ds, (Repair(attribute="SpecificCharacterSet", what="texts are in another character set than it names"),)


def ref_of(ds: Dataset) -> InstanceRef:
    """Return the identifiers of an object.

    Files are found whose UIDs have leading zeros or an empty component, which does no harm.
    Raises: UnreadableObject when one of them is missing, or not made of at most 64 digits and dots.
    """
    found = {
        keyword: text(ds, keyword)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
    }
    missing = [keyword for keyword, value in found.items() if not value]
    if missing:
        raise UnreadableObject(f"the object has no {', '.join(missing)}")
    ill_formed = [keyword for keyword, value in found.items() if not _UID.fullmatch(value)]
    if ill_formed:
        raise UnreadableObject(f"{', '.join(ill_formed)} of the object is no UID")
    return InstanceRef(
        study=found["StudyInstanceUID"],
        series=found["SeriesInstanceUID"],
        sop_class=found["SOPClassUID"],
        sop_instance=found["SOPInstanceUID"],
    )


def _open(part10: bytes | Path) -> BinaryIO:
    return part10.open("rb") if isinstance(part10, Path) else BytesIO(part10)


def _read_once(file: BinaryIO) -> Dataset:
    """Read the data set.

    Raises: UnreadableObject when an element stands twice with different values.
    """
    tags: list[BaseTag] = []
    ds = _read_up_to(file, None, tags)
    for position in _repetitions(tags):
        tag = tags[position]
        before_it = _read_up_to(file, position, [])
        if tag in before_it and before_it.get_item(tag).value != ds.get_item(tag).value:
            raise UnreadableObject(f"{dictionary_description(tag)} stands twice in the data set, with different values")
    return ds


def _read_up_to(file: BinaryIO, position: int | None, tags: list[BaseTag]) -> Dataset:
    """Read the data set up to the element at this position, all of it for None; add the tags that were met."""

    def stop(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        tags.append(tag)
        return len(tags) - 1 == position

    file.seek(0)
    return read_partial(file, stop_when=stop)


def _repetitions(tags: Sequence[BaseTag]) -> list[int]:
    """Return the positions at which an element of the standard stands again.

    Raises: UnreadableObject when there are too many to compare.
    """
    met: set[BaseTag] = set()
    found = []
    for position, tag in enumerate(tags):
        if tag in met and dictionary_has_tag(tag):
            found.append(position)
        met.add(tag)
    if len(found) > _MOST_REPEATED:
        raise UnreadableObject("many elements of the data set stand more than once")
    return found


def _check_transfer_syntax(file: BinaryIO) -> None:
    """Read the file meta information alone and refuse what must not be read on; leave the file at its start."""
    head = file.read(_PREAMBLE)
    if len(head) < _PREAMBLE or head[128:] != b"DICM":
        raise UnreadableObject("the file does not begin with a preamble and DICM, as DICOM files do")
    meta = read_dataset(
        BytesIO(file.read(_LONGEST_META)),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag.group != 2,
    )
    file.seek(0)
    syntax = text(meta, "TransferSyntaxUID")
    if not syntax:
        raise UnreadableObject("the file does not state its transfer syntax")
    if syntax == DeflatedExplicitVRLittleEndian:
        raise UnreadableObject("the transfer syntax is Deflated, which this node refuses")
