"""What is removed, and when: the bytes of studies that are settled. Their rows and their ledger stay.

A study is settled when nothing of it is owed: every version of its answer has ended, none of them as a dead letter, and
every result is delivered, or was dropped by an operator, and is committed where its destination is asked to. Results
that have nowhere to go are the only copies of themselves, so their study is not settled.

The rows say first that the bytes are gone, and a write transaction stands around every removal. So a crash between the
two leaves files that the next start removes, and an image that arrives with the same bytes finds them or writes them.
"""

import logging
import sqlite3
from dataclasses import dataclass
from datetime import datetime, timedelta

from dicomnode.settings import RetentionSettings
from dicomnode.store.blobs import Blobs
from dicomnode.store.database import Database
from dicomnode.store.rows import EventKind, record, to_text

log = logging.getLogger(__name__)

_EVERY = timedelta(minutes=10)
_STUDIES_AT_ONCE = 20
"""So that no transaction keeps an arriving image waiting for long."""

# Not committed: a destination that is asked and has not answered is NULL here only if it is not asked.
_SETTLED = """
SELECT study FROM (SELECT DISTINCT study FROM {table} WHERE purged_at IS NULL) AS kept
WHERE NOT EXISTS (
    SELECT 1 FROM job WHERE job.study = kept.study
        AND (job.state NOT IN ('done', 'rejected', 'dropped', 'superseded') OR job.changed_at > :before)
) AND NOT EXISTS (
    SELECT 1 FROM result LEFT JOIN delivery USING (result_id) LEFT JOIN commitment USING (delivery_id)
    WHERE result.study = kept.study AND (
        delivery.state IS NULL OR delivery.state NOT IN ('delivered', 'dropped') OR delivery.changed_at > :before
        OR (delivery.state = 'delivered' AND commitment.state <> 'committed') OR commitment.changed_at > :before
    )
)
LIMIT :limit
"""
SETTLED_IMAGES = _SETTLED.format(table="instance")
SETTLED_RESULTS = _SETTLED.format(table="result")

PURGE_IMAGES = """
UPDATE instance SET purged_at = :now WHERE study = :study AND purged_at IS NULL RETURNING blob, size_bytes
"""
PURGE_RESULTS = """
UPDATE result SET purged_at = :now WHERE study = :study AND purged_at IS NULL RETURNING blob, size_bytes
"""

STILL_NAMED = """
SELECT 1 FROM instance WHERE blob = :blob AND purged_at IS NULL
UNION ALL
SELECT 1 FROM result WHERE blob = :blob AND purged_at IS NULL
LIMIT 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """How much was removed at once; a study counts for its images and for its results."""

    studies: int = 0
    files: int = 0
    size_bytes: int = 0

    def __add__(self, other: "Purged") -> "Purged":
        return Purged(
            studies=self.studies + other.studies,
            files=self.files + other.files,
            size_bytes=self.size_bytes + other.size_bytes,
        )


class Retention:
    """Removes bytes of settled studies, a few studies at a time."""

    def __init__(self, database: Database, blobs: Blobs, settings: RetentionSettings) -> None:
        self._database, self._blobs, self._settings = database, blobs, settings
        self._next: datetime | None = None

    def next_due(self) -> datetime | None:
        """Return when there may be something to remove again."""
        return self._next

    def step(self, now: datetime) -> int:
        """Remove what is due, if it is time to look; return of how many studies, 0 when there is nothing left.

        Raises: StoreUnavailable.
        """
        if self._next is not None and now < self._next <= now + _EVERY:
            return 0
        purged = self.purge(now)
        if purged.studies:
            log.info(
                "purged", extra={"studies": purged.studies, "files": purged.files, "size_bytes": purged.size_bytes}
            )
        self._next = None if purged.studies else now + _EVERY
        return purged.studies

    def purge(self, now: datetime) -> Purged:
        """Remove the bytes of some studies that have been settled for long enough, and strays of that age.

        Raises: StoreUnavailable.
        """
        images, results = self._settings.images_days, self._settings.results_days
        purged = self._purge(SETTLED_IMAGES, PURGE_IMAGES, "received image(s)", images, now)
        purged += self._purge(SETTLED_RESULTS, PURGE_RESULTS, "result(s)", results, now)
        if (before := _before(now, images)) is not None:
            self._blobs.remove_unclaimed(before)
        return purged

    def _purge(self, settled: str, purge: str, what: str, days: float, now: datetime) -> Purged:
        before = _before(now, days)
        if before is None:
            return Purged()
        names: list[str] = []
        purged = Purged()
        with self._database.transaction() as connection:
            facts = {"before": to_text(before), "limit": _STUDIES_AT_ONCE}
            for row in connection.execute(settled, facts).fetchall():
                gone = connection.execute(purge, {"study": row["study"], "now": to_text(now)}).fetchall()
                size_bytes = sum(found["size_bytes"] for found in gone)
                names += [found["blob"] for found in gone]
                purged += Purged(studies=1, files=len(gone), size_bytes=size_bytes)
                detail = f"the bytes of {len(gone)} {what} were removed, {days:g} day(s) after the study was settled"
                record(connection, now, row["study"], None, EventKind.PURGED, detail)
        for name in dict.fromkeys(names):
            self._remove(name)
        return purged

    def _remove(self, name: str) -> None:
        # Within a write transaction, so that no row can come to name the file while it is removed.
        with self._database.transaction() as connection:
            if not is_named(connection, name):
                self._blobs.remove(name)


def is_named(connection: sqlite3.Connection, name: str) -> bool:
    """Tell whether a row still needs the bytes of that name."""
    return connection.execute(STILL_NAMED, {"blob": name}).fetchone() is not None


def _before(now: datetime, days: float) -> datetime | None:
    """Return until when a study must have been settled; None where nothing is ever removed."""
    try:
        return now - timedelta(days=days)
    except OverflowError:
        return None
