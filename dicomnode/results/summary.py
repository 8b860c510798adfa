"""The answer's summary: made of assessments, and written to and read from JSON."""

from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter, ValidationError

from dicomnode.domain.answer import Rejection
from dicomnode.domain.evidence import Evidence
from dicomnode.domain.finding import Assessment, Finding
from dicomnode.domain.summary import FindingSummary, ImageSummary, RejectionSummary, StudySummary

_DIGITS = 6
_SUMMARY = TypeAdapter(StudySummary)


def summarise(
    study: str,
    assessments: Sequence[Assessment],
    rejections: Sequence[Rejection],
    evidence: Mapping[str, tuple[Evidence, ...]] | None = None,
) -> StudySummary:
    """Return the summary of the answer to a study; `evidence` is by SOP Instance UID."""
    known = evidence or {}
    return StudySummary(
        study=study,
        model=assessments[0].model if assessments else None,
        images=tuple(_image(assessment, known) for assessment in assessments),
        rejected=tuple(
            RejectionSummary(
                sop_instance=entry.source.sop_instance,
                reason=entry.reason.value,
                detail=entry.detail,
                evidence=known.get(entry.source.sop_instance, ()),
            )
            for entry in rejections
        ),
    )


def summary_to_json(summary: StudySummary) -> dict[str, object]:
    """Return the summary as values that JSON has."""
    values: dict[str, object] = _SUMMARY.dump_python(summary, mode="json")
    return values


def read_summary(values: object) -> StudySummary:
    """Return what `summary_to_json` wrote, unknown fields left out; an empty summary for values of another form."""
    try:
        return _SUMMARY.validate_python(values)
    except ValidationError:
        return StudySummary()


def _image(assessment: Assessment, evidence: Mapping[str, tuple[Evidence, ...]]) -> ImageSummary:
    return ImageSummary(
        sop_instance=assessment.source.sop_instance,
        abnormality=_finding(assessment.abnormality),
        findings=tuple(_finding(finding) for finding in assessment.findings),
        is_unusual=assessment.is_unusual,
        evidence=evidence.get(assessment.source.sop_instance, ()),
    )


def _finding(finding: Finding) -> FindingSummary:
    return FindingSummary(
        label=finding.label,
        probability=round(finding.probability, _DIGITS),
        spread=round(finding.spread, _DIGITS),
        presence=finding.presence,
        operating_point=finding.operating_point.name,
        threshold=round(finding.operating_point.threshold, _DIGITS),
        base_rate=None if finding.base_rate is None else round(finding.base_rate, _DIGITS),
    )
