"""Every fixed code the results use, once. Findings and their sites come from the bundle's manifest instead.

Source: PS3.16 Annexes B and D (CID 242, 6047, 7452; DCM), SNOMED CT, UMLS, UCUM, RFC 5646.
"""

from highdicom.sr import CodedConcept

from dicomnode.domain.finding import Code, Presence
from dicomnode.domain.job import RejectionReason

PRIVATE_SCHEME = "99CXRNODE"
"""Designator of the node's own codes; identified in Coding Scheme Identification Sequence wherever it is used."""


def concept(code: Code) -> CodedConcept:
    """Return highdicom's form of a code."""
    return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)


def _code(scheme: str, value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value=value, scheme_designator=scheme, meaning=meaning)


ENGLISH = _code("RFC5646", "en", "English")
IMAGING_PROCEDURE = _code("SCT", "363679005", "Imaging procedure")
PROCEDURE_REPORTED = _code("DCM", "121058", "Procedure reported")
REPORT_TITLE = _code("DCM", "126000", "Imaging Measurement Report")
DEVICE = _code("DCM", "121007", "Device")

IMAGE_LIBRARY = _code("DCM", "111028", "Image Library")
IMAGE_LIBRARY_GROUP = _code("DCM", "126200", "Image Library Group")
SOURCE = _code("SCT", "260753009", "Source")
MODALITY = _code("DCM", "121139", "Modality")
PIXEL_ROWS = _code("DCM", "110910", "Pixel Data Rows")
PIXEL_COLUMNS = _code("DCM", "110911", "Pixel Data Columns")
PIXELS = _code("UCUM", "{pixels}", "Pixels")

IMAGING_MEASUREMENTS = _code("DCM", "126010", "Imaging Measurements")
PROBABILITY = _code("DCM", "122157", "Probability")
SOURCE_OF_MEASUREMENT = _code("DCM", "121112", "Source of Measurement")
NO_UNITS = _code("UCUM", "1", "no units")
PRESENCE = _code("SCT", "705057003", "Presence")

QUALITATIVE_EVALUATIONS = _code("UMLS", "C0034375", "Qualitative Evaluations")
NORMALITY = _code("DCM", "121402", "Normality")
NORMAL = _code("SCT", "17621005", "Normal")
ABNORMAL = _code("SCT", "263654008", "Abnormal")
NORMALITY_UNDETERMINED = _code("SCT", "371934000", "Normality Undetermined")
PROCESSING_SUMMARY = _code("DCM", "111017", "CAD Processing and Findings Summary")
COMMENT = _code("DCM", "121106", "Comment")
REASON_NOT_ANALYSED = _code(PRIVATE_SCHEME, "NOT_ANALYSED", "Reason an image was not analysed")

CLASS_ACTIVATION = _code("DCM", "130403", "Gradient-weighted class activation")
PROCESSING_EQUIPMENT = _code("DCM", "109102", "Processing Equipment")
SOURCE_IMAGE = _code("DCM", "121322", "Source image for image processing operation")

ALL_SUCCEEDED_WITHOUT_FINDINGS = _code("DCM", "111241", "All algorithms succeeded; without findings")
ALL_SUCCEEDED_WITH_FINDINGS = _code("DCM", "111242", "All algorithms succeeded; with findings")
NOT_ALL_SUCCEEDED_WITHOUT_FINDINGS = _code("DCM", "111243", "Not all algorithms succeeded; without findings")
NOT_ALL_SUCCEEDED_WITH_FINDINGS = _code("DCM", "111244", "Not all algorithms succeeded; with findings")
NONE_SUCCEEDED = _code("DCM", "111245", "No algorithms succeeded; without findings")

PRESENCE_VALUES = {
    Presence.PRESENT: _code("SCT", "52101004", "Present"),
    Presence.ABSENT: _code("SCT", "272519000", "Absent"),
    Presence.UNDETERMINED: _code("SCT", "373068000", "Undetermined"),
}

MODALITIES = {
    "CR": _code("DCM", "CR", "Computed Radiography"),
    "DX": _code("DCM", "DX", "Digital Radiography"),
}

# Code values are at most 16 characters (SH), so the ledger's words are shortened where they must be.
REJECTION_REASONS = {
    RejectionReason.OWN_RESULT: _code(PRIVATE_SCHEME, "OWN_RESULT", "Result of this device"),
    RejectionReason.NOT_A_PROJECTION: _code(PRIVATE_SCHEME, "NO_PROJECTION", "Not a projection radiograph"),
    RejectionReason.MODALITY: _code(PRIVATE_SCHEME, "MODALITY", "Modality not supported"),
    RejectionReason.BODY_PART: _code(PRIVATE_SCHEME, "BODY_PART", "Body part not supported"),
    RejectionReason.LATERAL_VIEW: _code(PRIVATE_SCHEME, "LATERAL_VIEW", "Lateral view"),
    RejectionReason.UNKNOWN_VIEW: _code(PRIVATE_SCHEME, "UNKNOWN_VIEW", "View unknown"),
    RejectionReason.MULTI_FRAME: _code(PRIVATE_SCHEME, "MULTI_FRAME", "Multi-frame image"),
    RejectionReason.TOO_SMALL: _code(PRIVATE_SCHEME, "TOO_SMALL", "Image too small"),
    RejectionReason.TOO_LARGE: _code(PRIVATE_SCHEME, "TOO_LARGE", "Image too large"),
    RejectionReason.AGE: _code(PRIVATE_SCHEME, "AGE", "Patient age not supported"),
    RejectionReason.UNREADABLE: _code(PRIVATE_SCHEME, "UNREADABLE", "Object unreadable"),
    RejectionReason.CORRUPT_PIXELS: _code(PRIVATE_SCHEME, "CORRUPT_PIXELS", "Pixel data corrupt"),
    RejectionReason.NOT_CHEST_FRONTAL: _code(PRIVATE_SCHEME, "NOT_FRONTAL", "Pixels not those of a frontal chest"),
    RejectionReason.ORIENTATION: _code(PRIVATE_SCHEME, "ORIENTATION", "Orientation uncertain"),
}
