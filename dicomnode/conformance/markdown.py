"""Markdown of a fixed form: the same content gives the same bytes."""

from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; line breaks and bars in cells are made harmless."""
    lines = [_row(headings), _row(["---"] * len(headings)), *(_row(row) for row in rows)]
    return "\n".join(lines) + "\n"


def section(level: int, heading: str, *blocks: str) -> str:
    """Return a heading and its blocks, each apart from the next by an empty line."""
    return "\n\n".join([f"{'#' * level} {heading}", *(block.strip("\n") for block in blocks if block)]) + "\n\n"


def code(text: object) -> str:
    """Return text in the type of code; nothing stays nothing."""
    return f"`{text}`" if str(text) else ""


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", r"\|").split())
