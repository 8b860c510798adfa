"""The picture of the Secondary Capture: the radiograph with its Grad-CAM, and beside it a panel that says the rest.

Nothing is written over anatomy; the maps are blended so that what lies under them stays visible.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import numpy.typing as npt

from dicomnode.domain.finding import Assessment, Finding, Presence, SaliencyMap, odds_ratio
from dicomnode.domain.frame import FloatArray, Frame
from dicomnode.results.context import Equipment
from dicomnode.results.panel import OUTLINE_LEVEL, Colour, PanelContent, Shown, draw_panel

Picture = npt.NDArray[np.uint8]

SMALLEST_SIDE = 1280
"""Smaller radiographs are enlarged to this (the panel says so): the panel's text needs that many pixels."""
OUTLINES: tuple[Colour, ...] = ((86, 180, 233), (60, 220, 160), (255, 255, 255))
"""Colours of the outlines: apart from the heat's, and from each other under every common colour vision deficiency."""
_BLEND, _FAINT_BLEND = 0.42, 0.22
_ONSET, _FULL = 0.4, 0.95
_GAP = 16
_COARSER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """The finished picture: `pixels` (rows, columns, 3) uint8 RGB; `scale` picture pixels per source pixel.

    `radiograph` is the part of it that is not the panel. `shown` are the labels whose maps are drawn,
    `outlined` the same with the colours of their outlines.
    """

    pixels: Picture
    radiograph: Picture
    scale: float
    shown: tuple[str, ...]
    outlined: tuple[Shown, ...]


def draw(frame: Frame, assessment: Assessment, equipment: Equipment, *, only: Finding | None = None) -> Overlay:
    """Draw one assessed radiograph; `only`: with the map of this one finding."""
    scale = _scale(frame.pixels.shape, equipment.settings.maximum_side)
    radiograph = _resize(frame.pixels, scale)
    findings = findings_to_show(assessment) if only is None else (only,)
    maps = _heat_maps(findings, assessment.saliency, radiograph.shape)
    # A map of a finding that is absent must not look like an alarm.
    notable = any(finding.presence is not Presence.ABSENT for finding, _ in maps)
    strength = _BLEND if notable else _FAINT_BLEND
    picture = _blend(radiograph, [values for _, values in maps], strength)
    shown = tuple(
        Shown(finding=finding, colour=OUTLINES[i] if i < len(OUTLINES) else None) for i, (finding, _) in enumerate(maps)
    )
    for entry, (_, values) in zip(shown, maps, strict=True):
        if entry.colour is not None:
            _outline(picture, values, entry.colour)
    content = PanelContent(
        assessment=assessment,
        equipment=equipment,
        shown=shown,
        scale=scale,
        quarter_turns=frame.turned_from_source,
        inverted=frame.inverted_from_source,
    )
    height = max(picture.shape[0], SMALLEST_SIDE)
    panel = draw_panel(content, height, partial(_colour_bar, strength))
    return Overlay(
        pixels=_side_by_side(picture, panel),
        radiograph=picture,
        scale=scale,
        shown=tuple(entry.finding.label for entry in shown),
        outlined=shown,
    )


def findings_to_show(assessment: Assessment) -> tuple[Finding, ...]:
    """Return the findings whose maps are drawn, most probable first.

    Those present; if there is none, those undetermined; else the one that comes closest to its threshold. Abnormality
    stands in for the findings of a model that has none.
    """
    ranked = sorted(assessment.findings or (assessment.abnormality,), key=_odds_over_threshold, reverse=True)
    for presence in (Presence.PRESENT, Presence.UNDETERMINED):
        chosen = tuple(finding for finding in ranked if finding.presence is presence)
        if chosen:
            return chosen
    return tuple(ranked[:1])


def positive_findings(assessment: Assessment) -> tuple[Finding, ...]:
    """Return the findings that are present, most probable first; those that have results of their own."""
    return tuple(finding for finding in findings_to_show(assessment) if finding.presence is Presence.PRESENT)


def _odds_over_threshold(finding: Finding) -> float:
    return odds_ratio(finding.probability, finding.operating_point.threshold)


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
    findings: Sequence[Finding], saliency: Sequence[SaliencyMap], shape: tuple[int, ...]
) -> list[tuple[Finding, FloatArray]]:
    """Return each finding's Grad-CAM, from 0 to 1, on a coarser grid of the picture; without evidence there is none.

    A map has some ten cells a side: on every fourth pixel it is as smooth, at a sixteenth of the cost.
    """
    coarse = tuple(max(1, side // _COARSER) for side in shape)
    by_label = {entry.label: entry.values for entry in saliency}
    maps = []
    for finding in findings:
        values = by_label.get(finding.label)
        if values is not None and float(values.max()) > 0:
            maps.append((finding, enlarge(values, coarse)))
    return maps


def enlarge(values: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Return the Grad-CAM of a map on a grid of this shape, from its least at 0 to its greatest at 1."""
    positive = np.ascontiguousarray(np.maximum(values, 0.0), dtype=np.float32)
    return _stretch(cv2.resize(positive, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC))


def _stretch(values: FloatArray) -> FloatArray:
    """Return values from their least at 0 to their greatest at 1: evidence that is everywhere points nowhere."""
    least, greatest, _, _ = cv2.minMaxLoc(values)
    if greatest <= least:
        return np.ones_like(values)
    return np.asarray(cv2.normalize(values, None, 0.0, 1.0, cv2.NORM_MINMAX, cv2.CV_32F), dtype=np.float32)


def _blend(radiograph: FloatArray, maps: Sequence[FloatArray], strength: float) -> Picture:
    """Lay the maps' mean over the radiograph: clear where low, at most `strength` opaque."""
    grey = cv2.convertScaleAbs(radiograph, alpha=255.0)
    picture = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    if not maps:
        return picture
    total = maps[0].copy()
    for more in maps[1:]:
        cv2.accumulate(more, total)
    # Stretched, a sum is the same as a mean.
    return _tint(picture, _onto(_stretch(total), picture), strength)


def _onto(values: FloatArray, picture: Picture) -> FloatArray:
    """Return values of a coarser grid on that of the picture."""
    size = (picture.shape[1], picture.shape[0])
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _tint(picture: Picture, heat: FloatArray, strength: float) -> Picture:
    colours, alpha = heat_colours(heat, strength)
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


def _colour_bar(strength: float, width: int, height: int) -> Picture:
    """Return the scale from least to most evidence, as it looks over a mid-grey radiograph."""
    heat = np.tile(np.linspace(0.0, 1.0, width, dtype=np.float32), (height, 1))
    return _tint(np.full((height, width, 3), 110, dtype=np.uint8), heat, strength)


def _side_by_side(picture: Picture, panel: Picture) -> Picture:
    height = max(picture.shape[0], panel.shape[0])
    canvas = np.zeros((height, picture.shape[1] + _GAP + panel.shape[1], 3), dtype=np.uint8)
    top = (height - picture.shape[0]) // 2
    canvas[top : top + picture.shape[0], : picture.shape[1]] = picture
    canvas[: panel.shape[0], picture.shape[1] + _GAP :] = panel
    return canvas
