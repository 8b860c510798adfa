"""The panel beside the radiograph: the impression, the findings at their operating point, and the model.

Drawn, and measured, in lines: one line is the height of a table row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dicomnode.domain.finding import Assessment, Finding, Presence
from dicomnode.results.context import Equipment
from dicomnode.results.presentation import (
    ABNORMALITY,
    OUTLINE_LEVEL,
    Note,
    by_evidence,
    evidence,
    impression,
    legend_of,
    name_of,
    percent,
    times_base_rate,
    title_of,
    word_of,
)
from dicomnode.settings.node import ResultSettings

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
_REGULAR, _BOLD = 400, 650

_WIDTH = 23.2
_MARGIN = 0.6
_NAME, _BAR, _PROBABILITY, _TIMES, _THRESHOLD, _RESULT = 1.5, 6.8, 11.8, 14.7, 17.4, 17.8
_BAR_WIDTH = 2.2
_LINES_PER_HEIGHT, _LARGEST_LINE = 33.0, 54.0
_IMPRESSION_LINES = 3
BAR_SPAN = 2.5
"""Log odds over the threshold at which the evidence bar is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A finding whose map is drawn, and the colour of its outline (None when there are more than colours)."""

    finding: Finding
    colour: Colour | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelContent:
    """Everything the panel states.

    `scale` is in picture pixels per source pixel; `outside`: the greatest share of a shown map that lies outside the
    body and is not drawn; `is_heat_due`: whether anything is above its threshold, or one map was asked for.
    """

    assessment: Assessment
    equipment: Equipment
    shown: tuple[Shown, ...]
    scale: float
    notes: tuple[Note, ...]
    outside: float
    is_heat_due: bool

    @property
    def base_rate_title(self) -> str:
        """The title of the column of base rates, "" where the bundle states none."""
        findings = (self.assessment.abnormality, *self.assessment.findings)
        return "× base rate" if any(finding.base_rate for finding in findings) else ""

    def impression(self) -> str:
        """Return what was found, in one sentence."""
        return impression(self.assessment.abnormality, self.assessment.findings, self.equipment.settings)

    def legend(self) -> tuple[str, str]:
        """Return what the heatmap is, and whose maps it shows or why there is none."""
        names = [self._shown_name(entry.finding) for entry in self.shown]
        return legend_of(names, is_anything_above=self.is_heat_due, outside=self.outside)

    def _shown_name(self, finding: Finding) -> str:
        name = title_of(finding, self.assessment)
        if finding.presence is Presence.PRESENT:
            return name
        return f"{name}, {word_of(finding.presence, self.equipment.settings)}"


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

    def wrapped(self, text: str, size: float, weight: int, most: int) -> list[str]:
        """Return the text on at most so many lines; the last one is written smaller where it is too long."""
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and len(lines) < most and self.width(longer, size, weight) > _WIDTH - 2 * _MARGIN:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines

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
    made, colour = footer.pop()
    footer.append((f"{made}; radiograph at {content.scale:.0%} of its size", colour))
    below = (4.9 if content.shown else 2.35) + 0.85 * len(footer) + _MARGIN
    _heading(pen, content.equipment.settings.mark)
    _impression(pen, content.impression())
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


def _impression(pen: _Pen, text: str) -> None:
    """Write the impression on up to three lines."""
    for line in pen.wrapped(text, 0.72, _BOLD, _IMPRESSION_LINES):
        pen.write(line, _MARGIN, size=0.72, weight=_BOLD)
        pen.y += 0.95
    pen.y += 0.15


def _table(pen: _Pen, content: PanelContent, bottom: float) -> None:
    settings = content.equipment.settings
    for text, x in (("Finding", _NAME), ("Evidence", _BAR), ("Result", _RESULT)):
        pen.write(text, x, size=0.55, colour=_QUIET)
    for text, x in (("Prob.", _PROBABILITY), (content.base_rate_title, _TIMES), ("Threshold", _THRESHOLD)):
        pen.write_right(text, x, size=0.5, colour=_QUIET)
    pen.y += 0.9
    colours = {entry.finding.label: entry.colour for entry in content.shown}
    abnormality = content.assessment.abnormality
    _row(pen, abnormality, colours.get(abnormality.label), ABNORMALITY, settings)
    pen.y += 1.0
    pen.rule()
    findings = by_evidence(content.assessment.findings)
    room = int(bottom - pen.y - 0.3)
    fitting = len(findings) if len(findings) <= room else room - 1
    for finding in findings[:fitting]:
        _row(pen, finding, colours.get(finding.label), name_of(finding), settings)
        pen.y += 1.0
    if fitting < len(findings):
        rest = findings[fitting:]
        pen.write(f"and {len(rest)} more, see the structured report", _NAME, size=0.6, colour=_QUIET)
        pen.y += 1.0


def _row(pen: _Pen, finding: Finding, outline: Colour | None, name: str, settings: ResultSettings) -> None:
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
    pen.write_right(times_base_rate(finding), _TIMES, size=0.6, weight=weight, colour=text_colour)
    pen.write_right(percent(finding.threshold), _THRESHOLD, size=0.6, colour=_QUIET)
    pen.write(word_of(finding.presence, settings), _RESULT, size=0.6, weight=weight, colour=colour)


def _evidence_bar(pen: _Pen, finding: Finding, colour: Colour) -> None:
    """Draw the evidence from the threshold, the tick in the middle: to the right above it, to the left below it."""
    centre, half = _BAR + _BAR_WIDTH / 2, _BAR_WIDTH / 2
    pen.box(_BAR, pen.y + 0.34, _BAR_WIDTH, 0.32, _RULE)
    length = min(abs(evidence(finding)) / BAR_SPAN, 1.0) * half
    start = centre if evidence(finding) >= 0 else centre - length
    pen.box(start, pen.y + 0.34, max(length, 0.06), 0.32, colour)
    pen.box(centre - 0.04, pen.y + 0.18, 0.08, 0.64, _TEXT)


def _legend(pen: _Pen, content: PanelContent, colour_bar: Callable[[int, int], Canvas]) -> None:
    """Say which maps are shown and draw their colours: 4.9 lines, or 2.35 where there are none."""
    pen.rule()
    title, detail = content.legend()
    pen.write(title, _MARGIN, size=0.66, weight=_BOLD)
    pen.y += 0.9
    pen.write(detail, _MARGIN, size=0.6, colour=_QUIET)
    pen.y += 1.0
    if not content.shown:
        pen.rule()
        return
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


def footer_lines(content: PanelContent) -> list[tuple[str, Colour]]:
    """Return the closing lines: what to know of the image, then which model and software made the results."""
    equipment, assessment = content.equipment, content.assessment
    point = assessment.abnormality.operating_point
    lines = [(note.text, _AMBER if note.is_warning else _TEXT) for note in content.notes]
    model = f"{equipment.model.name} {equipment.model.version}, {equipment.short_hash}"
    lines.append((f"Model: {model}; operating point: {point.name}", _TEXT))
    when = assessment.assessed_at.strftime("%Y-%m-%d %H:%M %Z")
    lines.append((f"Made by {equipment.model_name} {equipment.software_version}, {when}", _QUIET))
    return lines
