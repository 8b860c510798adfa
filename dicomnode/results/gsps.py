"""The contours of findings above threshold as a Grayscale Softcopy Presentation State of the analysed image.

Contours are closed lines in the pixel coordinates of the source image: a viewer draws them over the archive's own
image, and a person can hide them.
Source: PS3.3 A.33.1 (Grayscale Softcopy Presentation State IOD).
"""

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt
from highdicom.color import CIELabColor
from highdicom.pr import AnnotationUnitsValues, GraphicLayer, GraphicObject, GraphicTypeValues, TextObject
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage
from pydicom.valuerep import DSfloat

from dicomnode.domain.answer import ResultInstance, ResultKind
from dicomnode.domain.finding import Finding, SaliencyMap
from dicomnode.domain.frame import Frame
from dicomnode.results import part10
from dicomnode.results.body import BoolArray, body_mask
from dicomnode.results.context import SourceContext
from dicomnode.results.inputs import ImageResultInputs
from dicomnode.results.overlay import OUTLINES
from dicomnode.results.presentation import OUTLINE_LEVEL, findings_with_heat, heat_of, statement, title_of

Line = npt.NDArray[np.float64]

MAXIMUM_POINTS = 200
"""Points of one contour; a line of more is thinned, which moves it by less than what the map resolves."""
_GRID = 512
_FINEST = 0.25


def contours(saliency: SaliencyMap, frame: Frame, body: BoolArray) -> list[Line]:
    """Return the outlines at `OUTLINE_LEVEL` of the map's heat on the body, largest first; none without heat.

    Each is (points, 2) of column and row, its last point its first; the source's top left corner is 0, 0 and the
    middle of its first pixel 0.5, 0.5. Source: PS3.3 C.10.5.1.2 (PIXEL).
    """
    rows, columns = frame.pixels.shape
    scale = min(1.0, _GRID / max(rows, columns))
    grid = (max(1, round(rows * scale)), max(1, round(columns * scale)))
    heat = heat_of(saliency.values, grid, body)
    if heat is None:
        return []
    # A margin outside the image closes the lines that run along its border.
    inside = np.pad((heat.values >= OUTLINE_LEVEL).astype(np.uint8), 1)
    found, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    factors = np.array([columns / grid[1], rows / grid[0]])
    closed = (_thinned(line) for line in sorted(found, key=cv2.contourArea, reverse=True))
    return [_on_source((line - 1 + 0.5) * factors, frame) for line in closed if len(line) > 3]


def _thinned(line: npt.NDArray[np.int32]) -> Line:
    """Return the closed line with at most `MAXIMUM_POINTS`."""
    tolerance = _FINEST
    points = cv2.approxPolyDP(line, tolerance, closed=True)[:, 0, :]
    while len(points) >= MAXIMUM_POINTS:
        tolerance *= 2
        points = cv2.approxPolyDP(line, tolerance, closed=True)[:, 0, :]
    return np.concatenate([points, points[:1]]).astype(np.float64)


def _on_source(line: Line, frame: Frame) -> Line:
    """Return a line of the upright frame on the source image, of which it may be a mirrored and turned copy."""
    rows, columns = frame.pixels.shape
    for _ in range(frame.turned_from_source % 4):
        line = np.stack([rows - line[:, 1], line[:, 0]], axis=1)
        rows, columns = columns, rows
    return np.stack([columns - line[:, 0], line[:, 1]], axis=1) if frame.mirrored_from_source else line


_KIND = ResultKind.PRESENTATION_STATE
_PIXEL = AnnotationUnitsValues.PIXEL
_UNDRAWN = (255, 193, 60)
"""Colour of the text on a finding without contours."""
_TEXT_HEIGHT, _TEXT_WIDTH = 0.03, 0.6
"""Of the line of text on one finding, as parts of the image's sides."""


def write_presentation_state(inputs: ImageResultInputs) -> Iterator[ResultInstance]:
    """Write the presentation state of one assessed image; there is none where nothing is above its threshold."""
    source, frame, equipment = inputs.source, inputs.frame, inputs.equipment
    findings = findings_with_heat(inputs.assessment)
    if not findings:
        return
    local_now = source.local(inputs.now)
    sop_instance = inputs.identity.instance(_KIND, source.ref.sop_instance)
    # Patient, General Study, Patient Study, SOP Common
    ds = part10.new_dataset(source, GrayscaleSoftcopyPresentationStateStorage, sop_instance, inputs.now)
    # General Series, Presentation Series
    ds.Modality = "PR"
    ds.SeriesInstanceUID = inputs.identity.series(_KIND)
    ds.SeriesNumber = equipment.settings.series_number_gsps
    ds.SeriesDescription = part10.series_description("AI contours", equipment)
    ds.BodyPartExamined = "CHEST"
    # General Equipment
    part10.add_equipment(ds, equipment)
    # Presentation State Identification
    ds.InstanceNumber = inputs.number
    ds.ContentLabel = "AI_CONTOURS"
    ds.ContentDescription = f"Grad-CAM of findings above threshold, contours at {OUTLINE_LEVEL:.0%}"
    ds.PresentationCreationDate = local_now.strftime(part10.DATE)
    ds.PresentationCreationTime = local_now.strftime(part10.TIME)
    ds.ContentCreatorName = None
    # Presentation State Relationship
    ds.ReferencedSeriesSequence = [_series_item(source)]
    # Displayed Area
    ds.DisplayedAreaSelectionSequence = [_displayed_area(source, frame)]
    # Graphic Annotation, Graphic Layer
    _add_annotations(ds, findings, inputs)
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


def _add_annotations(ds: Dataset, findings: tuple[Finding, ...], inputs: ImageResultInputs) -> None:
    """Add a layer for each finding, so that a viewer can show them one by one. Source: PS3.3 C.10.5, C.10.7.

    As many have contours as there are colours to tell them apart, the others their line of text.
    """
    source, frame = inputs.source, inputs.frame
    maps = {entry.label: entry for entry in inputs.assessment.saliency}
    body = body_mask(frame.pixels)
    ds.GraphicAnnotationSequence, ds.GraphicLayerSequence = [], []
    for order, finding in enumerate(findings, start=1):
        is_drawn = order <= len(OUTLINES)
        name = title_of(finding, inputs.assessment)
        layer = _layer(name, order, is_drawn=is_drawn)
        ds.GraphicLayerSequence.append(layer)
        item = Dataset()
        item.ReferencedImageSequence = [_image_item(source)]
        item.GraphicLayer = layer.GraphicLayer
        item.TextObjectSequence = [_text(statement(finding, name, inputs.equipment.settings), order, frame)]
        lines = contours(maps[finding.label], frame, body) if is_drawn and finding.label in maps else []
        if lines:
            tracking_uid = inputs.identity.tracking(source.ref.sop_instance, finding.label)
            item.GraphicObjectSequence = [_contour(line, finding, tracking_uid) for line in lines]
        ds.GraphicAnnotationSequence.append(item)


def _layer(name: str, order: int, *, is_drawn: bool) -> GraphicLayer:
    what = f"contour at {OUTLINE_LEVEL:.0%} of its map" if is_drawn else "text only"
    return GraphicLayer(
        layer_name=f"AI_{order}",
        order=order,
        description=f"{name}, {what}"[:64],
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


def _text(line: str, order: int, frame: Frame) -> TextObject:
    """Return the line that says what the contours of one finding are; lines stand below each other in a corner."""
    rows, columns = _sides(frame)
    top = min((order - 1) * _TEXT_HEIGHT, 1 - _TEXT_HEIGHT) * rows
    return TextObject(
        text_value=f"AI: {line} (not reviewed)",
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
