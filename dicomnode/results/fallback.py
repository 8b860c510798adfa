"""The same report under an older SOP class, for a destination that does not accept Comprehensive 3D SR.

The tree holds no 3D coordinates and no references by identifier, so it is valid under Comprehensive and Enhanced SR
as it stands. Another SOP class makes another SOP instance (PS3.4 B.4.1: an instance has one class), and a peer that
was sent both must not take one for a corrupt copy of the other; so the UID of the variant derives from the
original's and the class. The rule is the same for every version of a report, hence the variant's predecessors are
the variants of the original's predecessors: those are what such a destination holds.
"""

from collections.abc import Collection

from pydicom.dataset import Dataset
from pydicom.uid import UID, Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from dicomnode.domain.identifiers import derive_uid
from dicomnode.results.part10 import decode, encode

_PREFERENCE = (ComprehensiveSRStorage, EnhancedSRStorage)


def as_comprehensive(part10: bytes) -> bytes:
    """Return the Comprehensive 3D SR as a Comprehensive SR."""
    return _under(part10, ComprehensiveSRStorage)


def as_enhanced(part10: bytes) -> bytes:
    """Return the Comprehensive 3D SR as an Enhanced SR."""
    return _under(part10, EnhancedSRStorage)


def fallback(part10: bytes, accepted_sop_classes: Collection[str]) -> bytes | None:
    """Return the variant that the destination accepts best, or None when there is none (or it is no report)."""
    for sop_class in _PREFERENCE:
        if sop_class in accepted_sop_classes and decode(part10).SOPClassUID == Comprehensive3DSRStorage:
            return _under(part10, sop_class)
    return None


def variant_uid(sop_instance: str, sop_class: str) -> str:
    """Return the SOP Instance UID of a report's variant under another SOP class."""
    return derive_uid("variant", sop_instance, sop_class)


def _under(part10: bytes, sop_class: UID) -> bytes:
    ds = decode(part10)
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = variant_uid(ds.SOPInstanceUID, sop_class)
    for study in ds.get("PredecessorDocumentsSequence", []):
        for series in study.ReferencedSeriesSequence:
            _rename(series, sop_class)
    return encode(ds)


def _rename(series: Dataset, sop_class: UID) -> None:
    for item in series.ReferencedSOPSequence:
        item.ReferencedSOPInstanceUID = variant_uid(item.ReferencedSOPInstanceUID, sop_class)
        item.ReferencedSOPClassUID = sop_class
