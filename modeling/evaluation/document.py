"""A report in one HTML file that a person can read anywhere: tables, and the pictures within it."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from modeling.metrics import Estimate

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1e23; max-width: 76rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { max-width: 56rem; } .note { color: #596069; }
.wide { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .7rem; text-align: right; border-bottom: 1px solid #e3e6ea; white-space: nowrap; }
th { border-bottom: 2px solid #9aa1aa; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; } figure { margin: 1.2rem 0; } figcaption { color: #596069; font-size: 13px; }
"""
NOTHING = "\N{EN DASH}"


class Document:
    """HTML in the order in which it is added; all text is escaped."""

    def __init__(self, title: str) -> None:
        """Begin a document under this title."""
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, *, note: bool = False) -> None:
        """Add a paragraph, quieter if it is a note."""
        self._parts.append(f'<p class="note">{escape(text)}</p>' if note else f"<p>{escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Add a table; its first column is text, the others are figures."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
        self._parts.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        )

    def pictures(self, captioned: Mapping[str, Path]) -> None:
        """Put PNG files into the document, each with its caption."""
        for caption, path in captioned.items():
            encoded = base64.b64encode(path.read_bytes()).decode()
            text = escape(caption)
            self._parts.append(
                f'<figure><img alt="{text}" src="data:image/png;base64,{encoded}">'
                f"<figcaption>{text}</figcaption></figure>"
            )

    def write(self, path: Path) -> None:
        """Write the file."""
        head = f'<meta charset="utf-8"><title>{escape(self._title)}</title><style>{_STYLE}</style>'
        body = "\n".join(self._parts)
        path.write_text(f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n')


def shown(estimate: Estimate | None) -> str:
    """Return a value with its interval, or a dash."""
    if estimate is None:
        return NOTHING
    joint = " to " if estimate.low < 0 else "-"
    return f"{estimate.value:.3f} ({estimate.low:.3f}{joint}{estimate.high:.3f})"


def brief(value: Estimate | float | None) -> str:
    """Return a value without its interval, or a dash."""
    if value is None:
        return NOTHING
    return f"{value.value if isinstance(value, Estimate) else value:.3f}"
