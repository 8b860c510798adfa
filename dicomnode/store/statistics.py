"""Figures about a store that name nothing in it: how much of what, in which state, since when."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dicomnode.domain.errors import ConfigurationError
from dicomnode.store.database import Database
from dicomnode.store.rows import to_optional_time, to_time

COUNTS = {
    "jobs_by_state": "SELECT state, COUNT(*) FROM job GROUP BY 1",
    "jobs_by_attempts": "SELECT attempts, COUNT(*) FROM job GROUP BY 1",
    "instances_by_fate": "SELECT COALESCE(fate, 'open'), COUNT(*) FROM instance GROUP BY 1",
    "instances_by_sop_class": "SELECT sop_class, COUNT(*) FROM instance GROUP BY 1",
    "instances_by_transfer_syntax": "SELECT transfer_syntax, COUNT(*) FROM instance GROUP BY 1",
    "rejections_by_reason": "SELECT reason, COUNT(*) FROM rejection GROUP BY 1",
    "results_by_kind": "SELECT kind, COUNT(*) FROM result GROUP BY 1",
    "deliveries_by_state": "SELECT state, COUNT(*) FROM delivery GROUP BY 1",
    "deliveries_by_last_status": "SELECT printf('%04X', last_status), COUNT(*) FROM delivery "
    "WHERE last_status IS NOT NULL GROUP BY 1",
    "commitments_by_state": "SELECT state, COUNT(*) FROM commitment GROUP BY 1",
    "events_by_kind": "SELECT kind, COUNT(*) FROM event GROUP BY 1",
}

SIZES = {
    "instances_bytes": "SELECT COALESCE(SUM(size_bytes), 0) FROM instance WHERE purged_at IS NULL",
    "results_bytes": "SELECT COALESCE(SUM(size_bytes), 0) FROM result WHERE purged_at IS NULL",
    "studies": "SELECT COUNT(DISTINCT study) FROM job",
    "open_associations": "SELECT COUNT(*) FROM association WHERE released_at IS NULL",
    "audit_records_waiting": "SELECT COUNT(*) FROM audit_record",
}

OLDEST = "SELECT MIN(first_instance_at) FROM job"

LAST_EVENTS = "SELECT at, study, version, kind FROM event ORDER BY event_id DESC LIMIT ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that happened to a study, without what and to whom."""

    at: datetime
    study: str
    version: int | None
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Counts by name and value, sizes, and the newest steps, newest first. `sound`: every page can be read."""

    schema_version: int
    sound: bool
    counts: Mapping[str, Mapping[str, int]]
    sizes: Mapping[str, int]
    since: datetime | None
    steps: tuple[Step, ...]


class Statistics:
    """Reads the figures of one store."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database, self._folder = database, folder

    def figures(self, *, steps: int = 500) -> Figures:
        """Read the whole store once.

        Raises: ConfigurationError (too damaged to be read), StoreUnavailable.
        """
        with self._database.reading() as connection:
            return Figures(
                schema_version=int(connection.execute("PRAGMA user_version").fetchone()[0]),
                sound=self._is_sound(),
                counts={name: _counted(connection, statement) for name, statement in COUNTS.items()},
                sizes={name: int(connection.execute(statement).fetchone()[0]) for name, statement in SIZES.items()}
                | self._files(),
                since=to_optional_time(connection.execute(OLDEST).fetchone()[0]),
                steps=tuple(_to_step(row) for row in connection.execute(LAST_EVENTS, (steps,)).fetchall()),
            )

    def _is_sound(self) -> bool:
        try:
            self._database.check()
        except ConfigurationError:
            return False
        return True

    def _files(self) -> dict[str, int]:
        """Return how many files there are, and their bytes, of blobs, of blobs set aside, and of the database."""
        found: dict[str, int] = {}
        for name, pattern in (("blob", "blobs/*/*"), ("unclaimed", "unclaimed/*"), ("database", "store.db*")):
            sizes = [path.stat().st_size for path in self._folder.glob(pattern) if path.is_file()]
            found |= {f"{name}_files": len(sizes), f"{name}_files_bytes": sum(sizes)}
        return found


def _counted(connection: sqlite3.Connection, statement: str) -> dict[str, int]:
    return {str(row[0]): int(row[1]) for row in connection.execute(statement).fetchall()}


def _to_step(row: sqlite3.Row) -> Step:
    return Step(at=to_time(row["at"]), study=row["study"], version=row["version"], kind=row["kind"])


def sqlite_version() -> str:
    """Return the version of SQLite."""
    return sqlite3.sqlite_version
