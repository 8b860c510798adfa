"""The content tree of the report: TID 1500 Imaging Measurement Report, one measurement group per finding and image.

An impression comes first; findings follow by evidence, each with a sentence for people and the codes.
Source: PS3.16 TID 1500, 1501, 300, 1002, 4019, 1600; the reading of the whole: PS3.17 "AI results", IHE AIR.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    CoordinatesForMeasurement,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    GraphicTypeValues,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurement,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)

from dicomnode.domain.answer import Rejection, RejectionReason
from dicomnode.domain.finding import Assessment, Finding, Presence
from dicomnode.results import codes
from dicomnode.results.context import Equipment, SourceContext
from dicomnode.results.inputs import ReportInputs
from dicomnode.results.presentation import by_evidence, impression, notes_on, orientation_of, statement, title_of

_FINDING = "121071"  # PS3.16 TID 1501

_OUTSIDE_THE_INTENDED_USE = frozenset(
    {
        RejectionReason.OWN_RESULT,
        RejectionReason.NOT_A_PROJECTION,
        RejectionReason.MODALITY,
        RejectionReason.BODY_PART,
        RejectionReason.LATERAL_VIEW,
        RejectionReason.MULTI_FRAME,
        RejectionReason.AGE,
        RejectionReason.RAW_OF_PROCESSED,
    }
)
"""Images the model is not meant to read: leaving them out is no failure of the algorithm."""


def worth_reporting(rejections: Sequence[Rejection], *, analysed: bool) -> tuple[Rejection, ...]:
    """Return the rejections that a report mentions.

    Those of the node's own results are left out: each report on a returned result would be returned in its turn. Where
    something was analysed, images that the model is not meant to read are left out too.
    """
    left_out = _OUTSIDE_THE_INTENDED_USE if analysed else {RejectionReason.OWN_RESULT}
    return tuple(rejection for rejection in rejections if rejection.reason not in left_out)


def report_tree(
    images: Sequence[SourceContext], inputs: ReportInputs, rejections: Sequence[Rejection]
) -> ContainerContentItem:
    """Return the root container of the report; without assessments, that of a report of images not analysed.

    `images` are those the report is about, `rejections` those that it mentions.
    """
    equipment = inputs.equipment
    root = ContainerContentItem(name=codes.REPORT_TITLE, template_id="1500")
    root.ContentSequence = ContentSequence()
    root.ContentSequence.extend(LanguageOfContentItemAndDescendants(codes.ENGLISH))
    root.ContentSequence.extend(_observer(equipment))
    root.ContentSequence.append(
        CodeContentItem(
            name=codes.PROCEDURE_REPORTED,
            value=codes.configured(equipment.settings.procedure_reported),
            relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD,
        )
    )
    if inputs.assessments:
        root.ContentSequence.append(_text(codes.IMPRESSION, _impression(inputs)))
    root.ContentSequence.append(_image_library(images))
    if inputs.assessments:
        root.ContentSequence.append(_measurements(inputs))
    root.ContentSequence.append(_container(codes.QUALITATIVE_EVALUATIONS, _evaluations(inputs, rejections)))
    return root


def _impression(inputs: ReportInputs) -> str:
    """Return the impression of the study: a sentence for each image, numbered where there are several."""
    settings = inputs.equipment.settings
    sentences = [impression(assessment.abnormality, assessment.findings, settings) for assessment in inputs.assessments]
    if len(sentences) > 1:
        sentences = [f"Image {number}: {sentence}" for number, sentence in enumerate(sentences, start=1)]
    mark = f" {settings.mark}." if settings.mark else ""
    return f"{' '.join(sentences)} Not reviewed by a physician.{mark}"


def _observer(equipment: Equipment) -> ObserverContext:
    """Return TID 1002 for the node as the observer; no person has seen the report."""
    return ObserverContext(
        observer_type=codes.DEVICE,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=equipment.observer_uid,
            name=equipment.settings.station_name or equipment.model_name,
            manufacturer_name=equipment.settings.manufacturer,
            model_name=equipment.model_name,
            serial_number=equipment.settings.device_serial_number,
        ),
    )


def _image_library(images: Sequence[SourceContext]) -> ContainerContentItem:
    group = _container(codes.IMAGE_LIBRARY_GROUP, _library_entries(images))
    return _container(codes.IMAGE_LIBRARY, iter((group,)))


def _library_entries(images: Sequence[SourceContext]) -> Iterator[ContentItem]:
    for image in images:
        entry = ImageContentItem(
            name=codes.SOURCE,
            referenced_sop_class_uid=image.ref.sop_class,
            referenced_sop_instance_uid=image.ref.sop_instance,
            relationship_type=RelationshipTypeValues.CONTAINS,
        )
        descriptors = tuple(_descriptors(image))
        if descriptors:
            entry.ContentSequence = ContentSequence(descriptors)
        yield entry


def _descriptors(image: SourceContext) -> Iterator[ContentItem]:
    """Yield TID 1602 as far as the source states it."""
    if image.modality in codes.MODALITIES:
        yield CodeContentItem(
            name=codes.MODALITY,
            value=codes.MODALITIES[image.modality],
            relationship_type=RelationshipTypeValues.HAS_ACQ_CONTEXT,
        )
    for name, count in ((codes.PIXEL_ROWS, image.rows), (codes.PIXEL_COLUMNS, image.columns)):
        if count is not None:
            yield NumContentItem(
                name=name, value=count, unit=codes.PIXELS, relationship_type=RelationshipTypeValues.HAS_ACQ_CONTEXT
            )


def _measurements(inputs: ReportInputs) -> ContainerContentItem:
    groups = (
        _measurement_group(assessment, finding, inputs)
        for assessment in inputs.assessments
        for finding in (assessment.abnormality, *by_evidence(assessment.findings))
    )
    return _container(codes.IMAGING_MEASUREMENTS, groups)


def _measurement_group(assessment: Assessment, finding: Finding, inputs: ReportInputs) -> ContentItem:
    """Return TID 1501 for one finding in one image.

    A sentence for people comes first, then the same in codes. Abnormality is reported the same way: TID 1500 allows
    only codes and texts among the qualitative evaluations of the whole report, so a measurement group is the one place
    where its probability can stand.
    """
    probability = Measurement(
        name=codes.PROBABILITY,
        value=round(finding.probability, 4),
        unit=codes.NO_UNITS,
        **_inferred_from(inputs.sources[assessment.source.sop_instance]),
    )
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=inputs.identity.tracking(assessment.source.sop_instance, finding.label), identifier=finding.label
        ),
        finding_type=codes.concept(finding.code),
        finding_sites=[FindingSite(codes.concept(finding.site))] if finding.site else None,
        algorithm_id=_algorithm(finding, inputs.equipment),
        measurements=[probability],
        qualitative_evaluations=[
            QualitativeEvaluation(name=codes.PRESENCE, value=codes.PRESENCE_VALUES[finding.presence])
        ],
    )
    container = group[0]
    name = title_of(finding, assessment)
    text = _text(codes.COMMENT, statement(finding, name, inputs.equipment.settings))
    # The tracking identifiers come first: viewers merge groups by them.
    at = next(at for at, item in enumerate(container.ContentSequence) if _concept_of(item) == _FINDING)
    container.ContentSequence.insert(at, text)
    return container


def _concept_of(item: ContentItem) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def _inferred_from(image: SourceContext) -> dict[str, list[Any]]:
    """Return what the probability was inferred from: the outline of the whole image, and no place in it.

    Viewers draw a measurement by its coordinates, and OHIF shows an error where there are none; beside them the
    template allows no image of its own. Source: PS3.16 TID 320.
    """
    reference = {
        "referenced_sop_class_uid": image.ref.sop_class,
        "referenced_sop_instance_uid": image.ref.sop_instance,
    }
    if image.rows is None or image.columns is None:
        return {"referenced_images": [SourceImageForMeasurement(**reference)]}
    right, bottom = float(image.columns), float(image.rows)
    outline = CoordinatesForMeasurement(
        graphic_type=GraphicTypeValues.POLYLINE,
        graphic_data=np.array([[0.0, 0.0], [right, 0.0], [right, bottom], [0.0, bottom], [0.0, 0.0]]),
        source_image=SourceImageForRegion(**reference),
        purpose=codes.SOURCE_OF_MEASUREMENT,
    )
    return {"referenced_coordinates": [outline]}


def _algorithm(finding: Finding, equipment: Equipment) -> AlgorithmIdentification:
    """Return TID 4019: which model, and the operating point at which presence was decided."""
    point = finding.operating_point
    return AlgorithmIdentification(
        name=equipment.model.name,
        version=equipment.model.version,
        parameters=[
            f"threshold={point.threshold:.4f}",
            f"operating point={point.name}",
            f"sensitivity={point.sensitivity:.3f}",
            f"specificity={point.specificity:.3f}",
            f"ensemble spread={finding.spread:.4f}",
            f"model sha256={equipment.model.bundle_hash}",
        ],
    )


def _evaluations(inputs: ReportInputs, rejections: Sequence[Rejection]) -> Iterator[ContentItem]:
    """Yield what separates "no finding" from "not evaluated", and what to know of the images."""
    if inputs.assessments:
        yield _evaluation(codes.NORMALITY, normality(inputs.assessments))
    yield _evaluation(codes.PROCESSING_SUMMARY, processing_summary(inputs.assessments, rejections))
    yield from (_text(codes.COMMENT, text) for text in _notes(inputs))
    for rejection in rejections:
        yield _evaluation(codes.REASON_NOT_ANALYSED, codes.REJECTION_REASONS[rejection.reason])
        yield _text(codes.COMMENT, f"Not analysed: {rejection.detail} (image {rejection.source.sop_instance})")


def _notes(inputs: ReportInputs) -> Iterator[str]:
    """Yield what a reader must know of each image beside its findings, with the image's number if there are several."""
    for number, assessment in enumerate(inputs.assessments, start=1):
        uid = assessment.source.sop_instance
        if frame := inputs.frames.get(uid):
            orientation = orientation_of(frame, inputs.sources[uid])
            of_image = f"Image {number}: " if len(inputs.assessments) > 1 else ""
            notes = notes_on(frame, orientation, is_unusual=assessment.is_unusual)
            yield from (f"{of_image}{note.text}" for note in notes)


def normality(assessments: Sequence[Assessment]) -> CodedConcept:
    """Return the study's normality (CID 242).

    Abnormal: abnormality is above its threshold in an image. Normal: nothing is above its threshold or undetermined in
    any image. Undetermined: otherwise.
    """
    if any(assessment.abnormality.presence is Presence.PRESENT for assessment in assessments):
        return codes.ABNORMAL
    return codes.NORMAL if _presences(assessments) == {Presence.ABSENT} else codes.NORMALITY_UNDETERMINED


def _presences(assessments: Sequence[Assessment]) -> set[Presence]:
    return {
        finding.presence for assessment in assessments for finding in (assessment.abnormality, *assessment.findings)
    }


def processing_summary(assessments: Sequence[Assessment], rejections: Sequence[Rejection]) -> CodedConcept:
    """Return whether the algorithms succeeded, and found anything (CID 6047); any rejection given is a failure."""
    if not assessments:
        return codes.NONE_SUCCEEDED
    complete = not rejections
    found = Presence.PRESENT in _presences(assessments)
    if complete:
        return codes.ALL_SUCCEEDED_WITH_FINDINGS if found else codes.ALL_SUCCEEDED_WITHOUT_FINDINGS
    return codes.NOT_ALL_SUCCEEDED_WITH_FINDINGS if found else codes.NOT_ALL_SUCCEEDED_WITHOUT_FINDINGS


def _evaluation(name: CodedConcept, value: CodedConcept) -> CodeContentItem:
    return CodeContentItem(name=name, value=value, relationship_type=RelationshipTypeValues.CONTAINS)


def _text(name: CodedConcept, value: str) -> TextContentItem:
    return TextContentItem(name=name, value=value, relationship_type=RelationshipTypeValues.CONTAINS)


def _container(name: CodedConcept, items: Iterator[ContentItem]) -> ContainerContentItem:
    container = ContainerContentItem(name=name, relationship_type=RelationshipTypeValues.CONTAINS)
    container.ContentSequence = ContentSequence(items)
    return container
