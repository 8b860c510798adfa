"""Measure the node against its peers: `python -m benchmarks [NAME ...]`, or `make bench ARGS="NAME ..."`."""

import argparse
import importlib
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import machine, table
from benchmarks.bench import ROUNDS, Bench
from benchmarks.table import HEADS, Section

BENCHMARKS = (
    "receive",
    "pixels",
    "inference",
    "alternative",
    "providers",
    "send",
    "results",
    "end_to_end",
    "footprint",
    "flatness",
    "growth",
    "training",
)
"""The modules, in the order of RESULTS.md; each has `measure(bench) -> rows`, and its docstring describes the
benchmark.
"""

LONG = frozenset({"flatness"})
"""Measured only when named."""


def main() -> None:
    arguments = _parsed()
    console = Console(width=180)
    sections: dict[str, str] = {}
    for name in arguments.names or [name for name in BENCHMARKS if name not in LONG]:
        console.rule(name)
        when = machine.facts()
        section = _measured(name, arguments)
        _show(section, console)
        sections[name] = section.markdown(when)
        # After each one: a run that is interrupted keeps what it has.
        if not arguments.dry_run:
            table.write(sections, BENCHMARKS)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=Path, default=Path("build"), help="a folder on the disk to be measured")
    parser.add_argument("--dry-run", action="store_true", help="print only; RESULTS.md stays as it is")
    return parser.parse_args()


def _measured(name: str, arguments: argparse.Namespace) -> Section:
    module = importlib.import_module(f"benchmarks.{name}")
    about = (module.__doc__ or "").strip()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-", dir=arguments.folder) as folder:
        bench = Bench(folder=Path(folder).resolve(), rounds=arguments.rounds)
        rows = tuple(module.measure(bench))
    return Section(name=name, about=about, rows=rows, notes=bench.notes)


def _show(section: Section, console: Console) -> None:
    table = Table(*HEADS)
    for row in section.rows:
        table.add_row(*row.cells())
    console.print(table)
    for note in section.notes:
        console.print(note, markup=False)


if __name__ == "__main__":
    main()
