"""Results of the node, written of any source without a model: a report, a heatmap, a refusal."""

from pydicom import Dataset

from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.job import Rejection, RejectionReason, ResultInstance
from dicomnode.results.context import SourceContext
from dicomnode.results.sc import write_heatmap
from dicomnode.results.sr import write_not_analysed, write_report
from tests.assessments import NOW, assessment, equipment, frame, identity
from tests.make import chest


def report_on(source: Dataset, *, rejections: tuple[Rejection, ...] = ()) -> ResultInstance:
    context = SourceContext.of(source)
    former = InstanceRef(
        study=context.ref.study, series="1.2.3", sop_class="1.2.840.10008.5.1.4.1.1.88.34", sop_instance="1.2.3.4"
    )
    said = assessment(context.ref, {"Mass": 0.7, "Effusion": 0.4}, undetermined=("Nodule",), abnormality=0.8)
    return write_report(
        sources={context.ref.sop_instance: context},
        assessments=[said],
        rejections=rejections,
        predecessors=[former],
        equipment=equipment(institution="Hôpital général"),
        identity=identity(context.ref.study),
        now=NOW,
    )


def heatmap_of(source: Dataset) -> ResultInstance:
    context = SourceContext.of(source)
    return write_heatmap(
        source=context,
        frame=frame(context.ref, chest(640, 560)),
        assessment=assessment(context.ref, {"Mass": 0.7}),
        equipment=equipment(institution="Hôpital général"),
        identity=identity(context.ref.study),
        now=NOW,
    )


def refusal_of(source: Dataset) -> ResultInstance:
    context = SourceContext.of(source)
    refusal = Rejection(source=context.ref, reason=RejectionReason.LATERAL_VIEW, detail="View Position is LL")
    return write_not_analysed(
        sources={context.ref.sop_instance: context},
        rejections=[refusal],
        predecessors=(),
        equipment=equipment(),
        identity=identity(context.ref.study),
        now=NOW,
    )
