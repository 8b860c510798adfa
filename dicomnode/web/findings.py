"""What the model said, as bars and words: read from an answer's summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dicomnode.domain.answer import RejectionReason
from dicomnode.domain.finding import Presence, odds_ratio
from dicomnode.domain.summary import FindingSummary, ImageSummary, StudySummary

REASONS: Mapping[RejectionReason, str] = {
    RejectionReason.OWN_RESULT: "A result of this node",
    RejectionReason.NOT_A_PROJECTION: "Not a radiograph",
    RejectionReason.MODALITY: "Other modality",
    RejectionReason.BODY_PART: "Other body part",
    RejectionReason.LATERAL_VIEW: "Lateral view",
    RejectionReason.UNKNOWN_VIEW: "Unknown view",
    RejectionReason.MULTI_FRAME: "Several frames",
    RejectionReason.TOO_SMALL: "Too small",
    RejectionReason.TOO_LARGE: "Too large",
    RejectionReason.AGE: "Age",
    RejectionReason.UNREADABLE: "Unreadable",
    RejectionReason.CORRUPT_PIXELS: "Corrupt pixels",
    RejectionReason.NOT_CHEST_FRONTAL: "Does not look like a frontal chest",
    RejectionReason.ORIENTATION: "Turned or inverted",
    RejectionReason.PATIENT_MISMATCH: "Different patients in one study",
    RejectionReason.RAW_OF_PROCESSED: "Raw image of a processed one",
}
"""Why an image was not analysed, in a few words."""

_ORDER = (Presence.PRESENT, Presence.UNDETERMINED, Presence.ABSENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One probability with the spread of the members and the threshold, as parts of 100."""

    label: str
    name: str
    probability: float
    spread: float
    low: float
    high: float
    threshold: float
    presence: Presence
    point: str


def bars_of(image: ImageSummary) -> tuple[Bar, ...]:
    """Return what was said of an image: abnormality first, then what is present, most over its threshold first."""
    return (_bar(image.abnormality), *sorted(map(_bar, image.findings), key=_rank))


def images_by_uid(summary: StudySummary) -> dict[str, tuple[Bar, ...]]:
    """Return the bars of every image of an answer by its SOP Instance UID."""
    return {image.sop_instance: bars_of(image) for image in summary.images}


def headline(summary: StudySummary) -> tuple[str, Presence | None]:
    """Return an answer in a few words, and how it is to be marked."""
    bars = [bar for bars in images_by_uid(summary).values() for bar in bars]
    if not bars:
        return "", None
    present = list(dict.fromkeys(bar.name for bar in bars if bar.presence is Presence.PRESENT))
    if present:
        return ", ".join(present[:3]) + (f" +{len(present) - 3}" if len(present) > 3 else ""), Presence.PRESENT
    undetermined = any(bar.presence is Presence.UNDETERMINED for bar in bars)
    return ("Undetermined", Presence.UNDETERMINED) if undetermined else ("Nothing found", Presence.ABSENT)


def first_to_show(bars: Sequence[Bar], labels: Sequence[str]) -> str:
    """Return the finding whose map is shown first: the one furthest over its threshold that has one."""
    ranked = sorted(bars[1:] or bars, key=_rank)
    return next((bar.label for bar in ranked if bar.label in labels), "")


def _bar(said: FindingSummary) -> Bar:
    return Bar(
        label=said.label,
        name=said.label.replace("_", " "),
        probability=100 * said.probability,
        spread=100 * said.spread,
        low=100 * max(0.0, said.probability - said.spread),
        high=100 * min(1.0, said.probability + said.spread),
        threshold=100 * said.threshold,
        presence=said.presence,
        point=said.operating_point,
    )


def _rank(bar: Bar) -> tuple[int, float]:
    return _ORDER.index(bar.presence), -odds_ratio(bar.probability / 100, bar.threshold / 100)
