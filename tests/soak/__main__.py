"""`python -m tests.soak`: run the soak and print its table; exit code 1 if anything is lost, doubled or grows."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.soak.run import Report, soak

MOST_GROWTH = 1.15
"""Of resident memory, from the first third of the last process's life to the last."""
JUDGED_FROM = 500
"""Studies: a process that lives shorter is still warming up."""
SHOWN = 10


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--absences", type=int, default=10, help="how often the archive is away")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(
            Path(folder),
            studies=arguments.studies,
            kills=arguments.kills,
            absences=arguments.absences,
            seed=arguments.seed,
        )
    print(told(report))
    memory = report.growth
    grown = report.studies >= JUDGED_FROM and memory.last.resident_mb > MOST_GROWTH * memory.first.resident_mb
    if grown:
        print("FAULT: memory grows")
    return 1 if report.faults or grown else 0


def told(report: Report) -> str:
    """Return the report as lines."""
    first, last, most = report.growth.first, report.growth.last, report.growth.most
    counted = ", ".join(f"{name} {count}" for name, count in report.injected.items())
    lines = [
        f"{report.studies} studies, {report.acknowledged} images acknowledged, {report.results} results in the archive",
        f"{report.seconds:.0f} s; node killed {report.kills} times; {counted}",
        f"books: {report.balance}",
        f"memory: {first.resident_mb:.0f} MB, at the end {last.resident_mb:.0f}, at most {most.resident_mb:.0f}",
        f"threads: {first.threads}, {last.threads}, {most.threads}",
        f"open files: {first.files}, {last.files}, {most.files}",
        *(f"FAULT: {fault}" for fault in report.faults[:SHOWN]),
        *([f"FAULT: and {len(report.faults) - SHOWN} more"] if len(report.faults) > SHOWN else []),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
