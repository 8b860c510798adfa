"""Objects to be sent, the form that a destination prefers, and lossless transcoding for peers that need it."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomnode.dicom.part10 import part10_bytes, read_file_head, read_ref
from dicomnode.domain.delivery import StoreOutcome
from dicomnode.domain.errors import UndecodablePixels, UnreadableObject
from dicomnode.domain.instance import InstanceRef
from dicomnode.net.contexts import (
    COMPREHENSIVE_3D_SR,
    COMPRESSED_RESULTS,
    ENCODINGS,
    LOSSLESS,
    REPORT_PREFERENCES,
    UNCOMPRESSED,
)
from dicomnode.settings.delivery import PreferredEncoding, SrClass

BYTES_RAISE = (AttributeError, EOFError, KeyError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError)
"""What pydicom and its decoders raise on bytes that they cannot make sense of."""

MOST_ABORTS = 10
"""After so many objects in a row over which a peer ends the association or connection, the others are not tried."""
MOST_SILENCES = 2
"""After so many in a row to which a peer does not respond; each costs the whole response timeout."""

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


Fallback = Callable[[bytes, frozenset[str]], bytes | None]
"""Given Part 10 bytes and acceptable SOP classes: the same content as one of these, or None."""

Report = Callable[[int, StoreOutcome, InstanceRef | None], None]
"""Called as soon as an outcome is known: the position of the item, the outcome, what was sent if it was a fallback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """An instance to be sent; `read` returns its Part 10 bytes when its turn comes."""

    sop_class: str
    transfer_syntax: str
    read: Callable[[], bytes]


class BatchSender(Protocol):
    """A way to one destination."""

    def __call__(self, items: Sequence[Outgoing], *, report: Report) -> object:
        """Send a batch and report every outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The form in which a destination prefers results.

    Without an `encoding` everything goes in its own; without a `fallback` everything goes under its own class.
    """

    sr_class: SrClass = SrClass.COMPREHENSIVE_3D
    encoding: PreferredEncoding | None = None
    fallback: Fallback | None = None

    def classes(self, sop_class: str) -> tuple[str, ...]:
        """Return the SOP classes as which an object may be sent, the preferred one first."""
        if self.fallback is None or sop_class != COMPREHENSIVE_3D_SR.uid:
            return (sop_class,)
        return REPORT_PREFERENCES[self.sr_class]

    def syntax(self, sop_class: str) -> str | None:
        """Return the transfer syntax that the destination prefers for objects of this class, None for their own."""
        if self.encoding is None:
            return None
        for_all = self.encoding in (PreferredEncoding.EXPLICIT, PreferredEncoding.IMPLICIT)
        return ENCODINGS[self.encoding] if for_all or sop_class in COMPRESSED_RESULTS else None

    def under(self, part10: bytes, sop_class: str) -> tuple[bytes, InstanceRef | None] | None:
        """Return an object as one of this SOP class, with its new reference if it is another one; None if it cannot."""
        if read_file_head(part10).sop_class == sop_class:
            return part10, None
        variant = self.fallback(part10, frozenset({sop_class})) if self.fallback is not None else None
        if variant is None:
            return None
        head = read_file_head(variant)
        return variant, read_ref(variant[head.offset :], head.transfer_syntax)


AS_IT_IS = Form()
"""Every object under its own class and in its own encoding, where that is accepted."""
