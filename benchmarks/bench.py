"""The tools of every benchmark: a folder on a real disk, and measurements of contenders that take turns."""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.table import Measured

ROUNDS = 5


@dataclass(slots=True, kw_only=True)
class Bench:
    """The folder, rounds and notes of one benchmark; `note` adds a sentence below its table."""

    folder: Path
    rounds: int = ROUNDS
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def interleaved(
        self, contenders: Mapping[str, Callable[[], float]], unit: str, *, rounds: int | None = None
    ) -> dict[str, Measured]:
        """Let every contender measure itself once a round, each round beginning with another one.

        A contender returns its measure in `unit`; `seconds` makes one of something to be timed.
        """
        names = list(contenders)
        found: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds or self.rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(contenders[name]())
        return {name: Measured(tuple(values), unit) for name, values in found.items()}


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def milliseconds(work: Callable[[], object], times: int = 1) -> Callable[[], float]:
    """Return a contender that calls `work` `times` times and returns the mean milliseconds of a call."""

    def measure() -> float:
        return 1000 * seconds(lambda: [work() for _ in range(times)]) / times

    return measure


@contextmanager
def apart(
    command: Sequence[str], *, asked: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Callable[[], float], str]]:
    """Start a process that answers each line of input with a measure; yield the contender and its first line."""
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def one() -> float:
        process.stdin.write(asked + "\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    try:
        yield one, process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(60)
