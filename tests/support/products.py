"""Results of the node, written of any source without a model: a report, a refusal, results of one image."""

from collections.abc import Mapping

import numpy as np
from pydicom import Dataset

from dicomnode.dicom.header import header_of
from dicomnode.domain.answer import Rejection, RejectionReason, ResultInstance, ResultKind
from dicomnode.domain.frame import FloatArray
from dicomnode.domain.instance import InstanceRef
from dicomnode.results.context import SourceContext
from dicomnode.results.inputs import ImageResultInputs, ReportInputs
from dicomnode.results.per_image import write_image_results
from dicomnode.results.sc import write_heatmap
from dicomnode.results.sr import write_not_analysed, write_report
from tests.support.assessments import NOW, assessment, equipment, frame, identity
from tests.support.make import chest


def report_on(
    source: Dataset, *, rejections: tuple[Rejection, ...] = (), institution: str = "Hôpital général"
) -> ResultInstance:
    context = SourceContext.of(header_of(source))
    former = InstanceRef(
        study=context.ref.study, series="1.2.3", sop_class="1.2.840.10008.5.1.4.1.1.88.34", sop_instance="1.2.3.4"
    )
    said = assessment(context.ref, {"Mass": 0.7, "Effusion": 0.4}, undetermined=("Nodule",), abnormality=0.8)
    inputs = ReportInputs(
        sources={context.ref.sop_instance: context},
        assessments=[said],
        rejections=rejections,
        predecessors=[former],
        equipment=equipment(institution=institution),
        identity=identity(context.ref.study),
        now=NOW,
    )
    return write_report(inputs)


def heatmap_of(source: Dataset) -> ResultInstance:
    context = SourceContext.of(header_of(source))
    inputs = ImageResultInputs(
        source=context,
        frame=frame(context.ref, chest(640, 560)),
        assessment=assessment(context.ref, {"Mass": 0.7}),
        equipment=equipment(institution="Hôpital général"),
        identity=identity(context.ref.study),
        now=NOW,
    )
    return write_heatmap(inputs)


def image_results(
    kind: ResultKind,
    source: Dataset,
    probabilities: Mapping[str, float],
    *,
    turns: int = 0,
    inverted: bool = False,
    mirrored: bool = False,
    window: tuple[float, float] | None = None,
    abnormality: float = 0.8,
    pixels: FloatArray | None = None,
) -> list[ResultInstance]:
    """Return the results of one kind of an image in which these labels have these probabilities."""
    context = SourceContext.of(header_of(source))
    stored = chest(640, 560) if pixels is None else pixels
    inputs = ImageResultInputs(
        source=context,
        frame=frame(
            context.ref,
            np.rot90(np.fliplr(stored) if mirrored else stored, turns),
            turns=turns,
            inverted=inverted,
            mirrored=mirrored,
            window=window,
        ),
        assessment=assessment(context.ref, probabilities, abnormality=abnormality),
        equipment=equipment(institution="Hôpital général"),
        identity=identity(context.ref.study),
        now=NOW,
        number=2,
    )
    return list(write_image_results({kind}, inputs))


def finding_heatmap_of(source: Dataset) -> ResultInstance:
    return image_results(ResultKind.FINDING_CAPTURE, source, {"Mass": 0.7})[0]


def presentation_state_of(source: Dataset) -> ResultInstance:
    return image_results(ResultKind.PRESENTATION_STATE, source, {"Mass": 0.7})[0]


def parametric_map_of(source: Dataset) -> ResultInstance:
    return image_results(ResultKind.PARAMETRIC_MAP, source, {"Mass": 0.7})[0]


def document_of(source: Dataset) -> ResultInstance:
    return image_results(ResultKind.DOCUMENT, source, {"Mass": 0.7})[0]


def refusal_of(source: Dataset) -> ResultInstance:
    context = SourceContext.of(header_of(source))
    refusal = Rejection(source=context.ref, reason=RejectionReason.LATERAL_VIEW, detail="View Position is LL")
    inputs = ReportInputs(
        sources={context.ref.sop_instance: context},
        assessments=(),
        rejections=[refusal],
        predecessors=(),
        equipment=equipment(),
        identity=identity(context.ref.study),
        now=NOW,
    )
    return write_not_analysed(inputs)
