"""The model: what it is, how well it does by its own measure, and its card."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from dicomnode.bundle.manifest import LabelEntry
from dicomnode.bundle.reader import CARD
from dicomnode.inference.operating import choose_operating_point
from dicomnode.web.parts import Parts, site_of

_LINK = re.compile(r"\[([^\]]+)\]\((https://[^)\s]+)\)")


async def model(request: Request) -> Response:
    """Show the model in use."""
    site = site_of(request)
    return site.pages.page(request, "model.html", **await run_in_threadpool(_facts, site.parts))


def _facts(parts: Parts) -> dict[str, Any]:
    manifest = parts.bundle.manifest
    point = choose_operating_point(manifest, parts.settings.inference.operating_point)
    return {
        "manifest": manifest,
        "identity": parts.bundle.identity,
        "point": point,
        "labels": [_label(label, point) for label in manifest.labels],
        "card": render_card(_card(parts.bundle.path)),
    }


def _label(label: LabelEntry, point: str) -> dict[str, Any]:
    """Return a label with its operating points as places in the plane of the ROC, 100 by 100."""
    points = {
        (round(100 * (1 - entry.specificity), 2), round(100 * (1 - entry.sensitivity), 2)): name
        for name, entry in label.operating_points.items()
    }
    chosen = label.operating_points[point]
    corners = sorted([(0.0, 100.0), *points, (100.0, 0.0)])
    return {
        "label": label,
        "name": label.name.replace("_", " "),
        "points": [(x, y, name) for (x, y), name in points.items()],
        "line": " ".join(f"{x},{y}" for x, y in corners),
        "chosen": chosen,
        "at": (100 * (1 - chosen.specificity), 100 * (1 - chosen.sensitivity)),
    }


def _card(folder: Path) -> str:
    try:
        return (folder / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "The model card cannot be read."


def render_card(text: str) -> Markup:
    """Return the Markdown of a model card as HTML: headings, paragraphs, lists, tables, bold, code; nothing else."""
    # Every part is escaped before it is marked up, so a card can bring in no markup of its own.
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
