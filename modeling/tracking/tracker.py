"""What a run reports to a tracking server, and the interface that receives it."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from modeling.config import TrainingConfig
from modeling.tracking.history import EpochRecord


class Tracker(Protocol):
    """Receives the reports of a run. Only the last call waits for a server; no call fails; each may be repeated."""

    def begin(self, config: TrainingConfig, facts: Mapping[str, str]) -> None:
        """Report that the run begins or continues. `facts`: devices and others that are not in the configuration."""

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        """Report all finished epochs of all folds, including those reported before."""

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Report that the run is complete, with its results, and its files and folders."""

    def stop(self) -> None:
        """Report that the run was interrupted; it may continue later. Does nothing after `finish`."""


class NoTracker:
    """Reports to no server."""

    def begin(self, config: TrainingConfig, facts: Mapping[str, str]) -> None:
        """Do nothing."""

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        """Do nothing."""

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """The configuration and facts of a run, known before its first epoch."""

    config: TrainingConfig
    facts: Mapping[str, str]

    @property
    def parameters(self) -> dict[str, str]:
        """The flattened configuration with its digest, and the facts."""
        settings = self.config.model_dump(mode="json", exclude={"tracking": True, "bundle": {"note"}})
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return {**dict(flattened(settings)), "config_sha256": digest, **self.facts}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """How a run ended, with its results, and its files and folders."""

    status: Literal["FINISHED", "KILLED"]
    metrics: Mapping[str, float]
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Everything that the server should have by now."""

    start: RunStart
    records: tuple[EpochRecord, ...]
    end: RunEnd | None = None


def flattened(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield every value of nested settings under its dotted name."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value if isinstance(value, str) else json.dumps(value)
