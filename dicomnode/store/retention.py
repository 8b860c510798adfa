"""Retention: removes the bytes of studies that are settled. Their rows and their ledger stay.

A study is settled when nothing of it is owed: every version of its answer has ended, none of them as a dead letter, and
every result is delivered, or was dropped by an operator, and is committed where its destination is asked to. If a study
has no destination, its results exist nowhere else, so it is not settled.

The rows say that the bytes are purged before the files are removed, and a write transaction encloses every removal. A
crash between the two leaves files that the next start removes; an image that arrives with the same bytes finds them or
writes them.

An audit message takes the patient from the stored objects when it is sent. So where there is an audit trail, a study
also waits until everything about it is sent; but only for a limited time, since the disk would fill up while a
repository is unreachable.

An acknowledged image that has no row, as after the restore of an older database, is never removed.
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from dicomnode.settings.node import RetentionSettings
from dicomnode.store.audit import TRANSFERS
from dicomnode.store.blob_references import is_named
from dicomnode.store.blobs.local import Blobs
from dicomnode.store.engine import Database
from dicomnode.store.events import EventKind, record
from dicomnode.store.row_mapping import to_text
from dicomnode.store.studies import forget

log = logging.getLogger(__name__)

_EVERY = timedelta(minutes=10)
_STUDIES_AT_ONCE = 20
"""More would keep an arriving image waiting for the end of the transaction."""

# Audit messages that are still to be sent: records, and events that no record was made of yet.
_AUDIT_PENDING = f"""
WITH audit_pending AS (
    SELECT json_extract(facts, '$.study') AS study, at FROM audit_record WHERE kind IN ('received', 'sent', 'shown')
    UNION ALL
    SELECT study, at FROM event WHERE event_id > (SELECT event_id FROM audit_cursor)
        AND kind IN ({", ".join(f"'{kind}'" for kind in TRANSFERS)})
)
"""

# Not committed: a destination that is asked and has not answered is NULL here only if it is not asked.
_SETTLED = """
FROM (SELECT DISTINCT study FROM {table} WHERE purged_at IS NULL) AS kept
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
"""

# Without an audit trail :wait_since is NULL, so nothing is waited for.
_DUE = """
SELECT study, :wait_since IS NOT NULL AND study IN (SELECT study FROM audit_pending) AS is_audit_pending {settled}
AND study NOT IN (SELECT study FROM audit_pending WHERE at > :wait_since) LIMIT :limit
"""
_WAITING_FOR_AUDIT = """
SELECT COUNT(*) {settled} AND study IN (SELECT study FROM audit_pending WHERE at > :wait_since AND at <= :long_ago)
"""

_PURGE = """
UPDATE {table} SET purged_at = :now WHERE study = :study AND purged_at IS NULL RETURNING blob, size_bytes
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The images, or the results, of studies: statements for what is due, what waits, and what is marked as purged."""

    what: str
    due: str
    waiting_for_audit: str
    purge: str


def _part(what: str, table: str) -> _Part:
    settled = _SETTLED.format(table=table)
    return _Part(
        what=what,
        due=_AUDIT_PENDING + _DUE.format(settled=settled),
        waiting_for_audit=_AUDIT_PENDING + _WAITING_FOR_AUDIT.format(settled=settled),
        purge=_PURGE.format(table=table),
    )


IMAGES, RESULTS = _part("received image(s)", "instance"), _part("result(s)", "result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """How much was removed in one step; a study counts once for its images and once for its results."""

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

    def __init__(self, database: Database, blobs: Blobs, settings: RetentionSettings, *, audited: bool) -> None:
        """`audited`: whether there is an audit trail to wait for."""
        self._database, self._blobs, self._settings, self._audited = database, blobs, settings, audited
        self._next: datetime | None = None

    def next_due(self) -> datetime | None:
        """Return when there may be something to remove again."""
        return self._next

    def step(self, now: datetime) -> int:
        """Remove what is due, every ten minutes; return the number of studies, 0 when nothing is left to remove.

        Raises: StoreUnavailable.
        """
        if self._next is not None and now < self._next <= now + _EVERY:
            return 0
        purged = self.purge(now)
        if purged.studies:
            log.info(
                "purged", extra={"studies": purged.studies, "files": purged.files, "size_bytes": purged.size_bytes}
            )
        else:
            self._warn_of_waiting(now)
        self._next = None if purged.studies else now + _EVERY
        return purged.studies

    def purge(self, now: datetime) -> Purged:
        """Remove the bytes of some studies that have been settled for long enough, and unclaimed files of that age.

        Raises: StoreUnavailable.
        """
        purged = self._purge(IMAGES, self._settings.images_days, now)
        purged += self._purge(RESULTS, self._settings.results_days, now)
        if (before := _before(now, self._settings.images_days)) is not None:
            self._blobs.remove_unclaimed(before)
        return purged

    def _purge(self, part: _Part, days: float, now: datetime) -> Purged:
        before = _before(now, days)
        if before is None:
            return Purged()
        names: list[str] = []
        purged = Purged()
        with self._database.transaction() as connection:
            parameters = {"before": to_text(before), "wait_since": self._wait_since(now), "limit": _STUDIES_AT_ONCE}
            for row in connection.execute(part.due, parameters).fetchall():
                gone = connection.execute(part.purge, {"study": row["study"], "now": to_text(now)}).fetchall()
                names += [found["blob"] for found in gone]
                if part is IMAGES:
                    forget(connection, row["study"])
                size_bytes = sum(found["size_bytes"] for found in gone)
                purged += Purged(studies=1, files=len(gone), size_bytes=size_bytes)
                facts = {"what": part.what, "files": len(gone), "days": days}
                facts["audit_pending"] = bool(row["is_audit_pending"])
                record(connection, now, row["study"], None, EventKind.PURGED, **facts)
        for name in dict.fromkeys(names):
            self._remove(name)
        return purged

    def _wait_since(self, now: datetime) -> str | None:
        """Return since when audit messages that are not sent are waited for; None where there is no audit trail."""
        if not self._audited:
            return None
        since = _before(now, self._settings.audit_wait_days)
        return "" if since is None else to_text(since)

    def _warn_of_waiting(self, now: datetime) -> None:
        """Log how many studies are not removed only because audit messages about them are not sent."""
        parameters = {"wait_since": self._wait_since(now), "long_ago": to_text(now - _EVERY)}
        studies = 0
        with self._database.reading() as connection:
            for part, days in ((IMAGES, self._settings.images_days), (RESULTS, self._settings.results_days)):
                if (before := _before(now, days)) is not None:
                    found = connection.execute(
                        part.waiting_for_audit, parameters | {"before": to_text(before)}
                    ).fetchone()
                    studies = max(studies, int(found[0]))
        if studies:
            about = {"studies": studies, "for_at_most_days": self._settings.audit_wait_days}
            log.warning("purge-waits-for-audit", extra=about)

    def _remove(self, name: str) -> None:
        # Within a write transaction, so that no new row can name the file while it is removed.
        with self._database.transaction() as connection:
            if not is_named(connection, name):
                self._blobs.remove(name)


def _before(now: datetime, days: float) -> datetime | None:
    """Return by when a study must have been settled to be removed; None if nothing is ever removed."""
    try:
        return now - timedelta(days=days)
    except OverflowError:
        return None
