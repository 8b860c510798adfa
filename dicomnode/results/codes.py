"""The terminology table as highdicom's coded concepts, for the writers of results."""

from highdicom.sr import CodedConcept

from dicomnode.domain import terminology as table
from dicomnode.domain.coding import from_text
from dicomnode.domain.finding import Code, Presence
from dicomnode.domain.terminology import Entry


def concept(code: Code) -> CodedConcept:
    """Return highdicom's form of a code."""
    return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)


def configured(text: str) -> CodedConcept:
    """Return highdicom's form of a code from the configuration."""
    return concept(from_text(text))


def _of(entry: Entry) -> CodedConcept:
    return concept(entry.code)


ENGLISH = _of(table.ENGLISH)
REPORT_TITLE = _of(table.REPORT_TITLE)
PROCEDURE_REPORTED = _of(table.PROCEDURE_REPORTED)
DEVICE = _of(table.DEVICE)

IMAGE_LIBRARY = _of(table.IMAGE_LIBRARY)
IMAGE_LIBRARY_GROUP = _of(table.IMAGE_LIBRARY_GROUP)
SOURCE = _of(table.SOURCE)
MODALITY = _of(table.MODALITY)
PIXEL_ROWS = _of(table.PIXEL_ROWS)
PIXEL_COLUMNS = _of(table.PIXEL_COLUMNS)
PIXELS = _of(table.PIXELS)

IMAGING_MEASUREMENTS = _of(table.IMAGING_MEASUREMENTS)
PROBABILITY = _of(table.PROBABILITY)
NO_UNITS = _of(table.NO_UNITS)
SOURCE_OF_MEASUREMENT = _of(table.SOURCE_OF_MEASUREMENT)
PRESENCE = _of(table.PRESENCE)

QUALITATIVE_EVALUATIONS = _of(table.QUALITATIVE_EVALUATIONS)
NORMALITY = _of(table.NORMALITY)
NORMAL = _of(table.NORMAL)
ABNORMAL = _of(table.ABNORMAL)
NORMALITY_UNDETERMINED = _of(table.NORMALITY_UNDETERMINED)
PROCESSING_SUMMARY = _of(table.PROCESSING_SUMMARY)
ALL_SUCCEEDED_WITHOUT_FINDINGS = _of(table.ALL_SUCCEEDED_WITHOUT_FINDINGS)
ALL_SUCCEEDED_WITH_FINDINGS = _of(table.ALL_SUCCEEDED_WITH_FINDINGS)
NOT_ALL_SUCCEEDED_WITHOUT_FINDINGS = _of(table.NOT_ALL_SUCCEEDED_WITHOUT_FINDINGS)
NOT_ALL_SUCCEEDED_WITH_FINDINGS = _of(table.NOT_ALL_SUCCEEDED_WITH_FINDINGS)
NONE_SUCCEEDED = _of(table.NONE_SUCCEEDED)
IMPRESSION = _of(table.IMPRESSION)
COMMENT = _of(table.COMMENT)

CLASS_ACTIVATION = _of(table.CLASS_ACTIVATION)
SOURCE_IMAGE = _of(table.SOURCE_IMAGE)

REASON_NOT_ANALYSED = _of(table.REASON_NOT_ANALYSED)
REJECTION_REASONS = {reason: _of(entry) for reason, entry in table.REJECTION_REASONS.items()}

PRESENCE_VALUES = {
    Presence.PRESENT: _of(table.PRESENT),
    Presence.ABSENT: _of(table.ABSENT),
    Presence.UNDETERMINED: _of(table.UNDETERMINED),
}
MODALITIES = {entry.code.value: _of(entry) for entry in (table.COMPUTED_RADIOGRAPHY, table.DIGITAL_RADIOGRAPHY)}
