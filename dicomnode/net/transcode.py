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

_PLAIN = frozenset({*UNCOMPRESSED, str(DeflatedExplicitVRLittleEndian)})
# What pydicom and its decoders raise on bytes that they cannot make sense of.
_READ_ERRORS = (AttributeError, EOFError, KeyError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError)


def can_transcode(transfer_syntax: str) -> bool:
    """Tell whether objects in this transfer syntax have an uncompressed form that is exactly the same image."""
    return transfer_syntax in _PLAIN or transfer_syntax in LOSSLESS


def uncompressed_data_set(part10: bytes, target: str) -> bytes:
    """Return the data set of a DICOM file encoded in the uncompressed transfer syntax `target`.

    The SOP Instance UID stays: a lossless transcoding is the same instance (PS3.3 C.7.6.1.1.5).
    Raises: UnreadableObject, UndecodablePixels.
    """
    with warnings.catch_warnings():
        # pydicom warns about values that break the standard, quoting them: they pass through unread here.
        warnings.simplefilter("ignore")
        try:
            data_set = dcmread(BytesIO(part10))
        except _READ_ERRORS as error:
            raise UnreadableObject("the object cannot be read") from error
        _decompress(data_set)
        return _encode(data_set, implicit=target == ImplicitVRLittleEndian)


def _decompress(data_set: Dataset) -> None:
    if str(data_set.file_meta.TransferSyntaxUID) in _PLAIN:
        return
    try:
        data_set.decompress(generate_instance_uid=False)
    except _READ_ERRORS as error:
        raise UndecodablePixels("the pixel data cannot be decompressed") from error


def _encode(data_set: Dataset, *, implicit: bool) -> bytes:
    buffer = BytesIO()
    writer = DicomIO(buffer)
    writer.is_little_endian = True
    writer.is_implicit_VR = implicit
    try:
        write_dataset(writer, data_set)
    except _READ_ERRORS as error:
        raise UnreadableObject("the object cannot be encoded anew") from error
    return buffer.getvalue()
