"""What the page shows of an answer in a few words, and in which order."""

import pytest

from dicomnode.domain.finding import Presence
from dicomnode.domain.summary import FindingSummary, ImageSummary, StudySummary
from dicomnode.settings.node import ResultSettings
from dicomnode.web.findings import bars_of, first_to_show, headline, impression_of

SETTINGS = ResultSettings()


def read(label: str, presence: Presence, probability: float = 0.5, threshold: float = 0.5) -> FindingSummary:
    return FindingSummary(
        label=label,
        probability=probability,
        spread=0.0,
        presence=presence,
        operating_point="balanced",
        threshold=threshold,
    )


def summary(*findings: FindingSummary, abnormality: Presence = Presence.ABSENT) -> StudySummary:
    image = ImageSummary(sop_instance="1.2.3", abnormality=read("Abnormal", abnormality), findings=findings)
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
    answer = summary(*(read(label, Presence.PRESENT) for label in labels), abnormality=Presence.PRESENT)
    assert headline(answer, SETTINGS) == (words, Presence.PRESENT)


def test_a_headline_names_abnormality_where_it_alone_is_above_its_threshold() -> None:
    answer = summary(read("mass", Presence.ABSENT), abnormality=Presence.PRESENT)
    assert headline(answer, SETTINGS) == ("Abnormality", Presence.PRESENT)


@pytest.mark.parametrize(
    ("presence", "expected"),
    [
        (Presence.UNDETERMINED, ("Undetermined", Presence.UNDETERMINED)),
        (Presence.ABSENT, ("Nothing above threshold", Presence.ABSENT)),
    ],
)
def test_a_headline_says_what_is_open_or_that_nothing_is_above_threshold(
    presence: Presence, expected: tuple[str, Presence]
) -> None:
    assert headline(summary(read("mass", presence), read("edema", Presence.ABSENT)), SETTINGS) == expected


def test_a_headline_uses_the_site_s_words() -> None:
    settings = ResultSettings(word_above="suspected", word_undetermined="unclear")
    assert headline(summary(read("mass", Presence.ABSENT)), settings)[0] == "Nothing suspected"
    assert headline(summary(read("mass", Presence.UNDETERMINED)), settings)[0] == "Unclear"


def test_an_answer_without_images_has_no_headline() -> None:
    assert headline(StudySummary(study="1.2"), SETTINGS) == ("", None)


def test_findings_are_ranked_by_result_then_by_the_odds_over_their_own_thresholds() -> None:
    findings = (
        read("absent", Presence.ABSENT, 0.45, 0.5),
        read("likely", Presence.PRESENT, 0.8, 0.7),
        read("unlikely_but_far_over", Presence.PRESENT, 0.3, 0.02),
        read("open", Presence.UNDETERMINED, 0.5, 0.4),
    )
    (image,) = summary(*findings).images
    bars = bars_of(image, SETTINGS)
    assert [bar.label for bar in bars] == ["Abnormal", "unlikely_but_far_over", "likely", "open", "absent"]
    assert [bar.has_heat for bar in bars] == [False, True, True, False, False]
    assert first_to_show(bars, ["absent", "likely"]) == "likely"
    assert first_to_show(bars, ["absent"]) == ""


def test_bars_are_drawn_by_evidence_as_in_the_pictures() -> None:
    findings = (
        read("rare", Presence.PRESENT, 0.05, 0.02),
        read("common", Presence.ABSENT, 0.3, 0.6),
        read("at_threshold", Presence.PRESENT, 0.4, 0.4),
        read("certain", Presence.PRESENT, 0.999999, 0.01),
    )
    (image,) = summary(*findings).images
    drawn = {bar.label: bar.evidence for bar in bars_of(image, SETTINGS)}
    assert 0 < drawn["rare"] < 1
    assert -1 < drawn["common"] < 0
    assert (drawn["at_threshold"], drawn["certain"]) == (0, 1)


def test_the_impression_of_the_page_is_that_of_the_report() -> None:
    (image,) = summary(read("mass", Presence.PRESENT, 0.7), abnormality=Presence.PRESENT).images
    assert impression_of(image, SETTINGS) == "mass (70.0%) is above threshold, and so is abnormality (50.0%)."
