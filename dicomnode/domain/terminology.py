"""The terminology table: every code that the node writes, once, with the source that vouches for it.

Invented identifiers circulate in public code, so no other module states a code. A source `PS3.16 CID n` is a context
group that holds the code, `SNOMED CT: ...` its fully specified name there; tests hold the table against both, and
against the check digits. The findings here are those of the shipped model's labels: a bundle brings its own.
"""

from dataclasses import dataclass

from dicomnode.domain.answer import RejectionReason
from dicomnode.domain.finding import Code

ABNORMALITY = "Abnormal"
"""The label of the binary head."""

PRIVATE_SCHEME = "99CXRNODE"
"""Designator of the node's own codes; identified in Coding Scheme Identification Sequence wherever it is used."""

_DCM, _SCT = "DCM", "SCT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A code and the source that vouches for it."""

    code: Code
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A label's finding and anatomical site."""

    label: str
    code: Code
    site: Code


def _entry(scheme: str, value: str, meaning: str, source: str) -> Entry:
    return Entry(code=Code(value=value, scheme=scheme, meaning=meaning), source=source)


def _sct(value: str, meaning: str) -> Entry:
    """Return a concept that PS3.16 does not hold; its fully specified name says that it is a disorder."""
    return _entry(_SCT, value, meaning, f"SNOMED CT: {meaning} (disorder)")


def _summary(value: str, meaning: str) -> Entry:
    return _entry(_DCM, value, meaning, "PS3.16 CID 6047")


def _own(value: str, meaning: str) -> Entry:
    """Return a code of the node's own; values are at most 16 characters (SH), so some words are shortened."""
    return _entry(PRIVATE_SCHEME, value, meaning, "this node")


# The document
ENGLISH = _entry("RFC5646", "en", "English", "RFC 5646")
REPORT_TITLE = _entry(_DCM, "126000", "Imaging Measurement Report", "PS3.16 CID 7021")
PROCEDURE_REPORTED = _entry(_DCM, "121058", "Procedure reported", "PS3.16 CID 6052")
IMAGING_PROCEDURE = _entry(_SCT, "363679005", "Imaging procedure", "PS3.16 CID 100")
DEVICE = _entry(_DCM, "121007", "Device", "PS3.16 CID 270")

# The image library
IMAGE_LIBRARY = _entry(_DCM, "111028", "Image Library", "PS3.16 Annex D")
IMAGE_LIBRARY_GROUP = _entry(_DCM, "126200", "Image Library Group", "PS3.16 Annex D")
SOURCE = _entry(_SCT, "260753009", "Source", "PS3.16 Annex O")
MODALITY = _entry(_DCM, "121139", "Modality", "PS3.16 Annex D")
COMPUTED_RADIOGRAPHY = _entry(_DCM, "CR", "Computed Radiography", "PS3.16 CID 29")
DIGITAL_RADIOGRAPHY = _entry(_DCM, "DX", "Digital Radiography", "PS3.16 CID 29")
PIXEL_ROWS = _entry(_DCM, "110910", "Pixel Data Rows", "PS3.16 Annex D")
PIXEL_COLUMNS = _entry(_DCM, "110911", "Pixel Data Columns", "PS3.16 Annex D")
PIXELS = _entry("UCUM", "{pixels}", "Pixels", "PS3.16 TID 1602")

# A finding
IMAGING_MEASUREMENTS = _entry(_DCM, "126010", "Imaging Measurements", "PS3.16 Annex D")
PROBABILITY = _entry(_DCM, "122157", "Probability", "PS3.16 Annex D")
NO_UNITS = _entry("UCUM", "1", "no units", "PS3.16 CID 7181")
SOURCE_OF_MEASUREMENT = _entry(_DCM, "121112", "Source of Measurement", "PS3.16 CID 7551")
PRESENCE = _entry(_SCT, "705057003", "Presence", "SNOMED CT: Presence (property) (qualifier value)")
PRESENT = _entry(_SCT, "52101004", "Present", "PS3.16 CID 240")
ABSENT = _entry(_SCT, "272519000", "Absent", "PS3.16 CID 240")
UNDETERMINED = _entry(_SCT, "373068000", "Undetermined", "PS3.16 CID 240")

# The whole study
QUALITATIVE_EVALUATIONS = _entry("UMLS", "C0034375", "Qualitative Evaluations", "PS3.16 TID 1500")
NORMALITY = _entry(_DCM, "121402", "Normality", "PS3.16 Annex D")
NORMAL = _entry(_SCT, "17621005", "Normal", "PS3.16 CID 242")
ABNORMAL = _entry(_SCT, "263654008", "Abnormal", "PS3.16 CID 242")
NORMALITY_UNDETERMINED = _entry(_SCT, "371934000", "Normality Undetermined", "PS3.16 CID 242")
PROCESSING_SUMMARY = _entry(_DCM, "111017", "CAD Processing and Findings Summary", "PS3.16 Annex D")
ALL_SUCCEEDED_WITHOUT_FINDINGS = _summary("111241", "All algorithms succeeded; without findings")
ALL_SUCCEEDED_WITH_FINDINGS = _summary("111242", "All algorithms succeeded; with findings")
NOT_ALL_SUCCEEDED_WITHOUT_FINDINGS = _summary("111243", "Not all algorithms succeeded; without findings")
NOT_ALL_SUCCEEDED_WITH_FINDINGS = _summary("111244", "Not all algorithms succeeded; with findings")
NONE_SUCCEEDED = _summary("111245", "No algorithms succeeded; without findings")
IMPRESSION = _entry(_DCM, "121073", "Impression", "PS3.16 CID 6053")
COMMENT = _entry(_DCM, "121106", "Comment", "PS3.16 CID 12101")

# Other objects
CLASS_ACTIVATION = _entry(_DCM, "130403", "Gradient-weighted class activation", "PS3.16 CID 7180")
PROCESSING_EQUIPMENT = _entry(_DCM, "109102", "Processing Equipment", "PS3.16 CID 7005")
SOURCE_IMAGE = _entry(_DCM, "121322", "Source image for image processing operation", "PS3.16 CID 7202")

# An image that was not analysed
REASON_NOT_ANALYSED = _own("NOT_ANALYSED", "Reason an image was not analysed")
REJECTION_REASONS: dict[RejectionReason, Entry] = {
    RejectionReason.OWN_RESULT: _own("OWN_RESULT", "Result of this device"),
    RejectionReason.NOT_A_PROJECTION: _own("NO_PROJECTION", "Not a projection radiograph"),
    RejectionReason.MODALITY: _own("MODALITY", "Modality not supported"),
    RejectionReason.BODY_PART: _own("BODY_PART", "Body part not supported"),
    RejectionReason.LATERAL_VIEW: _own("LATERAL_VIEW", "Lateral view"),
    RejectionReason.UNKNOWN_VIEW: _own("UNKNOWN_VIEW", "View unknown"),
    RejectionReason.MULTI_FRAME: _own("MULTI_FRAME", "Multi-frame image"),
    RejectionReason.TOO_SMALL: _own("TOO_SMALL", "Image too small"),
    RejectionReason.TOO_LARGE: _own("TOO_LARGE", "Image too large"),
    RejectionReason.AGE: _own("AGE", "Patient age not supported"),
    RejectionReason.UNREADABLE: _own("UNREADABLE", "Object unreadable"),
    RejectionReason.CORRUPT_PIXELS: _own("CORRUPT_PIXELS", "Pixel data corrupt"),
    RejectionReason.UNSUPPORTED_PIXELS: _own("PIXEL_ENCODING", "Encoding of pixel data not supported"),
    RejectionReason.NOT_CHEST_FRONTAL: _own("NOT_FRONTAL", "Pixels not those of a frontal chest"),
    RejectionReason.ORIENTATION: _own("ORIENTATION", "Orientation uncertain"),
    RejectionReason.PATIENT_MISMATCH: _own("PATIENT_MISMATCH", "Images of different patients in one study"),
    RejectionReason.RAW_OF_PROCESSED: _own("RAW_IMAGE", "Processed image of the same exposure analysed"),
}

# The labels of NIH ChestX-ray14 (Wang et al., CVPR 2017)
LUNG = _entry(_SCT, "39607008", "Lung", "PS3.16 CID 8134")
HEART = _entry(_SCT, "80891009", "Heart", "PS3.16 CID 8134")
PLEURA = _entry(_SCT, "3120008", "Pleura", "PS3.16 CID 7151")
DIAPHRAGM = _entry(_SCT, "5798000", "Diaphragm", "PS3.16 CID 8134")

_FINDINGS: dict[str, tuple[Entry, Entry]] = {
    "Atelectasis": (_sct("46621007", "Atelectasis"), LUNG),
    "Cardiomegaly": (_sct("8186001", "Cardiomegaly"), HEART),
    "Consolidation": (_sct("95436008", "Lung consolidation"), LUNG),
    "Edema": (_entry(_SCT, "19242006", "Pulmonary edema", "PS3.16 CID 3700"), LUNG),
    "Effusion": (_entry(_SCT, "60046008", "Pleural effusion", "PS3.16 CID 8134"), PLEURA),
    "Emphysema": (_sct("87433001", "Pulmonary emphysema"), LUNG),
    "Fibrosis": (_sct("51615001", "Fibrosis of lung"), LUNG),
    # NIH's label names no kind of hernia.
    "Hernia": (_sct("39839004", "Diaphragmatic hernia"), DIAPHRAGM),
    "Infiltration": (_entry(_DCM, "112121", "Infiltrate", "PS3.16 CID 6104"), LUNG),
    "Mass": (_entry(_SCT, "4147007", "Mass", "PS3.16 CID 6104"), LUNG),
    "Nodule": (_entry(_SCT, "27925004", "Nodule", "PS3.16 CID 6104"), LUNG),
    # No SNOMED CT concept could be verified for pleural thickening, so the site carries the pleura.
    "Pleural_Thickening": (_entry("RADLEX", "RID28509", "thickening", "RadLex: thickening"), PLEURA),
    "Pneumonia": (_sct("233604007", "Pneumonia"), LUNG),
    "Pneumothorax": (_entry(_SCT, "36118008", "Pneumothorax", "PS3.16 CID 6105"), PLEURA),
}

NIH_TERMS: dict[str, Term] = {
    label: Term(label=label, code=finding.code, site=site.code) for label, (finding, site) in _FINDINGS.items()
}
"""The 14 labels in the order of the model's outputs 1 to 14."""


def entries() -> tuple[Entry, ...]:
    """Return the whole table, each entry once."""
    held = [value for value in globals().values() if isinstance(value, Entry)]
    findings = [entry for pair in _FINDINGS.values() for entry in pair]
    return tuple(dict.fromkeys((*held, *REJECTION_REASONS.values(), *findings)))
