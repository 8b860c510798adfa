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
from dicomnode.web.curves import SIDE, is_shifted, reliability_plot, roc_plot
from dicomnode.web.parts import Parts, site_of

_SMALL = 100
_LINK = re.compile(r"\[([^\]]+)\]\((https://[^)\s]+)\)")


async def model(request: Request) -> Response:
    """Show the model in use, and the curves of the output asked for."""
    site, asked = site_of(request), request.query_params.get("output", "")
    return site.pages.page(request, "model.html", **await run_in_threadpool(_facts, site.parts, asked))


def _facts(parts: Parts, asked: str) -> dict[str, Any]:
    manifest = parts.bundle.manifest
    point = choose_operating_point(manifest, parts.settings.inference.operating_point)
    labels = manifest.labels
    return {
        "manifest": manifest,
        "identity": parts.bundle.identity,
        "point": point,
        "side": SIDE,
        "labels": [_small(label, point) for label in labels],
        "shown": _large(next((label for label in labels if label.name == asked), labels[0]), point),
        "card": render_card(_card(parts.bundle.path)),
    }


def _small(label: LabelEntry, point: str) -> dict[str, Any]:
    chosen, plot = label.operating_points[point], roc_plot(label, point, _SMALL)
    return {"label": label, "name": _named(label), "plot": plot, "chosen": chosen}


def _large(label: LabelEntry, point: str) -> dict[str, Any]:
    """Return everything about one output: its curves where there are any, and all its operating points."""
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
