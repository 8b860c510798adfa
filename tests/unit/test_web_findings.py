"""What the page says of an answer in a few words, and in which order."""

import pytest

from dicomnode.domain.finding import Presence
from dicomnode.domain.summary import FindingSummary, ImageSummary, StudySummary
from dicomnode.web.findings import bars_of, first_to_show, headline


def said(label: str, presence: Presence, probability: float = 0.5, threshold: float = 0.5) -> FindingSummary:
    return FindingSummary(
        label=label,
        probability=probability,
        spread=0.0,
        presence=presence,
        operating_point="balanced",
        threshold=threshold,
    )


def summary(*findings: FindingSummary, abnormality: Presence = Presence.ABSENT) -> StudySummary:
    image = ImageSummary(sop_instance="1.2.3", abnormality=said("abnormality", abnormality), findings=findings)
    return StudySummary(study="1.2", images=(image,))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("mass",), "mass"),
        (("mass", "pleural_effusion", "edema"), "mass, pleural effusion, edema"),
        (("mass", "edema", "nodule", "hernia", "fibrosis"), "mass, edema, nodule +2"),
    ],
)
def test_a_headline_names_three_findings_and_counts_the_others(labels: tuple[str, ...], words: str) -> None:
    answer = summary(*(said(label, Presence.PRESENT) for label in labels))
    assert headline(answer) == (words, Presence.PRESENT)


@pytest.mark.parametrize(
    ("presence", "expected"),
    [
        (Presence.UNDETERMINED, ("Undetermined", Presence.UNDETERMINED)),
        (Presence.ABSENT, ("Nothing found", Presence.ABSENT)),
    ],
)
def test_a_headline_says_what_is_open_or_that_nothing_was_found(
    presence: Presence, expected: tuple[str, Presence]
) -> None:
    assert headline(summary(said("mass", presence), said("edema", Presence.ABSENT))) == expected


def test_findings_are_ranked_by_presence_then_by_the_odds_over_their_own_thresholds() -> None:
    findings = (
        said("absent", Presence.ABSENT, 0.45, 0.5),
        said("likely", Presence.PRESENT, 0.8, 0.7),
        said("unlikely_but_far_over", Presence.PRESENT, 0.3, 0.02),
        said("open", Presence.UNDETERMINED, 0.5, 0.4),
    )
    (image,) = summary(*findings).images
    bars = bars_of(image)
    assert [bar.label for bar in bars] == ["abnormality", "unlikely_but_far_over", "likely", "open", "absent"]
    assert first_to_show(bars, ["absent", "likely"]) == "likely"
