"""The answer to a study in UIDs and numbers: what the ledger keeps of it, and what the page and exports show."""

from collections.abc import Iterator
from dataclasses import dataclass

from dicomnode.domain.evidence import Evidence
from dicomnode.domain.finding import ModelIdentity, Presence


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingSummary:
    """One label's probability, and what it means at the operating point; see `dicomnode.domain.finding.Finding`."""

    label: str
    probability: float
    spread: float
    presence: Presence
    operating_point: str
    threshold: float
    base_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSummary:
    """The findings in one image that was analysed, and which of its elements said what."""

    sop_instance: str
    abnormality: FindingSummary
    findings: tuple[FindingSummary, ...] = ()
    is_unusual: bool = False
    evidence: tuple[Evidence, ...] = ()

    def labels(self) -> tuple[FindingSummary, ...]:
        """Return the summary of every label, abnormality first."""
        return (self.abnormality, *self.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionSummary:
    """One image that was not analysed, and why; `detail` is a sentence, "" in answers of former versions.

    `evidence`: which of its elements said what, empty for one that could not be read.
    """

    sop_instance: str
    reason: str
    detail: str = ""
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySummary:
    """The answer to one version of a study; `model` is None where no image was analysed."""

    study: str = ""
    model: ModelIdentity | None = None
    images: tuple[ImageSummary, ...] = ()
    rejected: tuple[RejectionSummary, ...] = ()

    def evidence(self) -> Iterator[tuple[str, tuple[Evidence, ...]]]:
        """Return the SOP Instance UID of each image with what its elements said, those without evidence left out."""
        told = [(image.sop_instance, image.evidence) for image in self.images]
        told += [(image.sop_instance, image.evidence) for image in self.rejected]
        return ((uid, evidence) for uid, evidence in told if evidence)
