"""The contours of positive findings as a Grayscale Softcopy Presentation State of the image that was analysed.

A viewer draws them over the archive's own image, and a person can hide them.
Source: PS3.3 A.33.1 (Grayscale Softcopy Presentation State IOD).
"""

from collections.abc import Iterator
from datetime import datetime

from highdicom.color import CIELabColor
from highdicom.pr import AnnotationUnitsValues, GraphicLayer, GraphicObject, GraphicTypeValues, TextObject
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage
from pydicom.valuerep import DSfloat

from dicomnode.domain.finding import Assessment, Finding
from dicomnode.domain.frame import Frame
from dicomnode.domain.job import ResultInstance, ResultKind
from dicomnode.results import part10
from dicomnode.results.context import Equipment, ResultIdentity, SourceContext
from dicomnode.results.contours import Line, contours
from dicomnode.results.overlay import OUTLINES, positive_findings
from dicomnode.results.panel import OUTLINE_LEVEL, percent

_KIND = ResultKind.PRESENTATION_STATE
_PIXEL = AnnotationUnitsValues.PIXEL
_UNDRAWN = (255, 193, 60)
"""Colour of the text on a finding without contours."""
_TEXT_HEIGHT, _TEXT_WIDTH = 0.03, 0.6
"""Of the line of text on one finding, as parts of the image's sides."""


def write_presentation_state(
    *,
    source: SourceContext,
    frame: Frame,
    assessment: Assessment,
    equipment: Equipment,
    identity: ResultIdentity,
    now: datetime,
    number: int,
) -> Iterator[ResultInstance]:
    """Write the presentation state of one assessed image; without a positive finding there is none."""
    findings = positive_findings(assessment)
    if not findings:
        return
    local_now = source.local(now)
    sop_instance = identity.instance(_KIND, source.ref.sop_instance)
    # Patient, General Study, Patient Study, SOP Common
    ds = part10.new_dataset(source, GrayscaleSoftcopyPresentationStateStorage, sop_instance, now)
    # General Series, Presentation Series
    ds.Modality = "PR"
    ds.SeriesInstanceUID = identity.series(_KIND)
    ds.SeriesNumber = equipment.settings.series_number_gsps
    ds.SeriesDescription = part10.series_description("AI contours", equipment)
    ds.BodyPartExamined = "CHEST"
    # General Equipment
    part10.add_equipment(ds, equipment)
    # Presentation State Identification
    ds.InstanceNumber = number
    ds.ContentLabel = "AI_CONTOURS"
    ds.ContentDescription = f"Grad-CAM of positive findings, contours at {OUTLINE_LEVEL:.0%}"
    ds.PresentationCreationDate = local_now.strftime(part10.DATE)
    ds.PresentationCreationTime = local_now.strftime(part10.TIME)
    ds.ContentCreatorName = None
    # Presentation State Relationship
    ds.ReferencedSeriesSequence = [_series_item(source)]
    # Displayed Area
    ds.DisplayedAreaSelectionSequence = [_displayed_area(source, frame)]
    # Graphic Annotation, Graphic Layer
    _add_annotations(ds, findings, source, frame, assessment, identity)
    # Modality LUT, Softcopy VOI LUT, Softcopy Presentation LUT
    _add_greyscale(ds, source, frame)
    yield part10.finish(ds, _KIND, source.character_set, (source.ref.sop_instance,))


def _series_item(source: SourceContext) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = source.ref.series
    item.ReferencedImageSequence = [_image_item(source)]
    return item


def _image_item(source: SourceContext) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.ref.sop_class
    item.ReferencedSOPInstanceUID = source.ref.sop_instance
    return item


def _sides(frame: Frame) -> tuple[int, int]:
    """Return rows and columns of the source image."""
    rows, columns = frame.pixels.shape
    return (rows, columns) if frame.turned_from_source % 2 == 0 else (columns, rows)


def _displayed_area(source: SourceContext, frame: Frame) -> Dataset:
    """Return the whole image, to be fitted to the screen. Source: PS3.3 C.10.4."""
    rows, columns = _sides(frame)
    item = Dataset()
    item.ReferencedImageSequence = [_image_item(source)]
    item.DisplayedAreaTopLeftHandCorner = [1, 1]
    item.DisplayedAreaBottomRightHandCorner = [columns, rows]
    item.PresentationSizeMode = "SCALE TO FIT"
    if source.spacing is None:
        item.PresentationPixelAspectRatio = [1, 1]
    else:
        spacing = (source.spacing.row_mm, source.spacing.column_mm)
        item.PresentationPixelSpacing = [DSfloat(value, auto_format=True) for value in spacing]
    return item


def _add_annotations(
    ds: Dataset,
    findings: tuple[Finding, ...],
    source: SourceContext,
    frame: Frame,
    assessment: Assessment,
    identity: ResultIdentity,
) -> None:
    """Add a layer for each finding, so that a viewer can show them one by one. Source: PS3.3 C.10.5, C.10.7.

    As many have contours as there are colours to tell them apart, the others their line of text.
    """
    maps = {entry.label: entry for entry in assessment.saliency}
    ds.GraphicAnnotationSequence, ds.GraphicLayerSequence = [], []
    for order, finding in enumerate(findings, start=1):
        is_drawn = order <= len(OUTLINES)
        layer = _layer(finding, order, is_drawn=is_drawn)
        ds.GraphicLayerSequence.append(layer)
        item = Dataset()
        item.ReferencedImageSequence = [_image_item(source)]
        item.GraphicLayer = layer.GraphicLayer
        item.TextObjectSequence = [_text(finding, order, frame)]
        lines = contours(maps[finding.label], frame) if is_drawn and finding.label in maps else []
        if lines:
            tracking_uid = identity.tracking(source.ref.sop_instance, finding.label)
            item.GraphicObjectSequence = [_contour(line, finding, tracking_uid) for line in lines]
        ds.GraphicAnnotationSequence.append(item)


def _layer(finding: Finding, order: int, *, is_drawn: bool) -> GraphicLayer:
    what = f"contour at {OUTLINE_LEVEL:.0%} of its map" if is_drawn else "text only"
    return GraphicLayer(
        layer_name=f"AI_{order}",
        order=order,
        description=f"{_name(finding)}, {what}"[:64],
        display_color=CIELabColor.from_rgb(*(OUTLINES[order - 1] if is_drawn else _UNDRAWN)),
    )


def _contour(line: Line, finding: Finding, tracking_uid: str) -> GraphicObject:
    return GraphicObject(
        graphic_type=GraphicTypeValues.POLYLINE,
        graphic_data=line,
        units=_PIXEL,
        tracking_id=finding.label,
        tracking_uid=tracking_uid,
    )


def _name(finding: Finding) -> str:
    return finding.label.replace("_", " ")


def _text(finding: Finding, order: int, frame: Frame) -> TextObject:
    """Return the line that says what the contours of one finding are; lines stand below each other in a corner."""
    rows, columns = _sides(frame)
    top = min((order - 1) * _TEXT_HEIGHT, 1 - _TEXT_HEIGHT) * rows
    return TextObject(
        text_value=f"AI: {_name(finding)} {percent(finding.probability)} (not reviewed)",
        units=_PIXEL,
        bounding_box=(0.0, top, _TEXT_WIDTH * columns, top + _TEXT_HEIGHT * rows),
        text_justification="LEFT",
    )


def _add_greyscale(ds: Dataset, source: SourceContext, frame: Frame) -> None:
    """Show the image as it is shown without the presentation state, which would otherwise lose its window.

    An image that states no window gets the one in which the model saw it: with none, a presentation state shows the
    whole stored scale, of which most images use a small part. Source: PS3.4 N.2.1.
    """
    ds.update(source.greyscale.modality)
    voi = source.greyscale.voi or _chosen_window(frame)
    if voi:
        ds.SoftcopyVOILUTSequence = [voi]
    ds.PresentationLUTShape = "INVERSE" if source.greyscale.inverse else "IDENTITY"


def _chosen_window(frame: Frame) -> Dataset:
    window = Dataset()
    if frame.window is not None and frame.window[1] > frame.window[0]:
        low, high = frame.window
        window.WindowCenter, window.WindowWidth = (
            DSfloat(value, auto_format=True) for value in ((low + high) / 2, high - low)
        )
        window.VOILUTFunction = "LINEAR_EXACT"
    return window
