"""Pictures of what was measured, as SVG in docs/."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parents[1] / "docs"
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "cxrnode", "font.size": 9, "axes.spines.top": False}
_COLOURS = ("#4c78a8", "#72b7b2", "#54a24b", "#eeca3b", "#f58518", "#e45756", "#b279a2", "#9d755d", "#bab0ac")


def curves(name: str, lines: Mapping[str, Mapping[int, float]], folder: Path = DOCS) -> None:
    """Draw milliseconds over numbers of studies."""
    with mpl.rc_context({**_STYLE, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
        for colour, (label, line) in zip(_COLOURS, lines.items(), strict=False):
            axes.plot(list(line), list(line.values()), marker="o", color=colour, label=label)
        axes.set(xscale="log", xlabel="studies in the store", ylabel="ms")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        _save(figure, name, folder)


def stacks(name: str, bars: Mapping[str, Mapping[str, float]], unit: str, folder: Path = DOCS) -> None:
    """Draw one bar for each entry, made of its parts in their order."""
    with mpl.rc_context({**_STYLE, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(8, 1.4 + 0.5 * len(bars)), layout="constrained")
        parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
        for number, part in enumerate(parts):
            lefts = [sum(bar.get(before, 0.0) for before in parts[:number]) for bar in bars.values()]
            widths = [bar.get(part, 0.0) for bar in bars.values()]
            axes.barh(list(bars), widths, left=lefts, label=part, color=_COLOURS[number % len(_COLOURS)], height=0.6)
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
        _save(figure, name, folder)


def _save(figure: plt.Figure, name: str, folder: Path) -> None:
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    path = folder / f"{name}.svg"
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
