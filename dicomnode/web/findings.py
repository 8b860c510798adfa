"""What the page shows of an answer, in numbers and words; `dicomnode.results.presentation` decides what and how."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dicomnode.domain.answer import RejectionReason
from dicomnode.domain.finding import Presence
from dicomnode.domain.summary import FindingSummary, ImageSummary, StudySummary
from dicomnode.results.panel import BAR_SPAN
from dicomnode.results.presentation import (
    ABNORMALITY,
    by_evidence,
    evidence,
    impression,
    likelihood,
    name_of,
    times_base_rate,
    with_heat,
    word_of,
)
from dicomnode.settings.node import ResultSettings

_NAMED = 3

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
    RejectionReason.UNSUPPORTED_PIXELS: "Pixel encoding not supported",
    RejectionReason.NOT_CHEST_FRONTAL: "Does not look like a frontal chest",
    RejectionReason.ORIENTATION: "Turned or inverted",
    RejectionReason.PATIENT_MISMATCH: "Different patients in one study",
    RejectionReason.RAW_OF_PROCESSED: "Raw image of a processed one",
}
"""Why an image was not analysed, in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One label as a row of the page: numbers are parts of 100, and words are the site's.

    `evidence`, `low`, `high`: log odds over the threshold of the probability, and of it less and plus the spread, from
    -1 to 1, as the bar is drawn. `likelihood`: against the base rate, "" where that is not known. `has_heat`: whether
    its map is drawn.
    """

    label: str
    name: str
    probability: float
    spread: float
    threshold: float
    presence: Presence
    word: str
    point: str
    times: str
    likelihood: str
    evidence: float
    low: float
    high: float
    has_heat: bool


def bars_of(image: ImageSummary, settings: ResultSettings) -> tuple[Bar, ...]:
    """Return the rows of an image: abnormality, then the findings as pictures and reports order them."""
    heated = with_heat(image.abnormality, image.findings)
    return tuple(
        _bar(rated, settings, has_heat=rated in heated, is_whole=rated is image.abnormality)
        for rated in (image.abnormality, *by_evidence(image.findings))
    )


def bars_by_uid(summary: StudySummary, settings: ResultSettings) -> dict[str, tuple[Bar, ...]]:
    """Return the rows of every image of an answer by its SOP Instance UID."""
    return {image.sop_instance: bars_of(image, settings) for image in summary.images}


def headline(summary: StudySummary, settings: ResultSettings) -> tuple[str, Presence | None]:
    """Return an answer in a few words, and how it is to be marked: what has heat in any of its images."""
    bars = [bar for bars in bars_by_uid(summary, settings).values() for bar in bars]
    if not bars:
        return "", None
    above = list(dict.fromkeys(bar.name for bar in bars if bar.has_heat))
    if above:
        more = f" +{len(above) - _NAMED}" if len(above) > _NAMED else ""
        return ", ".join(above[:_NAMED]) + more, Presence.PRESENT
    if any(bar.presence is Presence.UNDETERMINED for bar in bars):
        return settings.word_undetermined.capitalize(), Presence.UNDETERMINED
    return f"Nothing {settings.word_above}", Presence.ABSENT


def impression_of(image: ImageSummary, settings: ResultSettings) -> str:
    """Return what was found in an image in one plain sentence."""
    return impression(image.abnormality, image.findings, settings)


def first_to_show(bars: Sequence[Bar], labels: Collection[str]) -> str:
    """Return the finding whose map is shown first, of those that have a map (`labels`); "" if none has heat."""
    return next((bar.label for bar in (*bars[1:], *bars[:1]) if bar.has_heat and bar.label in labels), "")


def _bar(rated: FindingSummary, settings: ResultSettings, *, has_heat: bool, is_whole: bool) -> Bar:
    least, greatest = max(0.0, rated.probability - rated.spread), min(1.0, rated.probability + rated.spread)
    return Bar(
        label=rated.label,
        name=ABNORMALITY if is_whole else name_of(rated),
        probability=100 * rated.probability,
        spread=100 * rated.spread,
        threshold=100 * rated.threshold,
        presence=rated.presence,
        word=word_of(rated.presence, settings),
        point=rated.operating_point,
        times=times_base_rate(rated),
        likelihood=likelihood(rated),
        evidence=_drawn(evidence(rated)),
        low=_drawn(evidence(replace(rated, probability=least))),
        high=_drawn(evidence(replace(rated, probability=greatest))),
        has_heat=has_heat,
    )


def _drawn(log_odds: float) -> float:
    return min(max(log_odds / BAR_SPAN, -1.0), 1.0)
