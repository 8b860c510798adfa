"""What people are shown of an image, and in which words."""

from dataclasses import replace

import numpy as np
import pytest

from dicomnode.domain.finding import Assessment, Presence
from dicomnode.domain.instance import InstanceRef
from dicomnode.results.presentation import (
    UNUSUAL,
    by_evidence,
    findings_with_heat,
    heat_of,
    impression,
    legend_of,
    likelihood,
    notes_on,
    statement,
    times_base_rate,
    word_of,
)
from dicomnode.settings.node import ResultSettings
from tests.support.assessments import assessment, finding, frame, saliency

REF = InstanceRef(study="1.2.1", series="1.2.2", sop_class="1.2.840.10008.5.1.4.1.1.1", sop_instance="1.2.3")
SETTINGS = ResultSettings()
FRAME = frame(REF, np.full((64, 64), 0.5, dtype=np.float32))


def sentence(said: Assessment, settings: ResultSettings = SETTINGS) -> str:
    return impression(said.abnormality, said.findings, settings)


def test_heat_is_for_what_is_above_its_threshold_else_for_abnormality_else_for_nothing() -> None:
    above = assessment(REF, {"Mass": 0.4, "Edema": 0.9}, undetermined=("Hernia",), abnormality=0.9)
    only_abnormality = assessment(REF, {"Mass": 0.29}, undetermined=("Hernia",), abnormality=0.3)
    nothing = assessment(REF, {"Mass": 0.29}, undetermined=("Hernia",), abnormality=0.29)
    labels = [[entry.label for entry in findings_with_heat(one)] for one in (above, only_abnormality, nothing)]
    assert labels == [["Edema", "Mass"], ["Abnormal"], []]


def test_findings_are_ordered_by_result_then_by_the_odds_over_their_own_thresholds() -> None:
    findings = (
        finding("Edema", 0.45, threshold=0.5),
        finding("Mass", 0.8, threshold=0.7),
        finding("Nodule", 0.3, threshold=0.02),
        finding("Hernia", 0.5, threshold=0.4, presence=Presence.UNDETERMINED),
    )
    assert [entry.label for entry in by_evidence(findings)] == ["Nodule", "Mass", "Hernia", "Edema"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (assessment(REF, {"Mass": 0.7}, abnormality=0.1), "Mass (70.0%) is above threshold; abnormality (10.0%) is"),
        (assessment(REF, {"Mass": 0.7, "Edema": 0.4}, abnormality=0.8), "Mass (70.0%) and Edema (40.0%) are above"),
        (assessment(REF, {"Mass": 0.7}, abnormality=0.8), "threshold, and so is abnormality (80.0%)."),
        (assessment(REF, abnormality=0.66), "Abnormality (66.0%) is above threshold; no single finding is."),
        (assessment(REF), "Nothing is above threshold."),
        (assessment(REF, undetermined=("Mass",)), "Nothing is above threshold; Mass (5.0%) is undetermined."),
        (
            assessment(REF, {"Mass": 0.9, "Edema": 0.8, "Nodule": 0.7, "Hernia": 0.6, "Fibrosis": 0.5}),
            "Mass (90.0%), Edema (80.0%), Nodule (70.0%) and 2 more are above threshold",
        ),
    ],
)
def test_the_impression_is_a_plain_sentence(said: Assessment, expected: str) -> None:
    assert expected in sentence(said)


def test_an_impression_never_calls_an_image_normal() -> None:
    assert "normal" not in sentence(assessment(REF)).lower()


def test_the_impression_of_a_model_without_findings_speaks_of_abnormality_alone() -> None:
    said = replace(assessment(REF, abnormality=0.7), findings=())
    assert sentence(said) == "Abnormality (70.0%) is above threshold."


def test_a_site_chooses_the_words() -> None:
    settings = ResultSettings(word_above="suspected", word_below="not suspected", word_undetermined="unclear")
    assert [word_of(presence, settings) for presence in Presence] == ["suspected", "not suspected", "unclear"]
    assert sentence(assessment(REF, {"Mass": 0.7}), settings).startswith("Mass (70.0%) is suspected;")


@pytest.mark.parametrize(
    ("probability", "base_rate", "times", "words"),
    [
        (0.062, 0.02, "3.1×", "3.1 times the base rate of 2%"),
        (0.5, 0.003, "167×", "167 times the base rate of 0.3%"),
        (0.02, 0.1, "0.2×", "0.2 times the base rate of 10%"),
        (0.5, None, "", ""),
    ],
)
def test_the_likelihood_is_told_against_the_base_rate(
    probability: float, base_rate: float | None, times: str, words: str
) -> None:
    entry = replace(finding("Mass", probability), base_rate=base_rate)
    assert (times_base_rate(entry), likelihood(entry)) == (times, words)


def test_a_statement_holds_probability_meaning_threshold_and_likelihood() -> None:
    entry = replace(finding("Mass", 0.7), base_rate=0.1)
    assert statement(entry, "Mass", SETTINGS) == "Mass 70.0%, above threshold (30.0%), 7.0 times the base rate of 10%"
    assert statement(finding("Mass", 0.2), "Mass", SETTINGS) == "Mass 20.0%, below threshold (30.0%)"


@pytest.mark.parametrize(
    ("orientation", "text", "is_warning"),
    [
        (("L", "F"), "Patient's left is on the right, as the image states", False),
        (("LH", "F"), "Patient's left is on the right, as the image states", False),
        (("R", "F"), "Patient's left is on the LEFT, as the image states", True),
        (("A", "F"), "The image does not state left and right", False),
        (None, "The image does not state left and right", False),
    ],
)
def test_what_is_known_of_left_and_right_is_said(
    orientation: tuple[str, str] | None, text: str, is_warning: bool
) -> None:
    (note,) = notes_on(FRAME, orientation, is_unusual=False)
    assert (note.text, note.is_warning) == (text, is_warning)


def test_sides_that_are_not_verified_are_a_warning_whatever_the_image_states() -> None:
    (note,) = notes_on(replace(FRAME, left_right_verified=False), ("L", "F"), is_unusual=False)
    assert note.text.startswith("Left and right are not verified")
    assert note.is_warning


def test_an_unusual_or_repaired_image_is_a_warning_and_warnings_come_first() -> None:
    turned = frame(REF, FRAME.pixels, turns=1, inverted=True)
    notes = notes_on(turned, None, is_unusual=True)
    assert [note.is_warning for note in notes] == [True, True, True, False]
    assert notes[0].text == UNUSUAL
    assert notes_on(FRAME, None, is_unusual=False, is_stated=False) == ()


def test_heat_is_stretched_on_the_body_and_is_0_elsewhere() -> None:
    body = np.zeros((256, 256), dtype=bool)
    body[:, 128:] = True
    heat = heat_of(saliency("Mass", 3, 1).values, (70, 70), body)
    assert heat is not None
    assert heat.values[:, :34].max() == 0
    assert (heat.values.min(), heat.values.max()) == (0, 1)
    assert heat.outside > 0.8


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.7])
def test_a_map_in_which_no_place_stands_out_has_no_heat(value: float) -> None:
    everywhere = np.ones((64, 64), dtype=bool)
    assert heat_of(np.full((7, 7), value, dtype=np.float32), (70, 70), everywhere) is None


def test_a_map_whose_evidence_lies_outside_the_body_has_no_heat() -> None:
    values = np.zeros((8, 8), dtype=np.float32)
    values[0, 0] = 1.0
    body = np.zeros((256, 256), dtype=bool)
    body[128:, 128:] = True
    assert heat_of(values, (64, 64), body) is None


def test_the_legend_says_why_there_is_no_heatmap_and_what_is_left_out() -> None:
    assert legend_of([], is_anything_above=False, outside=0.0)[1] == "Nothing is above its threshold."
    assert "no region on the body" in legend_of([], is_anything_above=True, outside=0.0)[1]
    assert legend_of(["Mass", "Edema"], is_anything_above=True, outside=0.1)[1] == "Shown: Mass, Edema"
    assert legend_of(["Mass"], is_anything_above=True, outside=0.4)[1].endswith("40% is outside the body and not shown")
    assert legend_of(["A", "B", "C", "D", "E"], is_anything_above=True, outside=0.0)[1] == "Shown: A, B, C and 2 more"
