"""Another encoding of the same object, for peers that do not take the one at hand. Never with loss."""

import warnings
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomnode.domain.errors import UndecodablePixels, UnreadableObject
from dicomnode.net.contexts import LOSSLESS, UNCOMPRESSED
from dicomnode.net.part10 import part10_bytes

BYTES_RAISE = (AttributeError, EOFError, KeyError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError)
"""What pydicom and its decoders raise on bytes that they cannot make sense of."""

_PLAIN = frozenset({*UNCOMPRESSED, str(DeflatedExplicitVRLittleEndian)})


def can_transcode(transfer_syntax: str) -> bool:
    """Tell whether objects in this transfer syntax have an uncompressed form that is exactly the same image."""
    return transfer_syntax in _PLAIN or transfer_syntax in LOSSLESS


def encoded_data_set(part10: bytes, target: str) -> bytes:
    """Return the data set of a DICOM file encoded in the uncompressed or lossless transfer syntax `target`.

    The SOP Instance UID stays: a lossless transcoding is the same instance (PS3.3 C.7.6.1.1.5).
    Raises: UnreadableObject, UndecodablePixels.
    """
    return _encode(_in_syntax(part10, target), implicit=target == ImplicitVRLittleEndian)


def encoded_file(part10: bytes, target: str) -> bytes:
    """Return a DICOM file in the transfer syntax `target`, as `encoded_data_set` does.

    Raises: UnreadableObject, UndecodablePixels.
    """
    data_set = _in_syntax(part10, target)
    return part10_bytes(
        _encode(data_set, implicit=target == ImplicitVRLittleEndian),
        sop_class=str(data_set.SOPClassUID),
        sop_instance=str(data_set.SOPInstanceUID),
        transfer_syntax=target,
    )


def _in_syntax(part10: bytes, target: str) -> Dataset:
    with warnings.catch_warnings():
        # pydicom warns about values that break the standard, quoting them: they pass through unread here.
        warnings.simplefilter("ignore")
        try:
            data_set = dcmread(BytesIO(part10))
        except BYTES_RAISE as error:
            raise UnreadableObject("the object cannot be read") from error
        _decompress(data_set)
        if target not in UNCOMPRESSED:
            _compress(data_set, target)
        return data_set


def _decompress(data_set: Dataset) -> None:
    if str(data_set.file_meta.TransferSyntaxUID) in _PLAIN:
        return
    try:
        data_set.decompress(generate_instance_uid=False)
    except BYTES_RAISE as error:
        raise UndecodablePixels("the pixel data cannot be decompressed") from error


def _compress(data_set: Dataset, target: str) -> None:
    try:
        data_set.compress(target, generate_instance_uid=False)
    except BYTES_RAISE as error:
        raise UndecodablePixels("the pixel data cannot be compressed") from error


def _encode(data_set: Dataset, *, implicit: bool) -> bytes:
    buffer = BytesIO()
    writer = DicomIO(buffer)
    writer.is_little_endian = True
    writer.is_implicit_VR = implicit
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_dataset(writer, data_set)
    except BYTES_RAISE as error:
        raise UnreadableObject("the object cannot be encoded anew") from error
    return buffer.getvalue()
