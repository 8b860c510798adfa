"""A page for those who print or file: the heatmap and the findings of one image as an Encapsulated PDF.

Source: PS3.3 A.45.1 (Encapsulated PDF IOD).
"""

from collections.abc import Iterator
from datetime import datetime

from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from dicomnode.domain.finding import Assessment
from dicomnode.domain.frame import Frame
from dicomnode.domain.job import ResultInstance, ResultKind
from dicomnode.results import codes, part10
from dicomnode.results.context import Equipment, ResultIdentity, SourceContext
from dicomnode.results.overlay import draw
from dicomnode.results.page import NOT_WRITABLE, TITLE, Heading, draw_page, is_writable
from dicomnode.results.panel import PanelContent

_KIND = ResultKind.DOCUMENT


def write_document(
    *,
    source: SourceContext,
    frame: Frame,
    assessment: Assessment,
    equipment: Equipment,
    identity: ResultIdentity,
    now: datetime,
    number: int,
) -> Iterator[ResultInstance]:
    """Write the page of one assessed image."""
    overlay = draw(frame, assessment, equipment)
    content = PanelContent(
        assessment=assessment,
        equipment=equipment,
        shown=overlay.outlined,
        scale=overlay.scale,
        quarter_turns=frame.turned_from_source,
        inverted=frame.inverted_from_source,
    )
    pdf = draw_page(_heading(source), content, overlay.radiograph)
    local_now = source.local(now)
    # Patient, General Study, Patient Study, SOP Common
    sop_instance = identity.instance(_KIND, source.ref.sop_instance)
    ds = part10.new_dataset(source, EncapsulatedPDFStorage, sop_instance, now)
    # Encapsulated Document Series
    ds.Modality = "DOC"
    ds.SeriesInstanceUID = identity.series(_KIND)
    ds.SeriesNumber = equipment.settings.series_number_pdf
    ds.SeriesDescription = part10.series_description("AI document", equipment)
    # General Equipment, SC Equipment
    part10.add_equipment(ds, equipment)
    ds.ConversionType = "WSD"
    # Encapsulated Document
    ds.InstanceNumber = number
    ds.ContentDate = local_now.strftime(part10.DATE)
    ds.ContentTime = local_now.strftime(part10.TIME)
    ds.AcquisitionDateTime = None
    ds.BurnedInAnnotation = "YES"
    ds.RecognizableVisualFeatures = "NO"
    ds.DocumentTitle = TITLE
    ds.ConceptNameCodeSequence = [codes.REPORT_TITLE]
    ds.VerificationFlag = "UNVERIFIED"
    ds.SourceInstanceSequence = [_source_item(source)]
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocumentLength = len(pdf)
    ds.EncapsulatedDocument = pdf + b"\x00" * (len(pdf) % 2)
    yield part10.finish(ds, _KIND, source.character_set, (source.ref.sop_instance,))


def _heading(source: SourceContext) -> Heading:
    """Return whose page it is; of a name in several scripts the first that the page can show. Source: PS3.5 6.2.1."""
    groups = (" ".join(group.replace("^", " ").split()) for group in str(source.identity.PatientName).split("="))
    names = [name for name in groups if name]
    day = str(source.identity.StudyDate)
    return Heading(
        patient=next((name for name in names if is_writable(name)), NOT_WRITABLE if names else ""),
        patient_id=str(source.identity.PatientID),
        study_date=f"{day[:4]}-{day[4:6]}-{day[6:]}" if day else "",
        accession_number=str(source.identity.AccessionNumber),
        image=source.ref.sop_instance,
    )


def _source_item(source: SourceContext) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.ref.sop_class
    item.ReferencedSOPInstanceUID = source.ref.sop_instance
    item.PurposeOfReferenceCodeSequence = [codes.SOURCE_IMAGE]
    return item
