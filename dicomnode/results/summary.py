"""The answer as plain values, for the ledger and for `analyze`'s JSON: UIDs and numbers, no patient data."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from dicomnode.domain.answer import Rejection
from dicomnode.domain.finding import Assessment, Finding, Presence

_DIGITS = 6


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


def summarise(study: str, assessments: Sequence[Assessment], rejections: Sequence[Rejection]) -> dict[str, object]:
    """Return what was said of each image of a study."""
    return {
        "study": study,
        "model": _model(assessments),
        "images": [_image(assessment) for assessment in assessments],
        "rejected": [
            {"sop_instance": entry.source.sop_instance, "reason": entry.reason.value, "detail": entry.detail}
            for entry in rejections
        ],
    }


def _model(assessments: Sequence[Assessment]) -> dict[str, str] | None:
    if not assessments:
        return None
    model = assessments[0].model
    return {"name": model.name, "version": model.version, "bundle_hash": model.bundle_hash}


def _image(assessment: Assessment) -> dict[str, object]:
    return {
        "sop_instance": assessment.source.sop_instance,
        "abnormality": _finding(assessment.abnormality),
        "findings": [_finding(finding) for finding in assessment.findings],
    }


def _finding(finding: Finding) -> dict[str, object]:
    return {
        "label": finding.label,
        "probability": round(finding.probability, _DIGITS),
        "spread": round(finding.spread, _DIGITS),
        "presence": finding.presence.value,
        "operating_point": finding.operating_point.name,
        "threshold": round(finding.operating_point.threshold, _DIGITS),
    }


class SaidFinding(_Said):
    """What a summary says of one label."""

    label: str
    probability: float
    spread: float
    presence: Presence
    operating_point: str
    threshold: float


class SaidImage(_Said):
    """What a summary says of one image that was analysed."""

    sop_instance: str
    abnormality: SaidFinding
    findings: tuple[SaidFinding, ...] = ()

    def labels(self) -> tuple[SaidFinding, ...]:
        """Return what is said of every label, abnormality first."""
        return (self.abnormality, *self.findings)


class SaidModel(_Said):
    """Which model a summary names."""

    name: str
    version: str
    bundle_hash: str


class SaidRejection(_Said):
    """What a summary says of one image that was not analysed."""

    sop_instance: str
    reason: str


class Summary(_Said):
    """A summary read back: `summarise` writes it."""

    model: SaidModel | None = None
    images: tuple[SaidImage, ...] = ()
    rejected: tuple[SaidRejection, ...] = ()


def read_summary(summary: object) -> Summary:
    """Return what a summary says; one of a form that this version does not know says nothing."""
    try:
        return Summary.model_validate(summary)
    except ValidationError:
        return Summary()
