"""The report says what the model said, in the study it came from, and the same arguments give the same bytes."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO

import highdicom as hd
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from dicomnode.dicom.header import header_of
from dicomnode.domain.answer import Rejection, RejectionReason, ResultInstance, ResultKind
from dicomnode.domain.finding import Assessment
from dicomnode.domain.identifiers import OWN_MODEL_NAME, is_valid_uid
from dicomnode.domain.instance import InstanceRef
from dicomnode.results.context import SourceContext
from dicomnode.results.inputs import ReportInputs
from dicomnode.results.sr import as_comprehensive, as_enhanced, fallback, write_not_analysed, write_report
from dicomnode.settings.node import ResultSettings
from tests.support.assessments import MODEL, NOW, assessment, equipment, frame, identity
from tests.support.make import build, chest

STUDY = "1.2.826.0.1.99"


def sources_of(*datasets: Dataset) -> dict[str, SourceContext]:
    contexts = [SourceContext.of(header_of(ds)) for ds in datasets]
    return {context.ref.sop_instance: context for context in contexts}


def report(
    *datasets: Dataset,
    assessments: Sequence[Assessment] | None = None,
    rejections: Sequence[Rejection] = (),
    predecessors: Sequence[InstanceRef] = (),
    **settings: object,
) -> ResultInstance:
    sources = sources_of(*(datasets or (build("cr", study_uid=STUDY),)))
    inputs = ReportInputs(
        sources=sources,
        assessments=assessments or [assessment(entry.ref, {"Mass": 0.7}) for entry in sources.values()],
        rejections=rejections,
        predecessors=predecessors,
        equipment=equipment(**settings),
        identity=identity(STUDY),
        now=NOW,
    )
    return write_report(inputs)


def opened(result: ResultInstance | bytes) -> Dataset:
    return dcmread(BytesIO(result if isinstance(result, bytes) else result.part10))


def rejected(reason: RejectionReason, uid: str = "1.2.3.4") -> Rejection:
    ref = InstanceRef(study=STUDY, series="1.2.3", sop_class="1.2.840.10008.5.1.4.1.1.1", sop_instance=uid)
    return Rejection(source=ref, reason=reason, detail="for this reason")


def children(item: Dataset, concept: str) -> list[Dataset]:
    return [child for child in item.get("ContentSequence", []) if concept_of(child) == concept]


def concept_of(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def coded_value(item: Dataset) -> str:
    return str(item.ConceptCodeSequence[0].CodeValue)


def evaluations(ds: Dataset) -> Dataset:
    return children(ds, "C0034375")[0]


def groups(ds: Dataset) -> list[Dataset]:
    return children(children(ds, "126010")[0], "125007")


def test_the_same_arguments_give_the_same_bytes() -> None:
    assert report().part10 == report().part10


def test_the_file_starts_with_zeros_and_its_reference_is_true() -> None:
    result = report()
    ds = opened(result)
    assert result.part10[:132] == b"\x00" * 128 + b"DICM"
    assert result.ref == InstanceRef(
        study=STUDY,
        series=str(ds.SeriesInstanceUID),
        sop_class=str(Comprehensive3DSRStorage),
        sop_instance=str(ds.file_meta.MediaStorageSOPInstanceUID),
    )
    assert result.kind is ResultKind.STRUCTURED_REPORT
    assert is_valid_uid(result.ref.series)
    assert is_valid_uid(result.ref.sop_instance)


def test_uids_follow_the_inputs() -> None:
    source = build("cr", study_uid=STUDY)
    sources = sources_of(source)
    made = [
        write_report(
            ReportInputs(
                sources=sources,
                assessments=[assessment(entry.ref) for entry in sources.values()],
                rejections=(),
                predecessors=(),
                equipment=equipment(),
                identity=identity(STUDY, inputs),
                now=NOW,
            )
        ).ref
        for inputs in ("one", "two")
    ]
    assert made[0].sop_instance != made[1].sop_instance
    assert made[0].series != made[1].series


def test_highdicom_reads_back_every_finding_with_probability_and_presence() -> None:
    source = build("dx", study_uid=STUDY)
    ref = SourceContext.of(header_of(source)).ref
    said = assessment(ref, {"Mass": 0.71239, "Effusion": 0.5}, undetermined=("Nodule",), abnormality=0.9)
    document = hd.sr.Comprehensive3DSR.from_dataset(opened(report(source, assessments=[said])))
    read = {}
    for group in document.content.get_image_measurement_groups():
        probability = group.get_measurements(name=hd.sr.CodedConcept("122157", "DCM", "Probability"))[0]
        presence = group.get_qualitative_evaluations(name=hd.sr.CodedConcept("705057003", "SCT", "Presence"))[0]
        outline = probability.referenced_coordinates[0]
        image = outline.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        assert outline.value.min(axis=0).tolist() == [0, 0]
        assert outline.value.max(axis=0).tolist() == [source.Columns, source.Rows]
        read[group.tracking_identifier] = (
            group.finding_type.value,
            float(probability.value),
            presence.value.meaning.lower(),
            [site.value.value for site in group.finding_sites],
            image,
        )
    expected = {
        entry.label: (
            entry.code.value,
            round(entry.probability, 4),
            entry.presence.value,
            [entry.site.value] if entry.site else [],
            ref.sop_instance,
        )
        for entry in (said.abnormality, *said.findings)
    }
    assert read == expected
    assert len(read) == 15


def test_each_group_names_the_algorithm_and_the_threshold_it_was_read_at() -> None:
    group = groups(opened(report()))[0]
    texts = [(concept_of(item), item.TextValue) for item in group.ContentSequence if "TextValue" in item]
    assert ("111001", MODEL.name) in texts
    assert ("111003", MODEL.version) in texts
    assert ("111002", "threshold=0.3000") in texts
    assert ("111002", f"model sha256={MODEL.bundle_hash}") in texts


def test_two_frontal_images_share_one_report_and_no_tracking_identifier() -> None:
    first, second = build("cr", study_uid=STUDY, seed=1), build("dx", study_uid=STUDY, seed=2)
    result = report(first, second)
    ds = opened(result)
    tracking = [child.UID for group in groups(ds) for child in children(group, "112040")]
    assert len(tracking) == 30
    assert len(set(tracking)) == 30
    assert result.derived_from == (first.SOPInstanceUID, second.SOPInstanceUID)
    library = children(children(ds, "111028")[0], "126200")[0]
    assert [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in library.ContentSequence] == [
        first.SOPInstanceUID,
        second.SOPInstanceUID,
    ]
    evidence = ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert sum(len(series.ReferencedSOPSequence) for series in evidence) == 2


@pytest.mark.parametrize(
    ("probabilities", "undetermined", "abnormality", "normality", "summary"),
    [
        ({}, (), 0.1, "17621005", "111241"),
        ({"Mass": 0.7}, (), 0.1, "371934000", "111242"),
        ({"Mass": 0.7}, (), 0.9, "263654008", "111242"),
        ({}, (), 0.9, "263654008", "111242"),
        ({}, ("Hernia",), 0.1, "371934000", "111241"),
    ],
)
def test_normality_and_success_are_said_apart(
    probabilities: dict[str, float], undetermined: tuple[str, ...], abnormality: float, normality: str, summary: str
) -> None:
    source = build("cr", study_uid=STUDY)
    said = assessment(
        SourceContext.of(header_of(source)).ref, probabilities, undetermined=undetermined, abnormality=abnormality
    )
    container = evaluations(opened(report(source, assessments=[said])))
    assert [coded_value(item) for item in children(container, "121402")] == [normality]
    assert [coded_value(item) for item in children(container, "111017")] == [summary]


@pytest.mark.parametrize(("probability", "summary"), [(0.7, "111244"), (0.05, "111243")])
def test_an_image_that_should_have_been_read_and_could_not_makes_the_success_partial(
    probability: float, summary: str
) -> None:
    source = build("cr", study_uid=STUDY)
    said = assessment(SourceContext.of(header_of(source)).ref, {"Mass": probability})
    ds = opened(report(source, assessments=[said], rejections=[rejected(RejectionReason.CORRUPT_PIXELS)]))
    container = evaluations(ds)
    assert [coded_value(item) for item in children(container, "111017")] == [summary]
    assert [coded_value(item) for item in children(container, "NOT_ANALYSED")] == ["CORRUPT_PIXELS"]
    assert "1.2.3.4" in children(container, "121106")[0].TextValue
    assert ds.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99CXRNODE"


@pytest.mark.parametrize("reason", [RejectionReason.LATERAL_VIEW, RejectionReason.OWN_RESULT])
def test_an_image_outside_the_intended_use_changes_nothing(reason: RejectionReason) -> None:
    assert report(rejections=[rejected(reason)]).part10 == report().part10


def test_what_the_report_mentions_besides_its_images_makes_it_another_instance() -> None:
    one = report(rejections=[rejected(RejectionReason.CORRUPT_PIXELS)])
    assert one.ref.sop_instance != report().ref.sop_instance
    assert one.ref.series == report().ref.series


def test_a_study_not_analysed_says_so_and_why() -> None:
    source = build("cr", study_uid=STUDY, view="LL")
    context = SourceContext.of(header_of(source))
    refusal = Rejection(source=context.ref, reason=RejectionReason.LATERAL_VIEW, detail="View Position is LL")
    own = rejected(RejectionReason.OWN_RESULT)
    inputs = ReportInputs(
        sources={context.ref.sop_instance: context},
        assessments=(),
        rejections=[refusal, own],
        predecessors=(),
        equipment=equipment(),
        identity=identity(STUDY),
        now=NOW,
    )
    result = write_not_analysed(inputs)
    ds = opened(result)
    container = evaluations(ds)
    assert [coded_value(item) for item in children(container, "111017")] == ["111245"]
    assert [coded_value(item) for item in children(container, "NOT_ANALYSED")] == ["LATERAL_VIEW"]
    assert children(container, "121402") == []
    assert children(ds, "126010") == []
    assert result.derived_from == (context.ref.sop_instance,)


def test_a_new_version_names_its_predecessor_but_never_itself() -> None:
    former = InstanceRef(study=STUDY, series="1.9.1", sop_class=str(Comprehensive3DSRStorage), sop_instance="1.9.1.1")
    plain = report()
    ds = opened(report(predecessors=[former, plain.ref]))
    items = ds.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in items] == ["1.9.1.1"]
    assert "PredecessorDocumentsSequence" not in opened(report(predecessors=[plain.ref]))


def test_the_report_is_complete_unverified_and_from_a_device() -> None:
    ds = opened(report(manufacturer="Example", device_serial_number="S-1", institution="Hôpital", mark="For trials"))
    assert (ds.CompletionFlag, ds.VerificationFlag, ds.Modality) == ("COMPLETE", "UNVERIFIED", "SR")
    assert (ds.Manufacturer, ds.ManufacturerModelName, ds.DeviceSerialNumber) == ("Example", OWN_MODEL_NAME, "S-1")
    assert ds.InstitutionName == "Hôpital"
    assert ds.SeriesDescription == "AI report - For trials"
    assert coded_value(children(ds, "121005")[0]) == "121007"
    assert [concept_of(item) for item in ds.ContentSequence if concept_of(item).startswith("12101")] == [
        "121012",
        "121013",
        "121014",
        "121015",
        "121016",
    ]
    algorithm = ds.ContributingEquipmentSequence[0]
    assert algorithm.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert (algorithm.ManufacturerModelName, algorithm.SoftwareVersions[0]) == (MODEL.name, MODEL.version)


def test_dates_are_written_in_the_zone_of_the_source() -> None:
    ds = opened(report(build("cr", study_uid=STUDY, tags={"TimezoneOffsetFromUTC": "-0930"})))
    assert (ds.TimezoneOffsetFromUTC, ds.ContentDate, ds.ContentTime[:6]) == ("-0930", "20240505", "213809")
    plain = opened(report())
    assert "TimezoneOffsetFromUTC" not in plain
    assert (plain.ContentDate, plain.ContentTime[:6]) == ("20240506", "070809")


@pytest.mark.parametrize(
    ("older", "sop_class"), [(as_comprehensive, ComprehensiveSRStorage), (as_enhanced, EnhancedSRStorage)]
)
def test_an_older_sop_class_carries_the_same_tree_under_its_own_uid(older: object, sop_class: str) -> None:
    former = InstanceRef(study=STUDY, series="1.9", sop_class=str(Comprehensive3DSRStorage), sop_instance="1.9.1")
    original = report(predecessors=[former])
    assert callable(older)
    variant, again = opened(older(original.part10)), opened(older(original.part10))
    ds = opened(original)
    assert variant.SOPClassUID == variant.file_meta.MediaStorageSOPClassUID == sop_class
    assert variant.SOPInstanceUID == variant.file_meta.MediaStorageSOPInstanceUID == again.SOPInstanceUID
    assert variant.SOPInstanceUID != ds.SOPInstanceUID
    assert variant.ContentSequence == ds.ContentSequence
    predecessor = variant.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert predecessor.ReferencedSOPClassUID == sop_class
    assert predecessor.ReferencedSOPInstanceUID != "1.9.1"


def test_fallback_takes_the_best_class_the_destination_accepts() -> None:
    part10 = report().part10
    both = [str(EnhancedSRStorage), str(ComprehensiveSRStorage)]
    assert fallback(part10, both) == as_comprehensive(part10)
    assert fallback(part10, [str(EnhancedSRStorage)]) == as_enhanced(part10)
    assert fallback(part10, ["1.2.840.10008.5.1.4.1.1.7"]) is None
    assert fallback(as_enhanced(part10), both) is None


def test_procedure_and_purpose_are_the_configured_codes() -> None:
    chosen = {
        "procedure_reported": "399208008^Plain chest X-ray^SCT",
        "equipment_purpose": "109101^Acquisition Equipment^DCM",
    }
    for settings, procedure, purpose in (({}, "363679005", "109102"), (chosen, "399208008", "109101")):
        ds = opened(report(**settings))
        assert coded_value(children(ds, "121058")[0]) == procedure
        assert ds.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == purpose


@pytest.mark.parametrize(
    ("code", "said"),
    [("399208008", "value.meaning.scheme"), ("399208009^Plain chest X-ray^SCT", "check digit"), ("1^^SCT", "meaning")],
)
def test_a_configured_code_that_is_none_is_refused(code: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ResultSettings(procedure_reported=code)


def text_values(item: Dataset, concept: str) -> list[str]:
    return [str(child.TextValue) for child in children(item, concept)]


def test_the_impression_comes_before_the_images_and_the_measurements() -> None:
    ref = SourceContext.of(header_of(build("cr", study_uid=STUDY))).ref
    ds = opened(report(assessments=[assessment(ref, {"Mass": 0.7}, abnormality=0.8)]))
    (impression,) = text_values(ds, "121073")
    assert impression == (
        "Mass (70.0%) is above threshold, and so is abnormality (80.0%). Not reviewed by a physician. "
        "Research use only - not for diagnosis."
    )
    contained = [concept_of(item) for item in ds.ContentSequence if item.RelationshipType == "CONTAINS"]
    assert contained == ["121073", "111028", "126010", "C0034375"]


def test_of_several_images_the_impression_numbers_each() -> None:
    sources = [build("cr", study_uid=STUDY, seed=1), build("cr", study_uid=STUDY, seed=2)]
    (impression,) = text_values(opened(report(*sources)), "121073")
    assert "Image 1: Mass (70.0%)" in impression
    assert "Image 2: Mass (70.0%)" in impression


def test_findings_above_threshold_come_first_each_with_a_sentence() -> None:
    ref = SourceContext.of(header_of(build("cr", study_uid=STUDY))).ref
    said = assessment(ref, {"Mass": 0.7, "Effusion": 0.9}, undetermined=("Nodule",))
    made = groups(opened(report(assessments=[said])))
    assert [text_values(group, "112039")[0] for group in made[:4]] == ["Abnormal", "Effusion", "Mass", "Nodule"]
    assert [text_values(group, "121106") for group in made[:4]] == [
        ["Abnormality 10.0%, below threshold (30.0%)"],
        ["Effusion 90.0%, above threshold (30.0%)"],
        ["Mass 70.0%, above threshold (30.0%)"],
        ["Nodule 5.0%, undetermined (30.0%)"],
    ]


def test_a_site_s_words_change_the_sentences_and_not_the_codes() -> None:
    ref = SourceContext.of(header_of(build("cr", study_uid=STUDY))).ref
    said = [assessment(ref, {"Mass": 0.7})]
    plain, worded = (opened(report(assessments=said, word_above=word)) for word in ("above threshold", "suspected"))
    assert text_values(groups(worded)[1], "121106") == ["Mass 70.0%, suspected (30.0%)"]
    codes = [
        [coded_value(item) for group in groups(ds) for item in children(group, "705057003")] for ds in (plain, worded)
    ]
    assert codes[0] == codes[1] == ["272519000", "52101004", *["272519000"] * 13]


def test_what_limits_the_findings_stands_among_the_evaluations() -> None:
    context = SourceContext.of(header_of(build("cr", study_uid=STUDY, tags={"PatientOrientation": ["L", "F"]})))
    uid = context.ref.sop_instance
    inputs = ReportInputs(
        sources={uid: context},
        frames={uid: frame(context.ref, chest(400, 320), inverted=True)},
        assessments=[replace(assessment(context.ref), is_unusual=True)],
        rejections=(),
        predecessors=(),
        equipment=equipment(),
        identity=identity(STUDY),
        now=NOW,
    )
    assert text_values(evaluations(opened(write_report(inputs))), "121106") == [
        "Unusual image: probabilities are less reliable",
        "Grey scale inverted by this software",
        "Patient's left is on the right, as the image states",
    ]
