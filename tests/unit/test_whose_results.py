"""Whose results these are: one patient in a study, one image of an exposure, and no image that spoils its study."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from dicomnode.analysis import pipeline as pipeline_module
from dicomnode.analysis.pipeline import Pipeline
from dicomnode.dicom.header import header_of
from dicomnode.dicom.part10 import read_file_head, read_ref
from dicomnode.domain.answer import RejectionReason, ResultKind, StudyAnswer
from dicomnode.domain.errors import DecoderUnavailable
from dicomnode.domain.evidence import Evidence
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Job
from dicomnode.settings.node import ResultSettings
from tests.support.elements import raw_element
from tests.support.make import build, encode
from tests.support.pipelines import make_pipeline, stored_instance

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STUDY = "1.2.826.7"
PROCESSED, RAW = "1.2.826.7.1", "1.2.826.7.2"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return make_pipeline(tmp_path_factory.mktemp("bundle"), results=ResultSettings(report_rejected=True))


def image(seed: int = 1, kind: str = "dx", **options: Any) -> Dataset:
    return build(kind, seed=seed, study_uid=STUDY, **options)


def received(ds: Dataset, *more: bytes) -> tuple[StoredInstance, bytes]:
    """Return an object with elements behind its last, stored under the identifiers that reception reads."""
    part10 = encode(ds) + b"".join(more)
    head = read_file_head(part10)
    ref = read_ref(part10[head.offset :], head.transfer_syntax)
    return replace(stored_instance(ds, part10, NOW), ref=ref), part10


def answer(to: Pipeline, objects: Sequence[Dataset | tuple[StoredInstance, bytes]]) -> StudyAnswer:
    held = dict(one if isinstance(one, tuple) else received(one) for one in objects)
    job = Job(job_id=1, study=STUDY, version=1, attempts=1, instances=tuple(held))
    return to.answer(job, held.__getitem__, NOW)


def reasons(given: StudyAnswer) -> list[RejectionReason]:
    return [rejection.reason for rejection in given.rejections]


# One patient. Source: PS3.3 A.1.2.


def qualifiers(universal_id: str) -> dict[str, list[Dataset]]:
    item = Dataset()
    item.UniversalEntityID, item.UniversalEntityIDType = universal_id, "ISO"
    return {"IssuerOfPatientIDQualifiersSequence": [item]}


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "id": ({"patient_id": "1"}, {"patient_id": "2"}, "the Patient ID"),
    "issuer": (
        {"tags": {"IssuerOfPatientID": "NORTH"}},
        {"tags": {"IssuerOfPatientID": "SOUTH"}},
        "the issuer of the Patient ID",
    ),
    "universal issuer": ({"tags": qualifiers("1.2")}, {"tags": qualifiers("1.3")}, "the issuer of the Patient ID"),
    "name and birth date": (
        {"patient_name": "DOE^JANE", "birth_date": "19500101"},
        {"patient_name": "ROE^MARY", "birth_date": "19810305"},
        "the patient's name and birth date",
    ),
    "name without id": (
        {"patient_name": "DOE^JANE", "patient_id": ""},
        {"patient_name": "ROE^MARY", "patient_id": ""},
        "the patient's name and birth date",
    ),
    "birth date without id": (
        {"birth_date": "19500101", "patient_id": ""},
        {"birth_date": "19810305", "patient_id": ""},
        "the patient's name and birth date",
    ),
}


@pytest.mark.parametrize("by", OTHERS)
def test_images_of_two_patients_in_one_study_are_all_rejected_and_reported_under_neither(
    pipeline: Pipeline, by: str
) -> None:
    one, other, difference = OTHERS[by]
    given = answer(pipeline, [image(1, **one), image(2, **other)])
    assert given.results == ()
    assert reasons(given) == [RejectionReason.PATIENT_MISMATCH] * 2
    assert given.rejections[0].detail == f"the images of the study are of different patients, by {difference}"


def test_a_lateral_of_another_patient_shows_the_mix_up_too(pipeline: Pipeline) -> None:
    given = answer(pipeline, [image(1), image(2, view="LL", patient_id="ANOTHER")])
    assert reasons(given) == [RejectionReason.PATIENT_MISMATCH] * 2


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "name corrected": ({"patient_name": "DOE^JANE"}, {"patient_name": "ROE^JANE"}),
    "birth date corrected": ({"birth_date": "19500101"}, {"birth_date": "19500110"}),
    "spelling": (
        {"patient_name": "Müller^Jörg^^", "patient_id": ""},
        {"patient_name": "MULLER^JORG", "patient_id": "", "character_set": "ISO_IR 192"},
    ),
    "other scripts": (
        {"patient_name": "Yamada^Tarou=山田^太郎", "patient_id": "", "character_set": "ISO_IR 192"},
        {"patient_name": "=山田^太郎", "patient_id": "", "character_set": "ISO_IR 192"},
    ),
    "id in one only": ({"patient_id": "1"}, {"patient_id": ""}),
    "issuer in one only": ({"tags": {"IssuerOfPatientID": "NORTH"}}, {}),
    "local names of one issuer": (
        {"tags": {"IssuerOfPatientID": "NORTH", **qualifiers("1.2")}},
        {"tags": {"IssuerOfPatientID": "NORTH HOSPITAL", **qualifiers("1.2")}},
    ),
}


@pytest.mark.parametrize("by", SAME)
def test_what_does_not_show_another_patient_is_reported(by: str) -> None:
    one, other = (header_of(image(1, **options)).patient for options in SAME[by])
    assert one.difference(other) is None
    assert other.difference(one) is None


def test_a_result_that_comes_back_with_former_demographics_rejects_nothing(pipeline: Pipeline) -> None:
    former = answer(pipeline, [image(1, patient_id="MISTYPED")])
    capture = next(result for result in former.results if result.kind is ResultKind.SECONDARY_CAPTURE)
    back = dcmread(BytesIO(capture.part10))
    given = answer(pipeline, [image(1, patient_id="CORRECTED"), back])
    assert reasons(given) == [RejectionReason.OWN_RESULT]
    report = next(result for result in given.results if result.kind is ResultKind.STRUCTURED_REPORT)
    assert dcmread(BytesIO(report.part10)).PatientID == "CORRECTED"


def test_results_carry_the_issuers_of_patient_id_and_accession_number(pipeline: Pipeline) -> None:
    authority, facility, agency = Dataset(), Dataset(), Dataset()
    authority.LocalNamespaceEntityID = "RIS"
    authority.UniversalEntityID, authority.UniversalEntityIDType = "1.2.40.1", "ISO"
    facility.LocalNamespaceEntityID = "WARD 7"
    agency.CodeValue, agency.CodingSchemeDesignator, agency.CodeMeaning = "AA", "99LOCAL", "Agency"
    tags = qualifiers("1.2.3")
    tags["IssuerOfPatientIDQualifiersSequence"][0].IdentifierTypeCode = "MR"
    tags["IssuerOfPatientIDQualifiersSequence"][0].AssigningFacilitySequence = [facility]
    tags["IssuerOfPatientIDQualifiersSequence"][0].AssigningAgencyOrDepartmentCodeSequence = [agency]
    tags["IssuerOfAccessionNumberSequence"] = [authority]
    source = image(1, tags={"IssuerOfPatientID": "NORTH", **tags})
    for result in answer(pipeline, [source]).results:
        ds = dcmread(BytesIO(result.part10))
        assert ds.IssuerOfPatientID == "NORTH"
        assert ds.IssuerOfPatientIDQualifiersSequence == source.IssuerOfPatientIDQualifiersSequence
        assert ds.IssuerOfAccessionNumberSequence == source.IssuerOfAccessionNumberSequence
        identified = [item.CodingSchemeDesignator for item in ds.get("CodingSchemeIdentificationSequence") or ()]
        assert "99LOCAL" not in identified, "nobody here knows whose scheme it is"


# One image of an exposure.


def test_of_a_raw_and_a_processed_image_the_processed_one_is_reported(pipeline: Pipeline) -> None:
    source = Dataset()
    source.ReferencedSOPInstanceUID = RAW
    raw = image(1, "dx-for-processing", sop_uid=RAW)
    processed = image(1, sop_uid=PROCESSED, tags={"SourceImageSequence": [source]})
    given = answer(pipeline, [raw, processed])
    assert given.analysed == (PROCESSED,)
    assert reasons(given) == [RejectionReason.RAW_OF_PROCESSED]


@pytest.mark.parametrize(
    ("of_raw", "of_processed", "one_exposure"),
    [
        ({"IrradiationEventUID": "1.2"}, {"IrradiationEventUID": "1.2"}, True),
        ({"IrradiationEventUID": "1.2"}, {"IrradiationEventUID": "1.3"}, False),
        ({"AcquisitionTime": "101500.25"}, {"AcquisitionTime": "101500.25"}, True),
        ({"AcquisitionTime": "101500"}, {"AcquisitionTime": "101502"}, False),
        ({"AcquisitionTime": "101500"}, {"AcquisitionTime": "101500", "ViewPosition": "AP"}, False),
        ({}, {}, False),
    ],
)
def test_what_tells_that_two_images_are_of_one_exposure(
    pipeline: Pipeline, of_raw: dict[str, str], of_processed: dict[str, str], one_exposure: bool
) -> None:
    day = {"AcquisitionDate": "20240229", "AcquisitionTime": None}
    raw = image(1, "dx-for-processing", sop_uid=RAW, tags=day | of_raw)
    processed = image(1, sop_uid=PROCESSED, tags=day | of_processed)
    given = answer(pipeline, [raw, processed])
    assert len(given.analysed) == (1 if one_exposure else 2)


def test_a_raw_image_is_reported_where_the_processed_one_cannot_be(pipeline: Pipeline) -> None:
    raw = image(1, "dx-for-processing", sop_uid=RAW, tags={"IrradiationEventUID": "1.2"})
    processed = image(1, sop_uid=PROCESSED, tags={"IrradiationEventUID": "1.2", "PixelData": None})
    assert answer(pipeline, [raw, processed]).analysed == (RAW,)


# Two readers of one object.


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID", "SeriesInstanceUID", "PatientID"])
def test_an_element_that_stands_again_behind_the_head_rejects_that_image_alone(
    pipeline: Pipeline, keyword: str
) -> None:
    good = image(1)
    given = answer(pipeline, [good, received(image(2), raw_element(keyword, b"1.2.3.99"))])
    assert given.analysed == (str(good.SOPInstanceUID),)
    assert reasons(given) == [RejectionReason.UNREADABLE]
    assert {result.ref.study for result in given.results} == {STUDY}


def test_an_object_that_was_stored_under_other_identifiers_is_rejected(pipeline: Pipeline) -> None:
    instance, part10 = received(image(1))
    misfiled = replace(instance, ref=replace(instance.ref, study="1.2.3.4"))
    given = answer(pipeline, [image(2), (misfiled, part10)])
    assert reasons(given) == [RejectionReason.UNREADABLE]
    assert given.rejections[0].detail == "the identifiers in the object are not those under which it was received"


# One bad image must not spoil its study.


def failing_for(monkeypatch: pytest.MonkeyPatch, name: str, uid: str, error: Exception) -> None:
    """Make a step of the pipeline fail for one image."""
    step = getattr(pipeline_module, name)

    def fail(*arguments: Any, **named: Any) -> Any:
        if uid in repr(arguments):
            raise error
        return step(*arguments, **named)

    monkeypatch.setattr(pipeline_module, name, fail)


@pytest.mark.parametrize("step", ["judge", "render", "write_image_results"])
def test_an_error_that_nobody_foresaw_rejects_one_image_and_the_others_are_answered(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    failing_for(monkeypatch, step, RAW, KeyError("1.2.3"))
    given = answer(pipeline, [image(1), image(2, sop_uid=RAW)])
    assert [rejection.source.sop_instance for rejection in given.rejections] == [RAW]
    assert reasons(given) == [RejectionReason.UNREADABLE]
    assert [result.kind for result in given.results] == [ResultKind.STRUCTURED_REPORT, ResultKind.SECONDARY_CAPTURE]
    assert [record.message for record in caplog.records] == ["image-failed"]


@pytest.mark.parametrize("step", ["render", "write_image_results"])
def test_an_error_of_every_image_is_an_error_of_the_study(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    failing_for(monkeypatch, step, "", KeyError("1.2.3"))
    with pytest.raises(KeyError):
        answer(pipeline, [image(1), image(2)])


def test_what_says_nothing_against_the_image_is_tried_again_with_its_study(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_for(monkeypatch, "render", RAW, DecoderUnavailable("no process"))
    with pytest.raises(DecoderUnavailable):
        answer(pipeline, [image(1), image(2, sop_uid=RAW)])


# Evidence.


def test_the_summary_tells_which_elements_said_what(pipeline: Pipeline) -> None:
    summary = answer(pipeline, [image(1), image(2, view="LL")]).summary
    assert summary.images[0].evidence == (
        Evidence(fact="view", value="PA", attribute="ViewPosition"),
        Evidence(fact="body part", value="the chest", attribute="BodyPartExamined"),
        Evidence(fact="orientation", value="L\\F", attribute="PatientOrientation"),
    )
    assert summary.rejected[0].evidence[0] == Evidence(fact="view", value="lateral", attribute="ViewPosition")


def test_evidence_quotes_nothing_of_the_data_set(pipeline: Pipeline, tmp_path: Path) -> None:
    odd = image(1, view=None, body_part=None, tags={"SeriesDescription": "CANARY chest pa"})
    evidence = answer(pipeline, [odd]).summary.images[0].evidence
    assert [one.attribute for one in evidence[:2]] == ["SeriesDescription", "SeriesDescription"]
    assert "CANARY" not in str(evidence)
