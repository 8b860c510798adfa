"""RESULTS.md: one section for each benchmark; sections of benchmarks that were not run this time stay."""

import re
from collections.abc import Iterable
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"

HEAD = """\
# What was measured

Written by `make bench`; each section says when, and on what machine. A figure is the median of rounds in which ours and
its peers took turns (lowest–highest in parentheses), a ratio the median of the rounds' ratios, ours over the peer's.
"""


def write(sections: dict[str, str], order: Iterable[str], path: Path = RESULTS) -> None:
    """Write sections by name, keeping those that are there and were not measured again."""
    held = read(path) | sections
    known = [name for name in order if name in held]
    path.write_text("\n".join([HEAD, *(held[name] for name in known)]))


def read(path: Path) -> dict[str, str]:
    """Return the sections of a results file by their names."""
    if not path.exists():
        return {}
    parts = re.split(r"^(?=## )", path.read_text(), flags=re.MULTILINE)[1:]
    return {part.splitlines()[0].removeprefix("## "): part.strip() + "\n" for part in parts}
