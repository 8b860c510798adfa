"""One row of a result, a section of rows, and RESULTS.md, in which sections that were not measured again stay."""

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Measured:
    """One quantity, measured once a round."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        spread = f" ({number(low)}–{number(high)})" if len(self.values) > 1 else ""
        return f"{number(self.median)} {self.unit}{spread}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The goal for the ratio, or for our own figure where there is no peer."""

    at_least: float | None = None
    at_most: float | None = None
    unit: str = "×"

    def met(self, value: float) -> bool:
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= value <= high

    def __str__(self) -> str:
        sign, bound = ("≥", self.at_least) if self.at_least is not None else ("≤", self.at_most)
        return f"{sign} {bound:g} {self.unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; `absent` is the reason why there is no peer or no measurement."""

    what: str
    ours: Measured | None = None
    peer: str = ""
    theirs: Measured | None = None
    goal: Goal | None = None
    absent: str = ""

    @property
    def ratio(self) -> Measured | None:
        """Ours over the peer's, of every round, since a slow round slows both."""
        if self.ours is None or self.theirs is None:
            return None
        return Measured(tuple(a / b for a, b in zip(self.ours.values, self.theirs.values, strict=True)), "×")

    @property
    def verdict(self) -> str:
        compared = self.ratio if self.peer else self.ours
        if self.goal is None or compared is None:
            return ""
        return "yes" if self.goal.met(compared.median) else "**no**"

    def cells(self) -> tuple[str, ...]:
        theirs = f"{self.peer}: {self.theirs or self.absent or 'not measured'}" if self.peer else self.absent
        shown = (self.ours or "", theirs, self.ratio or "", self.goal or "", self.verdict)
        return (self.what, *(str(cell) for cell in shown))


HEADS = ("what", "ours", "peer", "ratio", "goal", "met")


@dataclass(slots=True)
class Section:
    """The results of one benchmark: its rows, and sentences below them."""

    name: str
    about: str
    rows: Sequence[Row] = ()
    notes: list[str] = field(default_factory=list)

    def markdown(self, when: str) -> str:
        lines = [f"## {self.name}", "", self.about, "", when, "", _line(HEADS), _line(["---"] * len(HEADS))]
        lines += [_line(row.cells()) for row in self.rows]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Return a figure rounded to two or three significant digits."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


RESULTS = Path(__file__).parent / "RESULTS.md"

HEAD = """\
# What was measured

Written by `make bench`; each section says when, and on what machine. A figure is the median of rounds in which ours and
its peers took turns (lowest–highest in parentheses), a ratio the median of the rounds' ratios, ours over the peer's.
"""


def write(sections: dict[str, str], order: Iterable[str], path: Path = RESULTS) -> None:
    """Write sections by name, keeping those that are there and were not measured again."""
    kept = read(path) | sections
    known = [name for name in order if name in kept]
    path.write_text("\n".join([HEAD, *(kept[name] for name in known)]))


def read(path: Path) -> dict[str, str]:
    """Return the sections of a results file by their names."""
    if not path.exists():
        return {}
    parts = re.split(r"^(?=## )", path.read_text(), flags=re.MULTILINE)[1:]
    return {part.splitlines()[0].removeprefix("## "): part.strip() + "\n" for part in parts}
