"""Part 10 bytes to a data set, pixels untouched."""

from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicomnode.dicom.attributes import HOSTILE_DATA_RAISES, quiet, text
from dicomnode.dicom.character_set import correct_character_set
from dicomnode.domain.errors import UnreadableObject
from dicomnode.domain.instance import InstanceRef

_PREAMBLE = 132
_LONGEST_META = 1 << 20


def read(part10: bytes | Path) -> Dataset:
    """Read a DICOM file, held in memory or named by its path, without decoding its pixels.

    Its Specific Character Set is corrected where the texts are not in it.
    Deflated objects are refused before they are inflated: their size is not known beforehand.
    Raises: UnreadableObject.
    """
    try:
        with quiet(), _open(part10) as file:
            _check_transfer_syntax(file)
            ds = dcmread(file)
            correct_character_set(ds)
    except HOSTILE_DATA_RAISES as error:
        raise UnreadableObject(f"the bytes are not a DICOM file this node can parse ({type(error).__name__})") from None
    if len(ds) == 0:
        raise UnreadableObject("the file holds no data set")
    return ds


def ref_of(ds: Dataset) -> InstanceRef:
    """Return the identifiers of an object that came from a file rather than over an association.

    Raises: UnreadableObject when one of them is missing.
    """
    found = {
        keyword: text(ds, keyword)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
    }
    missing = [keyword for keyword, value in found.items() if not value]
    if missing:
        raise UnreadableObject(f"the object has no {', '.join(missing)}")
    return InstanceRef(
        study=found["StudyInstanceUID"],
        series=found["SeriesInstanceUID"],
        sop_class=found["SOPClassUID"],
        sop_instance=found["SOPInstanceUID"],
    )


def _open(part10: bytes | Path) -> BinaryIO:
    return part10.open("rb") if isinstance(part10, Path) else BytesIO(part10)


def _check_transfer_syntax(file: BinaryIO) -> None:
    """Read the file meta information alone and refuse what must not be read on; leave the file at its start."""
    head = file.read(_PREAMBLE)
    if len(head) < _PREAMBLE or head[128:] != b"DICM":
        raise InvalidDicomError
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
