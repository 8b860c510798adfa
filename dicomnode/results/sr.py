"""The report: one Comprehensive 3D SR, TID 1500, for one version of the answer to a study.

Time, identity and configuration are arguments: the same arguments give the same bytes.

For a destination that does not accept Comprehensive 3D SR, `fallback` gives the report under an older SOP class. The
content tree holds no 3D coordinates and no references by identifier, so it is valid under Comprehensive and Enhanced SR
without a change. The variant is another SOP instance, because an instance has one class (PS3.4 B.4.1) and a peer that
gets both must not take one for a corrupt copy of the other. Its UID derives from the original's and the class, and its
predecessors are the variants of the original's predecessors, which is what such a destination has.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from pydicom.dataset import Dataset
from pydicom.uid import UID, Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from dicomnode.domain.answer import Rejection, ResultInstance, ResultKind
from dicomnode.domain.identifiers import derive_uid
from dicomnode.domain.instance import InstanceRef
from dicomnode.results import part10
from dicomnode.results.content import report_tree, worth_reporting
from dicomnode.results.context import SourceContext
from dicomnode.results.inputs import ReportInputs
from dicomnode.results.part10 import decode, encode

_KIND = ResultKind.STRUCTURED_REPORT


def write_report(inputs: ReportInputs) -> ResultInstance:
    """Write the report of a study of which at least one image was assessed.

    Patient and study come from the source of the first assessment.
    """
    images = [inputs.sources[assessment.source.sop_instance] for assessment in inputs.assessments]
    return _write(images, inputs, worth_reporting(inputs.rejections, analysed=True))


def write_not_analysed(inputs: ReportInputs) -> ResultInstance:
    """Write the report that says of a wholly rejected study that it was not analysed, and why.

    At least one of the rejected images could be read and is not the node's own; there are no assessments.
    """
    reported = worth_reporting(inputs.rejections, analysed=False)
    named = [entry.source.sop_instance for entry in reported]
    return _write([inputs.sources[uid] for uid in named if uid in inputs.sources], inputs, reported)


def _write(images: Sequence[SourceContext], inputs: ReportInputs, rejections: Sequence[Rejection]) -> ResultInstance:
    """Write the report on these images, the first of which says whose it is; `rejections` are those it mentions."""
    context, equipment, identity = images[0], inputs.equipment, inputs.identity
    # What the report speaks of besides its inputs is part of its identity: one UID never has two contents.
    sop_instance = identity.instance(_KIND, *(f"{entry.source.sop_instance} {entry.reason}" for entry in rejections))
    # Patient, General Study, Patient Study, SOP Common
    ds = part10.new_dataset(context, Comprehensive3DSRStorage, sop_instance, inputs.now)
    # SR Document Series
    ds.Modality = "SR"
    ds.SeriesInstanceUID = identity.series(_KIND)
    ds.SeriesNumber = equipment.settings.series_number_sr
    ds.SeriesDescription = part10.series_description("AI report", equipment)
    ds.ReferencedPerformedProcedureStepSequence = []
    # General Equipment, Enhanced General Equipment
    part10.add_equipment(ds, equipment)
    # SR Document General
    _add_document_general(ds, images, context.local(inputs.now))
    former = [entry for entry in inputs.predecessors if entry.sop_instance != sop_instance]
    if former:
        ds.PredecessorDocumentsSequence = _references(former)
    # SR Document Content
    ds.update(report_tree(images, inputs, rejections))
    part10.identify_private_schemes(ds, equipment)
    return part10.finish(ds, _KIND, context.character_set, tuple(image.ref.sop_instance for image in images))


def _add_document_general(ds: Dataset, images: Sequence[SourceContext], local_now: datetime) -> None:
    """Add the SR Document General module: complete, and verified by nobody. Source: PS3.3 C.17.2."""
    ds.InstanceNumber = 1
    ds.CompletionFlag = "COMPLETE"
    ds.VerificationFlag = "UNVERIFIED"
    ds.PreliminaryFlag = "PRELIMINARY"
    ds.ContentDate = local_now.strftime(part10.DATE)
    ds.ContentTime = local_now.strftime(part10.TIME)
    ds.PerformedProcedureCodeSequence = []
    ds.CurrentRequestedProcedureEvidenceSequence = _references([image.ref for image in images])


def _references(refs: Sequence[InstanceRef]) -> list[Dataset]:
    """Return the Hierarchical SOP Instance Reference macro. Source: PS3.3 C.17.2.1."""
    tree: dict[str, dict[str, dict[str, str]]] = {}
    for ref in refs:
        tree.setdefault(ref.study, {}).setdefault(ref.series, {})[ref.sop_instance] = ref.sop_class
    return [_study_item(study, series) for study, series in tree.items()]


def _study_item(study: str, series: Mapping[str, Mapping[str, str]]) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = study
    item.ReferencedSeriesSequence = []
    for series_uid, instances in series.items():
        series_item = Dataset()
        series_item.SeriesInstanceUID = series_uid
        series_item.ReferencedSOPSequence = [_sop_item(*pair) for pair in instances.items()]
        item.ReferencedSeriesSequence.append(series_item)
    return item


def _sop_item(sop_instance: str, sop_class: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class
    item.ReferencedSOPInstanceUID = sop_instance
    return item


_PREFERENCE = (ComprehensiveSRStorage, EnhancedSRStorage)


def as_comprehensive(part10: bytes) -> bytes:
    """Return the Comprehensive 3D SR as a Comprehensive SR."""
    return _under(part10, ComprehensiveSRStorage)


def as_enhanced(part10: bytes) -> bytes:
    """Return the Comprehensive 3D SR as an Enhanced SR."""
    return _under(part10, EnhancedSRStorage)


def fallback(part10: bytes, accepted_sop_classes: Collection[str]) -> bytes | None:
    """Return the variant that the destination accepts best, or None when there is none (or it is no report)."""
    for sop_class in _PREFERENCE:
        if sop_class in accepted_sop_classes and decode(part10).SOPClassUID == Comprehensive3DSRStorage:
            return _under(part10, sop_class)
    return None


def variant_uid(sop_instance: str, sop_class: str) -> str:
    """Return the SOP Instance UID of a report's variant under another SOP class."""
    return derive_uid("variant", sop_instance, sop_class)


def _under(part10: bytes, sop_class: UID) -> bytes:
    ds = decode(part10)
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = variant_uid(ds.SOPInstanceUID, sop_class)
    for study in ds.get("PredecessorDocumentsSequence", []):
        for series in study.ReferencedSeriesSequence:
            _rename(series, sop_class)
    return encode(ds)


def _rename(series: Dataset, sop_class: UID) -> None:
    for item in series.ReferencedSOPSequence:
        item.ReferencedSOPInstanceUID = variant_uid(item.ReferencedSOPInstanceUID, sop_class)
        item.ReferencedSOPClassUID = sop_class
