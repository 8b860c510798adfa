"""The model's page: its identity, the ROC and reliability curves of each output, operating points, and its card.

Curves become points in a plane, in the units of an SVG drawing, for the template to draw. The card is Markdown.
"""

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from dicomnode.bundle.manifest import Curves, LabelEntry, OperatingPointEntry, ReliabilityBin
from dicomnode.bundle.reader import CARD
from dicomnode.inference.operating import choose_operating_point
from dicomnode.web.context import PageContext, site_of

SIDE = 260
"""The sides of the plane, in the drawing's units. The origin is at the upper left, as in SVG."""

_SAME_PLACE = 3.0
_NAMES_APART, _BESIDE, _BELOW, _MARGIN = 13.0, 8.0, 13.0, 12.0
_CHARACTER = 5.8
"""The approximate width of a character, in the drawing's units."""

_SMALL = 100
"""The sides of the small drawings, of which there is one for each output."""
_LINK = re.compile(r"\[([^\]]+)\]\((https://[^)\s]+)\)")

_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
_LEAST_TOP = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A tick of an axis: `at` is the distance from its beginning, in the drawing's units, `said` its label."""

    at: float
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPoint:
    """Operating points at one place of the drawing, with their intervals as bars.

    `across` is the interval of specificity, from x to x, `along` that of sensitivity, from y to y. The names stand
    below the point, where no curve is; they begin at `name_x`, or end there if `is_begun` is false for want of space.
    """

    names: tuple[str, ...]
    entry: OperatingPointEntry
    x: float
    y: float
    across: tuple[float, float] | None
    along: tuple[float, float] | None
    name_x: float
    name_y: float
    is_begun: bool
    is_in_use: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RocPlot:
    """A ROC curve and its band as lists of SVG points; without a curve, the line joins the operating points."""

    line: str
    band: str
    points: tuple[PlacedPoint, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedBin:
    """A bin of a reliability plot: its place, and the interval as a bar from y to y."""

    entry: ReliabilityBin
    x: float
    y: float
    along: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityPlot:
    """The bins of a reliability plot, on axes that end at the largest probability.

    On axes up to 1, all bins of a rare label would be one dot. `threshold`: the place of the operating point in use;
    None if it is beyond the axis.
    """

    line: str
    bins: tuple[PlacedBin, ...]
    threshold: float | None
    ticks: tuple[Tick, ...]


def roc_plot(label: LabelEntry, in_use: str, side: float = SIDE) -> RocPlot:
    """Return the ROC plot of a label with its operating points; `in_use` names the node's."""
    points = _placed(label, in_use, side)
    curve = label.curves.roc if label.curves else None
    if curve is None:
        corners = sorted([(0.0, side), *((point.x, point.y) for point in points), (side, 0.0)])
        return RocPlot(line=_line(corners), band="", points=points, ticks=_ticks(1.0, side))
    across = [side * rate for rate in curve.false_positive_rate]
    band = ""
    if curve.low is not None and curve.high is not None:
        low, high = ([_up(value, side) for value in column] for column in (curve.low, curve.high))
        band = _line([*zip(across, high, strict=True), *reversed(list(zip(across, low, strict=True)))])
    line = _line(zip(across, (_up(value, side) for value in curve.sensitivity), strict=True))
    return RocPlot(line=line, band=band, points=points, ticks=_ticks(1.0, side))


def reliability_plot(curves: Curves, threshold: float, side: float = SIDE) -> ReliabilityPlot:
    """Return the reliability plot of a label; `threshold` is that of its operating point in use."""
    most = max(_LEAST_TOP, *(max(entry.predicted, entry.high) for entry in curves.reliability))
    step = _step(most)
    top = min(1.0, step * ceil(round(most / step, 6)))
    bins = tuple(
        PlacedBin(
            entry=entry,
            x=_short(side * entry.predicted / top),
            y=_up(entry.observed / top, side),
            along=(_up(entry.high / top, side), _up(entry.low / top, side)),
        )
        for entry in curves.reliability
    )
    return ReliabilityPlot(
        line=_line((entry.x, entry.y) for entry in bins),
        bins=bins,
        threshold=_short(side * threshold / top) if threshold <= top else None,
        ticks=_ticks(top, side, step),
    )


def is_shifted(label: LabelEntry, curves: Curves) -> bool:
    """Tell whether the bins were weighted to another frequency of the label than that of the measured images."""
    shown = sum(entry.observed * entry.images for entry in curves.reliability)
    return abs(shown - label.positives) > 1 + 0.02 * label.positives


def _placed(label: LabelEntry, in_use: str, side: float) -> tuple[PlacedPoint, ...]:
    """Return the operating points by increasing sensitivity; those at one place are one, the one in use named first."""
    names = sorted(label.operating_points, key=lambda name: (label.operating_points[name].sensitivity, name != in_use))
    shared: list[list[str]] = []
    for name in names:
        entry = label.operating_points[name]
        before = label.operating_points[shared[-1][0]] if shared else None
        if before is not None and _distance(before, entry) * side < _SAME_PLACE:
            shared[-1].append(name)
        else:
            shared.append([name])
    placed: list[PlacedPoint] = []
    for together in shared:
        floor = placed[-1].name_y - _NAMES_APART if placed else side - 4
        placed.append(_point(label, sorted(together, key=lambda name: name != in_use), in_use, floor, side))
    return tuple(placed)


def _point(label: LabelEntry, names: Sequence[str], in_use: str, floor: float, side: float) -> PlacedPoint:
    """Return the operating points at one place; their names stand at `floor` or above it."""
    entry = label.operating_points[names[0]]
    across, along = entry.specificity_interval, entry.sensitivity_interval
    x, y = _up(entry.specificity, side), _up(entry.sensitivity, side)
    fits = x + _BESIDE + _CHARACTER * len(", ".join(names)) < side + _MARGIN
    return PlacedPoint(
        names=tuple(names),
        entry=entry,
        x=x,
        y=y,
        across=(_up(across[1], side), _up(across[0], side)) if across else None,
        along=(_up(along[1], side), _up(along[0], side)) if along else None,
        name_x=_short(x + _BESIDE if fits else side + _MARGIN),
        name_y=_short(min(y + _BELOW, floor)),
        is_begun=fits,
        is_in_use=in_use in names,
    )


def _distance(entry: OperatingPointEntry, other: OperatingPointEntry) -> float:
    return max(abs(entry.sensitivity - other.sensitivity), abs(entry.specificity - other.specificity))


def _up(share: float, side: float) -> float:
    """Return the y of a share; SVG's y grows downwards."""
    return _short(side * (1 - share))


def _line(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_short(x):g},{_short(y):g}" for x, y in places)


def _ticks(top: float, side: float, step: float = 0.2) -> tuple[Tick, ...]:
    count = round(top / step)
    return tuple(Tick(at=_short(side * at * step / top), said=f"{100 * at * step:.0f}") for at in range(count + 1))


def _step(most: float) -> float:
    """Return the smallest step by which an axis up to `most` has no more than six ticks."""
    return next(step for step in _STEPS if most <= 5 * step)


def _short(value: float) -> float:
    return round(value, 2)


async def model(request: Request) -> Response:
    """Show the model in use, and the curves of the output asked for."""
    site, asked = site_of(request), request.query_params.get("output", "")
    return await site.pages.page(request, "model.html", **await run_in_threadpool(_facts, site.context, asked))


def _facts(context: PageContext, asked: str) -> dict[str, Any]:
    manifest = context.bundle.manifest
    point = choose_operating_point(manifest, context.settings.inference.operating_point)
    labels = manifest.labels
    return {
        "manifest": manifest,
        "identity": context.bundle.identity,
        "point": point,
        "side": SIDE,
        "labels": [_small(label, point) for label in labels],
        "shown": _large(next((label for label in labels if label.name == asked), labels[0]), point),
        "card": render_card(_card(context.bundle.path)),
    }


def _small(label: LabelEntry, point: str) -> dict[str, Any]:
    chosen, plot = label.operating_points[point], roc_plot(label, point, _SMALL)
    return {"label": label, "name": _named(label), "plot": plot, "chosen": chosen}


def _large(label: LabelEntry, point: str) -> dict[str, Any]:
    """Return everything that is shown of one output: its curves, if the bundle has any, and its operating points."""
    chosen, curves = label.operating_points[point], label.curves
    return {
        "label": label,
        "name": _named(label),
        "curves": curves,
        "roc": roc_plot(label, point),
        "reliability": reliability_plot(curves, chosen.threshold) if curves else None,
        "chosen": chosen,
        "is_fitted_there": curves is not None and curves.derived_on == chosen.derived_on,
        "is_shifted": curves is not None and is_shifted(label, curves),
    }


def _named(label: LabelEntry) -> str:
    return label.name.replace("_", " ")


def _card(folder: Path) -> str:
    try:
        return (folder / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "The model card cannot be read."


def render_card(text: str) -> Markup:
    """Return the Markdown of a model card as HTML: headings, paragraphs, lists, tables, bold, code, https links."""
    # Every part is escaped before it is marked up, so no markup of the card itself reaches the page.
    return Markup("\n".join(_blocks(text.splitlines())))  # noqa: S704


def _blocks(lines: list[str]) -> Iterator[str]:
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip() and not line.startswith("#"):
            block.append(line)
            continue
        if block:
            yield _block(block)
            block = []
        if line.startswith("#"):
            depth = min(len(line) - len(line.lstrip("#")) + 2, 6)
            yield f"<h{depth}>{_inline(line.lstrip('#').strip())}</h{depth}>"


def _block(lines: list[str]) -> str:
    if lines[0].lstrip().startswith("|"):
        return _table(lines)
    if lines[0].lstrip().startswith(("- ", "* ")):
        entries = re.split(r"\n\s*[-*] ", "\n" + "\n".join(lines))[1:]
        return "<ul>" + "".join(f"<li>{_inline(entry)}</li>" for entry in entries) + "</ul>"
    return f"<p>{_inline(' '.join(lines))}</p>"


def _table(lines: list[str]) -> str:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    body = [row for row in rows[1:] if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    head = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in rows[0])
    filled = "".join("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{filled}</tbody></table></div>'


def _inline(text: str) -> str:
    escaped = html.escape(text)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return _LINK.sub(r'<a href="\2" rel="noreferrer">\1</a>', escaped)
