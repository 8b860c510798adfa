"""One page to print or file, as an Encapsulated PDF: the heatmap and the findings of one image.

The page uses the fonts that every PDF reader has, which know the characters of Western Europe only.
Source: PS3.3 A.45.1 (Encapsulated PDF IOD).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import cv2
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader, simpleSplit
from reportlab.pdfgen.canvas import Canvas

from dicomnode.domain.answer import ResultInstance, ResultKind
from dicomnode.domain.finding import Presence
from dicomnode.results import codes, part10
from dicomnode.results.context import SourceContext
from dicomnode.results.inputs import ImageResultInputs
from dicomnode.results.overlay import Picture, draw_result
from dicomnode.results.panel import Colour, PanelContent, footer_lines
from dicomnode.results.presentation import (
    ABNORMALITY,
    OUTLINE_LEVEL,
    by_evidence,
    name_of,
    percent,
    times_base_rate,
    word_of,
)

TITLE = "Chest radiograph: computer analysis"
NOT_WRITABLE = "in characters that this page cannot show; see the archive"

_WIDTH, _HEIGHT = float(A4[0]), float(A4[1])
_MARGIN, _TOP = 48.0, 44.0
_PICTURE_HEIGHT = 300.0
_ROW = 13.0
_ROWS = 20
_COLUMNS = (0.0, 170.0, 245.0, 320.0, 395.0)
_REGULAR, _BOLD = "Helvetica", "Helvetica-Bold"
_JPEG_QUALITY = 90
_LONGEST_SIDE = 1400


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """The patient and study as the source image states them, "" where it does not; `image`: SOP Instance UID."""

    patient: str
    patient_id: str
    study_date: str
    accession_number: str
    image: str


def draw_page(heading: Heading, content: PanelContent, radiograph: Picture) -> bytes:
    """Return the PDF, one page; the same arguments give the same bytes."""
    buffer = BytesIO()
    canvas = Canvas(buffer, pagesize=A4, invariant=1, pageCompression=1)
    canvas.setTitle(TITLE)
    canvas.setAuthor(content.equipment.settings.manufacturer)
    canvas.setCreator(content.equipment.model_name)
    y = _draw_heading(canvas, heading, content.equipment.settings.mark)
    y = _draw_impression(canvas, content.impression(), y)
    y = _draw_picture(canvas, radiograph, y)
    y = _draw_legend(canvas, content, y)
    _draw_table(canvas, content, y)
    _draw_footer(canvas, heading, content)
    canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def is_writable(text: str) -> bool:
    """Tell whether the page's fonts have every character of a text."""
    return shown_in(text) == text


def shown_in(text: str) -> str:
    """Return the text with a question mark for every character that the page's fonts do not have."""
    return text.encode("cp1252", "replace").decode("cp1252")


def _write(canvas: Canvas, text: str, x: float, y: float, *, font: str = _REGULAR, size: float = 9.0) -> None:
    """Write one line, smaller where it would leave the page."""
    line = shown_in(text)
    room = _WIDTH - _MARGIN - x
    size *= min(1.0, room / max(canvas.stringWidth(line, font, size), 1.0))
    canvas.setFont(font, size)
    canvas.drawString(x, y, line)


def _draw_heading(canvas: Canvas, heading: Heading, mark: str) -> float:
    y = _HEIGHT - _TOP
    _write(canvas, TITLE, _MARGIN, y, font=_BOLD, size=15)
    _write(canvas, "Not reviewed by a physician", _MARGIN, y - 16)
    y -= 38
    if mark:
        canvas.setFillColorRGB(1.0, 0.76, 0.24)
        canvas.rect(_MARGIN, y - 6, _WIDTH - 2 * _MARGIN, 20, stroke=0, fill=1)
        canvas.setFillColorRGB(0, 0, 0)
        _write(canvas, mark, _MARGIN + 6, y, font=_BOLD, size=11)
        y -= 22
    stated = {
        "Patient": heading.patient,
        "ID": heading.patient_id,
        "Study date": heading.study_date,
        "Accession number": heading.accession_number,
    }
    who = "    ".join(f"{name}: {value or 'not stated'}" for name, value in stated.items())
    _write(canvas, who, _MARGIN, y)
    return y - 10


def _draw_impression(canvas: Canvas, text: str, y: float) -> float:
    """Write what was found, on as many lines as it takes."""
    for line in simpleSplit(shown_in(text), _BOLD, 11, _WIDTH - 2 * _MARGIN):
        _write(canvas, line, _MARGIN, y - 8, font=_BOLD, size=11)
        y -= 14
    return y - 6


def _draw_picture(canvas: Canvas, radiograph: Picture, top: float) -> float:
    shrink = min(1.0, _LONGEST_SIDE / max(radiograph.shape))
    small = cv2.resize(radiograph, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    rows, columns = small.shape[:2]
    scale: float = min(_PICTURE_HEIGHT / rows, (_WIDTH - 2 * _MARGIN) / columns)
    y: float = top - rows * scale
    canvas.drawImage(ImageReader(BytesIO(jpeg.tobytes())), _MARGIN, y, columns * scale, rows * scale)
    return y - 14


def _draw_legend(canvas: Canvas, content: PanelContent, y: float) -> float:
    """Say what the colours of the picture are, and whose maps they show."""
    title, detail = content.legend()
    outlines = f"; outlines at {OUTLINE_LEVEL:.0%} of each map" if content.shown else ""
    _write(canvas, f"{title}{outlines}", _MARGIN, y, font=_BOLD, size=8)
    _write(canvas, detail, _MARGIN, y - 11, size=8)
    return y - 32


def _draw_table(canvas: Canvas, content: PanelContent, y: float) -> None:
    titles = ("Finding", "Probability", content.base_rate_title, "Threshold", "Result")
    for text, x in zip(titles, _COLUMNS, strict=True):
        _write(canvas, text, _MARGIN + x, y, font=_BOLD)
    colours = {entry.finding.label: entry.colour for entry in content.shown if entry.colour is not None}
    findings = by_evidence(content.assessment.findings)
    fitting = findings if len(findings) <= _ROWS else findings[: _ROWS - 1]
    for finding in (content.assessment.abnormality, *fitting):
        y -= _ROW
        if finding.label in colours:
            _draw_mark(canvas, y, colours[finding.label])
        font = _REGULAR if finding.presence is Presence.ABSENT else _BOLD
        cells = (
            ABNORMALITY if finding is content.assessment.abnormality else name_of(finding),
            percent(finding.probability),
            times_base_rate(finding),
            percent(finding.threshold),
            word_of(finding.presence, content.equipment.settings),
        )
        for text, x in zip(cells, _COLUMNS, strict=True):
            _write(canvas, text, _MARGIN + x, y, font=font)
    if len(fitting) < len(findings):
        _write(canvas, f"and {len(findings) - len(fitting)} more, see the structured report", _MARGIN, y - _ROW)


def _draw_mark(canvas: Canvas, y: float, colour: Colour) -> None:
    """Draw the colour of a finding's outline before its name; the edge makes white visible on paper."""
    canvas.setFillColorRGB(*(part / 255 for part in colour))
    canvas.rect(_MARGIN - 12, y - 1, 8, 8, stroke=1, fill=1)
    canvas.setFillColorRGB(0, 0, 0)


def _draw_footer(canvas: Canvas, heading: Heading, content: PanelContent) -> None:
    lines = [text for text, _ in footer_lines(content)]
    for number, text in enumerate(reversed([*lines, f"Image: {heading.image}"])):
        _write(canvas, text, _MARGIN, 30 + 11 * number, size=8)


_KIND = ResultKind.DOCUMENT


def write_document(inputs: ImageResultInputs) -> Iterator[ResultInstance]:
    """Write the page of one assessed image."""
    source, equipment = inputs.source, inputs.equipment
    overlay = draw_result(inputs)
    pdf = draw_page(_heading(source), overlay.content, overlay.radiograph)
    local_now = source.local(inputs.now)
    # Patient, General Study, Patient Study, SOP Common
    sop_instance = inputs.identity.instance(_KIND, source.ref.sop_instance)
    ds = part10.new_dataset(source, EncapsulatedPDFStorage, sop_instance, inputs.now)
    # Encapsulated Document Series
    ds.Modality = "DOC"
    ds.SeriesInstanceUID = inputs.identity.series(_KIND)
    ds.SeriesNumber = equipment.settings.series_number_pdf
    ds.SeriesDescription = part10.series_description("AI document", equipment)
    # General Equipment, SC Equipment
    part10.add_equipment(ds, equipment)
    ds.ConversionType = "WSD"
    # Encapsulated Document
    ds.InstanceNumber = inputs.number
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
    """Return the heading; of a name in several scripts the first that the page can show. Source: PS3.5 6.2.1."""
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
