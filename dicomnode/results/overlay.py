"""The picture of the Secondary Capture: the radiograph with its Grad-CAM, and beside it the panel.

Nothing is written over anatomy; the maps are blended so that what lies under them stays visible. What is shown, and in
which words, is decided by `dicomnode.results.presentation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dicomnode.domain.finding import Assessment, Finding, SaliencyMap
from dicomnode.domain.frame import FloatArray, Frame
from dicomnode.results.body import BoolArray, body_mask, onto
from dicomnode.results.context import Equipment
from dicomnode.results.inputs import ImageResultInputs
from dicomnode.results.panel import Colour, PanelContent, Shown, draw_panel
from dicomnode.results.presentation import OUTLINE_LEVEL, Heat, findings_with_heat, heat_of, notes_on, orientation_of

Picture = npt.NDArray[np.uint8]

SMALLEST_SIDE = 1280
"""Smaller radiographs are enlarged to this (the panel says so): the panel's text needs that many pixels."""
OUTLINES: tuple[Colour, ...] = ((86, 180, 233), (60, 220, 160), (255, 255, 255))
"""Colours of the outlines: apart from the heat's, and from each other under every common colour vision deficiency."""
_BLEND = 0.42
_ONSET, _FULL = 0.4, 0.95
_GAP = 16
_COARSER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """The finished picture: `pixels` (rows, columns, 3) uint8 RGB, and `content`, which the panel in it states.

    `radiograph` is the part of `pixels` that is not the panel.
    """

    pixels: Picture
    radiograph: Picture
    content: PanelContent

    @property
    def scale(self) -> float:
        """Picture pixels per source pixel."""
        return self.content.scale

    @property
    def shown(self) -> tuple[str, ...]:
        """The labels whose maps are drawn."""
        return tuple(entry.finding.label for entry in self.content.shown)


def draw(
    frame: Frame,
    assessment: Assessment,
    equipment: Equipment,
    *,
    orientation: tuple[str, str] | None = None,
    is_stated: bool = True,
    only: Finding | None = None,
) -> Overlay:
    """Draw one assessed radiograph with the maps of `findings_with_heat`; `only`: with the map of this one finding.

    `orientation`, `is_stated`: see `notes_on`.
    """
    scale = _scale(frame.pixels.shape, equipment.settings.maximum_side)
    radiograph = _resize(frame.pixels, scale)
    findings = findings_with_heat(assessment) if only is None else (only,)
    picture, shown, outside = _heated(radiograph, frame, findings, assessment.saliency)
    content = PanelContent(
        assessment=assessment,
        equipment=equipment,
        shown=shown,
        scale=scale,
        notes=notes_on(frame, orientation, is_unusual=assessment.is_unusual, is_stated=is_stated),
        outside=outside,
        is_heat_due=bool(findings),
    )
    panel = draw_panel(content, max(picture.shape[0], SMALLEST_SIDE), _colour_bar)
    return Overlay(pixels=_side_by_side(picture, panel), radiograph=picture, content=content)


def draw_result(inputs: ImageResultInputs, *, only: Finding | None = None) -> Overlay:
    """Draw the radiograph of an image's results."""
    orientation = orientation_of(inputs.frame, inputs.source)
    return draw(inputs.frame, inputs.assessment, inputs.equipment, orientation=orientation, only=only)


def _heated(
    radiograph: FloatArray, frame: Frame, findings: Sequence[Finding], saliency: Sequence[SaliencyMap]
) -> tuple[Picture, tuple[Shown, ...], float]:
    """Return the radiograph with the findings' maps, whose they are, and the greatest share that is not drawn."""
    grey = cv2.convertScaleAbs(radiograph, alpha=255.0)
    picture = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    if not findings:
        return picture, (), 0.0
    body = body_mask(frame.pixels)
    maps = _heat_maps(findings, saliency, radiograph.shape, body)
    if not maps:
        return picture, (), 0.0
    inside = onto(body, radiograph.shape)
    picture = _blend(picture, [heat.values for _, heat in maps], inside)
    shown = tuple(
        Shown(finding=finding, colour=OUTLINES[i] if i < len(OUTLINES) else None) for i, (finding, _) in enumerate(maps)
    )
    for entry, (_, heat) in zip(shown, maps, strict=True):
        if entry.colour is not None:
            _outline(picture, heat.values, entry.colour)
    return picture, shown, max(heat.outside for _, heat in maps)


def _scale(shape: tuple[int, ...], maximum_side: int) -> float:
    side = max(shape)
    if side > maximum_side:
        return maximum_side / side
    return max(1.0, min(SMALLEST_SIDE, maximum_side) / side)


def _resize(pixels: FloatArray, scale: float) -> FloatArray:
    """Return the radiograph at the picture's size, in [0, 1]."""
    if scale == 1.0:
        return pixels
    rows, columns = (max(1, round(side * scale)) for side in pixels.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(np.clip(cv2.resize(pixels, (columns, rows), interpolation=method), 0.0, 1.0), dtype=np.float32)


def _heat_maps(
    findings: Sequence[Finding], saliency: Sequence[SaliencyMap], shape: tuple[int, ...], body: BoolArray
) -> list[tuple[Finding, Heat]]:
    """Return the findings' heat on a coarser grid of the picture, of those that have any on the body.

    A map has some ten cells a side: on every fourth pixel it is as smooth, at a sixteenth of the cost.
    """
    coarse = (max(1, shape[0] // _COARSER), max(1, shape[1] // _COARSER))
    by_label = {entry.label: entry.values for entry in saliency}
    maps = ((finding, by_label.get(finding.label)) for finding in findings)
    heats = ((finding, heat_of(values, coarse, body)) for finding, values in maps if values is not None)
    return [(finding, heat) for finding, heat in heats if heat is not None]


def _blend(picture: Picture, maps: Sequence[FloatArray], inside: FloatArray) -> Picture:
    """Lay the maps' mean over the radiograph, only `inside` the body: clear where low, at most half opaque."""
    total = maps[0].copy()
    for more in maps[1:]:
        cv2.accumulate(more, total)
    # Divided by its greatest value, a sum is the same as a mean.
    heat = _onto(total / float(total.max()), picture)
    return _tint(picture, heat, inside)


def _onto(values: FloatArray, picture: Picture) -> FloatArray:
    """Return values of a coarser grid on that of the picture."""
    size = (picture.shape[1], picture.shape[0])
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _tint(picture: Picture, heat: FloatArray, inside: FloatArray | None = None) -> Picture:
    colours, alpha = heat_colours(heat, _BLEND)
    if inside is not None:
        alpha *= inside
    return np.asarray(cv2.blendLinear(picture, colours, 1.0 - alpha, alpha), dtype=np.uint8)


def heat_colours(heat: FloatArray, strength: float) -> tuple[Picture, FloatArray]:
    """Return what heat in [0, 1] looks like: its colours, and how opaque they are, clear where low, up to `strength`.

    In 256 steps, by tables: 8 ms where floating point throughout took 50.
    """
    levels = cv2.convertScaleAbs(heat, alpha=255.0)
    ramp = np.clip((np.linspace(0.0, 1.0, 256) - _ONSET) / (_FULL - _ONSET), 0.0, 1.0)
    alpha = cv2.LUT(levels, (strength * ramp * ramp * (3 - 2 * ramp)).astype(np.float32))
    # Inferno is perceptually uniform; its black end would darken the radiograph, so only the upper part is used.
    upper = np.round(64 + np.linspace(0.0, 1.0, 256) * 181).astype(np.uint8)
    table = cv2.cvtColor(cv2.applyColorMap(upper[:, None], cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.applyColorMap(levels, table), dtype=np.uint8), np.asarray(alpha, dtype=np.float32)


def _outline(picture: Picture, values: FloatArray, colour: Colour) -> None:
    inside = (_onto(values, picture) >= OUTLINE_LEVEL).astype(np.uint8)
    lines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    width = max(2, round(max(picture.shape) / 700))
    cv2.drawContours(picture, lines, -1, (0, 0, 0), width + 2, cv2.LINE_AA)
    cv2.drawContours(picture, lines, -1, colour, width, cv2.LINE_AA)


def _colour_bar(width: int, height: int) -> Picture:
    """Return the scale from least to most evidence, as it looks over a mid-grey radiograph."""
    heat = np.tile(np.linspace(0.0, 1.0, width, dtype=np.float32), (height, 1))
    return _tint(np.full((height, width, 3), 110, dtype=np.uint8), heat)


def _side_by_side(picture: Picture, panel: Picture) -> Picture:
    height = max(picture.shape[0], panel.shape[0])
    canvas = np.zeros((height, picture.shape[1] + _GAP + panel.shape[1], 3), dtype=np.uint8)
    top = (height - picture.shape[0]) // 2
    canvas[top : top + picture.shape[0], : picture.shape[1]] = picture
    canvas[: panel.shape[0], picture.shape[1] + _GAP :] = panel
    return canvas
