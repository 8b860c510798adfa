"""Memory, threads and open files of a process and its children over time, from /proc."""

import threading
from dataclasses import dataclass
from pathlib import Path
from statistics import median

EVERY_S = 0.5


@dataclass(frozen=True)
class Sample:
    """One look: resident memory in MB, threads and open files."""

    pid: int
    resident_mb: float
    threads: int
    files: int


@dataclass(frozen=True)
class Growth:
    """Medians of the first and the last third of the samples of a process."""

    first: Sample
    last: Sample
    most: Sample


class Watch:
    """Samples whatever process `pid` names at the time."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.samples: list[Sample] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def growth(self, pid: int) -> Growth:
        """Return how much a process grew while it ran."""
        seen = [sample for sample in self.samples if sample.pid == pid]
        third = max(1, len(seen) // 3)
        return Growth(first=_middle(seen[:third]), last=_middle(seen[-third:]), most=_most(seen))

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_S):
            if self.pid is not None and (sample := look(self.pid)) is not None:
                self.samples.append(sample)


def look(pid: int) -> Sample | None:
    """Return how a process is now; None if it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        files = sum(1 for _ in (folder / "fd").iterdir())
        return Sample(
            pid=pid, resident_mb=int(status["VmRSS"].split()[0]) / 1024, threads=int(status["Threads"]), files=files
        )
    except (OSError, KeyError, ValueError):
        return None


def _middle(samples: list[Sample]) -> Sample:
    return Sample(
        pid=samples[0].pid,
        resident_mb=median(sample.resident_mb for sample in samples),
        threads=int(median(sample.threads for sample in samples)),
        files=int(median(sample.files for sample in samples)),
    )


def _most(samples: list[Sample]) -> Sample:
    return Sample(
        pid=samples[0].pid,
        resident_mb=max(sample.resident_mb for sample in samples),
        threads=max(sample.threads for sample in samples),
        files=max(sample.files for sample in samples),
    )
