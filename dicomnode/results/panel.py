"""The panel beside the radiograph: what the model said, at which operating point, and which model it was."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dicomnode.domain.finding import Assessment, Finding, Presence, odds_ratio
from dicomnode.results.context import Equipment

Canvas = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

_BACKGROUND: Colour = (20, 22, 26)
_TEXT: Colour = (236, 238, 240)
_QUIET: Colour = (168, 174, 182)
_RULE: Colour = (70, 76, 84)
_AMBER: Colour = (255, 193, 60)
_DARK: Colour = (20, 18, 10)
_RESULT_COLOURS: dict[Presence, Colour] = {
    Presence.PRESENT: (255, 138, 76),
    Presence.UNDETERMINED: _AMBER,
    Presence.ABSENT: _QUIET,
}
_ORDER = (Presence.PRESENT, Presence.UNDETERMINED, Presence.ABSENT)
_REGULAR, _BOLD = 400, 650

# All lengths are in lines: one line is the height of a table row.
_WIDTH = 20.2
_MARGIN = 0.6
_NAME, _BAR, _PROBABILITY, _THRESHOLD, _RESULT = 1.5, 7.2, 12.2, 15.2, 15.6
_BAR_WIDTH = 2.6
_LINES_PER_HEIGHT, _LARGEST_LINE = 31.5, 54.0
_NAMED = 5
_BAR_SPAN = 4.0
"""Log odds over the threshold at which the evidence bar is full."""


OUTLINE_LEVEL = 0.6
"""Where a finding's outline runs, between its map's least and greatest value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A finding whose map is drawn, and the colour of its outline (None when there are more than colours)."""

    finding: Finding
    colour: Colour | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelContent:
    """Everything the panel states. `scale` is in picture pixels per source pixel."""

    assessment: Assessment
    equipment: Equipment
    shown: tuple[Shown, ...]
    scale: float
    quarter_turns: int
    inverted: bool


class _Pen:
    """Writes on a canvas from the top down, in units of lines."""

    def __init__(self, height: int) -> None:
        self.line = min(height / _LINES_PER_HEIGHT, _LARGEST_LINE)
        self.canvas: Canvas = np.full((height, self.px(_WIDTH), 3), _BACKGROUND, dtype=np.uint8)
        self.y = _MARGIN
        self._face = cv2.FontFace("sans")

    def px(self, lines: float) -> int:
        return round(lines * self.line)

    def width(self, text: str, size: float, weight: int) -> float:
        box = cv2.getTextSize((0, 0), text, (0, 0), self._face, self.px(size), weight)
        return float(box[2]) / self.line

    def write(
        self,
        text: str,
        x: float,
        *,
        size: float = 0.68,
        weight: int = _REGULAR,
        colour: Colour = _TEXT,
        room: float | None = None,
    ) -> None:
        """Write at the current line, smaller if `room` asks for it."""
        available = _WIDTH - _MARGIN - x if room is None else room
        # Letters come in whole pixels, so the width is not quite proportional to the size.
        while size > 1 / self.line and self.width(text, size, weight) > available:
            size -= 1 / self.line
        baseline = self.px(self.y + 0.5 + size * 0.35)
        cv2.putText(self.canvas, text, (self.px(x), baseline), colour, self._face, self.px(size), weight)

    def write_right(self, text: str, x: float, *, colour: Colour, size: float = 0.68, weight: int = _REGULAR) -> None:
        self.write(text, x - self.width(text, size, weight), size=size, weight=weight, colour=colour, room=_WIDTH)

    def box(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        corner = (self.px(x), self.px(y))
        opposite = (self.px(x + width) - 1, self.px(y + height) - 1)
        cv2.rectangle(self.canvas, corner, opposite, colour, thickness=-1)

    def rule(self) -> None:
        self.box(_MARGIN, self.y + 0.2, _WIDTH - 2 * _MARGIN, 0.05, _RULE)
        self.y += 0.45


def draw_panel(content: PanelContent, height: int, colour_bar: Callable[[int, int], Canvas]) -> Canvas:
    """Draw the panel, (height, columns, 3) uint8 RGB; `colour_bar` draws the heat's scale at a width and height."""
    pen = _Pen(height)
    footer = footer_lines(content)
    below = 4.9 + 0.85 * len(footer) + _MARGIN
    _heading(pen, content.equipment.settings.mark)
    _table(pen, content, height / pen.line - below)
    pen.y = height / pen.line - below
    _legend(pen, content, colour_bar)
    for text, colour in footer:
        pen.write(text, _MARGIN, size=0.6, colour=colour)
        pen.y += 0.85
    return pen.canvas


def _heading(pen: _Pen, mark: str) -> None:
    pen.box(_MARGIN, pen.y, 1.9, 1.5, _TEXT)
    pen.y += 0.25
    pen.write("AI", _MARGIN + (1.9 - pen.width("AI", 1.1, 800)) / 2 - 0.03, size=1.1, weight=800, colour=_DARK)
    pen.y -= 0.3
    pen.write("Chest radiograph: computer analysis", _MARGIN + 2.4, size=0.78, weight=_BOLD)
    pen.y += 0.8
    pen.write("Not reviewed by a physician", _MARGIN + 2.4, size=0.64, colour=_QUIET)
    pen.y += 1.15
    if mark:
        pen.box(_MARGIN, pen.y, _WIDTH - 2 * _MARGIN, 1.5, _AMBER)
        pen.y += 0.25
        pen.write(mark, _MARGIN + 0.4, size=0.95, weight=700, colour=_DARK, room=_WIDTH - 2 * _MARGIN - 0.8)
        pen.y += 1.45


def _table(pen: _Pen, content: PanelContent, bottom: float) -> None:
    for text, x in (("Finding", _NAME), ("Evidence", _BAR), ("Result", _RESULT)):
        pen.write(text, x, size=0.55, colour=_QUIET)
    pen.write_right("Prob.", _PROBABILITY, size=0.55, colour=_QUIET)
    pen.write_right("Threshold", _THRESHOLD, size=0.55, colour=_QUIET)
    pen.y += 0.9
    colours = {entry.finding.label: entry.colour for entry in content.shown}
    abnormality = content.assessment.abnormality
    _row(pen, abnormality, colours.get(abnormality.label), "Abnormality")
    pen.y += 1.0
    pen.rule()
    findings = by_evidence(content.assessment.findings)
    room = int(bottom - pen.y - 0.3)
    fitting = len(findings) if len(findings) <= room else room - 1
    for finding in findings[:fitting]:
        _row(pen, finding, colours.get(finding.label), finding.label.replace("_", " "))
        pen.y += 1.0
    if fitting < len(findings):
        rest = findings[fitting:]
        pen.write(f"and {len(rest)} more, see the structured report", _NAME, size=0.6, colour=_QUIET)
        pen.y += 1.0


def by_evidence(findings: tuple[Finding, ...]) -> list[Finding]:
    """Return what is present first, then by how far the probability stands above its threshold."""
    return sorted(findings, key=lambda finding: (_ORDER.index(finding.presence), -_evidence(finding)))


def _row(pen: _Pen, finding: Finding, outline: Colour | None, name: str) -> None:
    colour = _RESULT_COLOURS[finding.presence]
    notable = finding.presence is not Presence.ABSENT
    weight = _BOLD if notable else _REGULAR
    text_colour = _TEXT if notable else _QUIET
    if outline is not None:
        pen.box(_MARGIN, pen.y + 0.2, 0.6, 0.6, outline)
        pen.box(_MARGIN + 0.13, pen.y + 0.33, 0.34, 0.34, _BACKGROUND)
    pen.write(name, _NAME, weight=weight, colour=text_colour, room=_BAR - _NAME - 0.2)
    _evidence_bar(pen, finding, colour)
    pen.write_right(percent(finding.probability), _PROBABILITY, weight=weight, colour=text_colour)
    pen.write_right(percent(finding.operating_point.threshold), _THRESHOLD, size=0.6, colour=_QUIET)
    pen.write(finding.presence.value, _RESULT, size=0.6, weight=weight, colour=colour)


def _evidence(finding: Finding) -> float:
    """Return the log odds of the probability over those of the threshold."""
    return math.log(odds_ratio(finding.probability, finding.operating_point.threshold))


def _evidence_bar(pen: _Pen, finding: Finding, colour: Colour) -> None:
    """Draw the evidence from the threshold, the tick in the middle: to the right above it, to the left below it."""
    centre, half = _BAR + _BAR_WIDTH / 2, _BAR_WIDTH / 2
    pen.box(_BAR, pen.y + 0.34, _BAR_WIDTH, 0.32, _RULE)
    length = min(abs(_evidence(finding)) / _BAR_SPAN, 1.0) * half
    start = centre if _evidence(finding) >= 0 else centre - length
    pen.box(start, pen.y + 0.34, max(length, 0.06), 0.32, colour)
    pen.box(centre - 0.04, pen.y + 0.18, 0.08, 0.64, _TEXT)


def percent(probability: float) -> str:
    """Return a probability for reading: two digits where they matter."""
    value = 100 * probability
    if value < 0.1:
        return "<0.1%"
    if value > 99.9:
        return ">99.9%"
    return f"{value:.1f}%"


def _legend(pen: _Pen, content: PanelContent, colour_bar: Callable[[int, int], Canvas]) -> None:
    """Draw the colour bar and say which maps are shown; 4.9 lines high."""
    pen.rule()
    title, detail = legend_texts(content.shown)
    pen.write(title, _MARGIN, size=0.66, weight=_BOLD)
    pen.y += 0.9
    pen.write(detail, _MARGIN, size=0.6, colour=_QUIET)
    pen.y += 1.0
    left, width = _MARGIN, _WIDTH - 2 * _MARGIN
    bar = colour_bar(pen.px(width), pen.px(0.6))
    top = pen.px(pen.y)
    pen.canvas[top : top + bar.shape[0], pen.px(left) : pen.px(left) + bar.shape[1]] = bar
    mark = left + width * OUTLINE_LEVEL
    pen.box(mark - 0.03, pen.y, 0.06, 0.75, _TEXT)
    pen.y += 0.7
    pen.write("least", left, size=0.55, colour=_QUIET)
    outline = f"{OUTLINE_LEVEL:.0%}: outlines"
    pen.write(outline, mark - pen.width(outline, 0.55, _REGULAR) / 2, size=0.55, colour=_QUIET)
    pen.write_right("most", _WIDTH - _MARGIN, size=0.55, colour=_QUIET)
    pen.y += 0.85
    pen.rule()


def legend_texts(shown: tuple[Shown, ...]) -> tuple[str, str]:
    """Return what the heatmap is, and whose maps it shows; of what is not present it says so."""
    if not shown:
        return "No heatmap", "The finding to be shown has no positive evidence anywhere."
    names = ", ".join(entry.finding.label.replace("_", " ") for entry in shown[:_NAMED])
    if len(shown) > _NAMED:
        names += f" and {len(shown) - _NAMED} more"
    title = "Grad-CAM heatmap: where the evidence lies"
    presence = shown[0].finding.presence
    if presence is Presence.PRESENT:
        return title, f"Shown: {names}"
    if presence is Presence.UNDETERMINED:
        return title, f"Nothing is present. Shown, as undetermined: {names}"
    return title, f"No finding reached its threshold. Closest: {names}"


def footer_lines(content: PanelContent) -> list[tuple[str, Colour]]:
    """Return the closing lines: what was done to the image, then who speaks."""
    equipment, assessment = content.equipment, content.assessment
    point = assessment.abnormality.operating_point
    lines = [(text, _AMBER) for text in repairs(content.quarter_turns, inverted=content.inverted)]
    lines.append((f"Operating point: {point.name}", _TEXT))
    lines.append((f"Model: {equipment.model.name} {equipment.model.version}, {equipment.short_hash}", _TEXT))
    when = assessment.assessed_at.strftime("%Y-%m-%d %H:%M %Z")
    lines.append((f"{equipment.model_name} {equipment.software_version}, {when}", _QUIET))
    lines.append((f"Radiograph shown at {content.scale:.0%} of its size", _QUIET))
    return lines


def repairs(quarter_turns: int, *, inverted: bool) -> list[str]:
    """Return what was done to the stored image to make it upright, as sentences for people."""
    done = []
    if quarter_turns % 4:
        done.append(f"Image turned by {90 * (quarter_turns % 4)}° counter-clockwise by this software")
    if inverted:
        done.append("Grey scale inverted by this software")
    return done
