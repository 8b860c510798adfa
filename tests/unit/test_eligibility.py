"""Which images the model may read by what they say of the view and of the part of the body."""

from pathlib import Path

import pytest

from dicomnode.dicom import reader
from dicomnode.dicom.header import header_of
from dicomnode.domain.answer import RejectionReason
from dicomnode.imaging.eligibility import Eligible, Ineligible, judge
from dicomnode.settings.node import EligibilitySettings
from tests.support.judged import SETTINGS, reason, verdict
from tests.support.make import CANARIES, build, encode
from tests.support.modules import code


@pytest.mark.parametrize("kind", ["cr", "dx", "dx-for-processing", "sc"])
def test_a_frontal_chest_is_eligible_with_its_evidence(kind):
    judged = verdict(build(kind))

    assert judged == Eligible(
        source=judged.source, view="PA", view_evidence="ViewPosition", body_part_evidence="BodyPartExamined"
    )


def test_where_body_part_and_view_are_absent_the_pixels_decide():
    judged = verdict(build("cr", body_part=None, view=None))

    assert isinstance(judged, Eligible)
    assert (judged.view, judged.view_evidence, judged.body_part_evidence) == (None, None, None)


@pytest.mark.parametrize(
    "odd", ["", "NONE", "OTHER", "GENERATED", "PORTABLE", "???", "SUPINE", "PLAT", "LATE", "L", "R"]
)
def test_a_view_that_says_nothing_known_lets_the_pixels_decide(odd):
    judged = verdict(build("cr", view=odd))

    assert isinstance(judged, Eligible)
    assert judged.view is None


@pytest.mark.parametrize("odd", ["", "UNKNOWN", "XX12", "BRUST", "OTHER", "PORTABLE"])
def test_a_body_part_that_says_nothing_known_lets_the_pixels_decide(odd):
    assert verdict(build("cr", body_part=odd)).body_part_evidence is None


@pytest.mark.parametrize("spelling", ["PA", "AP", "P->A", "p.a.", "A-P", "POSTERO-ANTERIOR", "ANTEROPOSTERIOR"])
def test_a_frontal_view_is_read_in_any_spelling(spelling):
    assert verdict(build("cr", view=spelling)).view == ("PA" if spelling.upper().startswith("P") else "AP")


@pytest.mark.parametrize(
    "view", ["LATERAL", "LL", "RL", "LLAT", "RLAT", "LAT", "L LAT", "LATERO-LATERALE", "SEITLICH", "PROFIL", "L->R"]
)
def test_a_lateral_view_position_rejects(view):
    assert reason(build("cr", view=view)) is RejectionReason.LATERAL_VIEW


@pytest.mark.parametrize(
    ("view", "word"),
    [
        ("LLD", "decubitus"),
        ("RLD", "decubitus"),
        ("RAO", "oblique"),
        ("LPO", "oblique"),
        ("OBL", "oblique"),
        ("LLO", "oblique"),
        ("AP LORDOTIC", "special"),
        ("AP AXIAL", "special"),
    ],
)
def test_a_view_that_is_neither_frontal_nor_lateral_rejects_as_unknown(view, word):
    judged = verdict(build("cr", view=view))

    assert judged.reason is RejectionReason.UNKNOWN_VIEW
    assert word in judged.detail


@pytest.mark.parametrize(
    ("view_code", "expected"),
    [
        (("272479007", "SCT", ""), "PA"),
        (("R-10214", "SRT", ""), "PA"),
        (("R-10214", "SNM3", ""), "PA"),
        (("399348003", "SCT", ""), "AP"),
        (("R-10206", "SRT", ""), "AP"),
        (("12", "99LOCAL", "postero-anterior"), "PA"),
    ],
)
def test_view_code_sequence_is_the_second_rung(view_code, expected):
    judged = verdict(build("cr", view=None, view_code=view_code))

    assert (judged.view, judged.view_evidence) == (expected, "ViewCodeSequence")


@pytest.mark.parametrize("value", ["399067008", "399173006", "399198007"])
def test_a_coded_lateral_rejects_although_view_position_holds_a_default(value):
    judged = verdict(build("dx", view="AP", view_code=(value, "SCT", "")))

    assert judged.reason is RejectionReason.LATERAL_VIEW
    assert judged.detail == "View Code Sequence names a lateral view"


@pytest.mark.parametrize(("position", "view"), [("PA", "PA"), ("AP", "AP"), ("HFS", None), ("", None)])
def test_a_view_misplaced_in_patient_position_is_the_third_rung(position, view):
    judged = verdict(build("cr", view=None, patient_position=position))

    assert judged.view == view
    assert judged.view_evidence == ("PatientPosition" if view else None)


@pytest.mark.parametrize(
    ("keyword", "words", "view"),
    [
        ("AcquisitionDeviceProcessingDescription", "TORACE,FRN P->A", "PA"),
        ("SeriesDescription", "view: PA", "PA"),
        ("SeriesDescription", "Thorax a.p. im Liegen", "AP"),
        ("ProtocolName", "CHEST_2PA", "PA"),
        ("SeriesDescription", "Torax PA/LAT", None),
        ("StudyDescription", "CHEST 2 VIEWS PA AND LATERAL", None),
        ("SeriesDescription", "decúbito supino AP", "AP"),
        ("SeriesDescription", "胸部正位", None),
        ("SeriesDescription", "胸部后前位", "PA"),
        ("SeriesDescription", "Bilateral lungs", None),
    ],
)
def test_descriptions_are_the_last_rung(keyword, words, view):
    ds = build("cr", view=None, character_set="ISO_IR 192", tags={keyword: words})

    assert verdict(ds).view == view


@pytest.mark.parametrize(
    "words",
    [
        "CHEST LAT",
        "Thorax seitlich",
        "Torace LL",
        "Thorax profil",
        "Tórax perfil",
        "TORAX LATERAL IZQ",
        "Klatka piersiowa boczne",
        "胸部側面",
        "胸部侧位",
        "ОГК боковая",
        "흉부 측면",
        "chest_lat",
    ],
)
def test_a_description_of_a_lateral_outweighs_a_default_view_position(words):
    ds = build("cr", view="AP", character_set="ISO_IR 192", tags={"SeriesDescription": words})

    assert reason(ds) is RejectionReason.LATERAL_VIEW


def test_a_study_description_speaks_only_when_nothing_nearer_does():
    near = build("cr", view="PA", tags={"StudyDescription": "CHEST LATERAL"})
    alone = build("cr", view=None, tags={"StudyDescription": "CHEST LATERAL"})

    assert reason(near) is None
    assert reason(alone) is RejectionReason.LATERAL_VIEW


@pytest.mark.parametrize(
    "part", ["CHEST", "THORAX", "TORACE", "TORAX", "Tórax", "LUNG", "LUNGE", "CHEST_PA", "W034CHEST", "HEART", "Göğüs"]
)
def test_the_chest_is_known_by_many_names(part):
    assert verdict(build("cr", body_part=part, character_set="ISO_IR 192")).body_part_evidence == "BodyPartExamined"


@pytest.mark.parametrize(
    "part",
    [
        "EXTREMITY",
        "HAND",
        "KNEE",
        "ABDOMEN",
        "SKULL",
        "PELVIS",
        "CSPINE",
        "TSPINE",
        "THORACIC SPINE",
        "COLUMNA DORSAL",
        "BREAST",
        "JAW",
        "TEETH",
        "SHOULDER",
        "CLAVICLE",
        "RIB",
        "RIBS",
        "STERNUM",
        "WHOLEBODY",
        "UNTERSCHENKEL",
        "GINOCCHIO",
        "MANO",
        "PHANTOM",
    ],
)
def test_another_body_part_rejects(part):
    assert reason(build("cr", body_part=part)) is RejectionReason.BODY_PART


def test_a_chest_together_with_another_part_lets_the_pixels_decide():
    assert verdict(build("cr", body_part="CHESTABDOMEN")).body_part_evidence is None


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (("816094009", "SCT", ""), None),
        (("T-D3000", "SRT", ""), None),
        (("85562004", "SCT", ""), RejectionReason.BODY_PART),
        (("1", "99X", "Lower leg"), RejectionReason.BODY_PART),
        (("1", "99X", "Something else"), None),
    ],
)
def test_anatomic_region_sequence_is_read_too(region, expected):
    ds = build("cr", body_part=None, tags={"AnatomicRegionSequence": [code(*region)]})

    assert reason(ds) is expected


def test_any_stated_part_that_is_wrong_rejects():
    ds = build("cr", body_part="CHEST", tags={"AnatomicRegionSequence": [code("85562004", "SCT", "Hand")]})

    assert verdict(ds).detail == "Anatomic Region Sequence names the shoulder, arm or hand, not the chest"


def test_without_a_stated_part_descriptions_name_it():
    leg = build("cr", body_part=None, tags={"AcquisitionDeviceProcessingDescription": "[LOWER LEG         ]"})
    chest = build("cr", body_part=None, tags={"SeriesDescription": "RX TORACE"})

    assert reason(leg) is RejectionReason.BODY_PART
    assert verdict(chest).body_part_evidence == "SeriesDescription"


def test_sentences_quote_nothing_of_the_data_set():
    canaries = dict.fromkeys(("StudyDescription", "SeriesDescription", "ProtocolName"), "CANARYTEXT LATERAL hand")
    cases = [
        build("cr", view=None, body_part=None, tags=canaries),
        build("cr", view="LL"),
        build("cr", modality="CANARYM"),
        build("cr", body_part="HAND CANARY"),
        build("cr", age="001Y", birth_date="19430217"),
    ]
    details = [verdict(ds, EligibilitySettings(minimum_age_years=18)).detail for ds in cases]

    assert not [detail for detail in details for word in (*CANARIES, "CANARYTEXT", "LL") if word in detail]


def test_values_that_cannot_be_converted_count_as_absent():
    part10 = encode(build("cr", view=None, body_part=None)).replace(b"061Y", b"\xff\xfe\xfd\xfc")
    ds = reader.read(part10.replace(b"ISO_IR 100", b"ISO_IR 999"))
    ds["Rows"]._value = ["x"]

    assert isinstance(judge(header_of(ds), SETTINGS), Ineligible)


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("chest-pa-monochrome1-j2k", "ViewPosition"),
        ("chest-pa-secondary-capture-jpeg", "ViewPosition"),
        ("chest-pa-view-in-patient-position", "PatientPosition"),
    ],
)
def test_real_chests_are_eligible(shared_data: Path, name, evidence):
    judged = verdict(reader.read(shared_data / "dicom" / f"{name}.dcm"))

    assert (judged.view, judged.view_evidence, judged.body_part_evidence) == ("PA", evidence, "BodyPartExamined")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("extremity-cr-j2k", RejectionReason.BODY_PART), ("ct-j2k", RejectionReason.NOT_A_PROJECTION)],
)
def test_a_real_leg_and_a_real_slice_are_not(shared_data: Path, name, expected):
    assert reason(reader.read(shared_data / "dicom" / f"{name}.dcm")) is expected
