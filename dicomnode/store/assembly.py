"""Which version of a study's answer an image belongs to, and when that version is complete.

An image joins the study's open version (collecting, or waiting for another attempt). If there is none, because the
study is new, in work, answered or given up, it opens the next version, which also takes over every image that a former
version did not answer. A version is complete when no open association has contributed to it and `quiet_s` passed since
its last image, or `maximum_wait_s` after its first, whatever is still open.
"""

import sqlite3
from collections.abc import Container
from dataclasses import dataclass
from datetime import datetime, timedelta

from dicomnode.domain.instance import AssociationInfo
from dicomnode.domain.job import JobState
from dicomnode.settings import AssemblySettings
from dicomnode.store.rows import EventKind, record, to_text, to_time

OPEN_JOB = "SELECT job_id, version, state FROM job WHERE study = ? AND state IN ('collecting', 'waiting')"

NEW_JOB = """
INSERT INTO job (study, version, state, due_at, first_instance_at, last_instance_at, changed_at)
SELECT :study, 1 + COALESCE(MAX(version), 0), :state, :now, :now, :now, :now FROM job WHERE study = :study
RETURNING job_id, version
"""

COLLECT_AGAIN = """
UPDATE job SET state = 'collecting', first_instance_at = :now, changed_at = :now WHERE job_id = :job_id
"""

SUPERSEDE_OLDER = """
UPDATE job SET state = 'superseded', due_at = NULL, changed_at = :now
WHERE study = :study AND version < :version AND state IN ('collecting', 'waiting', 'dead', 'dropped')
RETURNING job_id, version
"""

TAKE_OVER = "UPDATE instance SET job_id = :heir WHERE job_id = :former"

NOTE_ARRIVAL = "UPDATE job SET last_instance_at = MAX(last_instance_at, :now) WHERE job_id = :job_id"

ASSEMBLY = "SELECT first_instance_at, last_instance_at FROM job WHERE job_id = ? AND state = 'collecting'"

NOTE_SENDER = """
INSERT INTO study_sender (study, calling_ae, called_ae, since) VALUES (:study, :calling_ae, :called_ae, :now)
ON CONFLICT DO NOTHING
"""

CONTRIBUTORS = "SELECT DISTINCT association_id FROM instance WHERE job_id = ?"

SCHEDULE = "UPDATE job SET due_at = :due_at WHERE job_id = :job_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVersion:
    """The version that an arriving image joins."""

    job_id: int
    version: int


def join_open_version(
    connection: sqlite3.Connection,
    study: str,
    now: datetime,
    *,
    why: str = "an image arrived after the former version was taken up",
) -> OpenVersion:
    """Return the study's open version, opening one if there is none; `why` a later one is opened is for the ledger."""
    row = connection.execute(OPEN_JOB, (study,)).fetchone()
    if row is None:
        return _open_version(connection, study, now, why)
    if row["state"] == JobState.WAITING:
        connection.execute(COLLECT_AGAIN, {"job_id": row["job_id"], "now": to_text(now)})
    return OpenVersion(job_id=row["job_id"], version=row["version"])


def supersede_older(connection: sqlite3.Connection, study: str, heir: OpenVersion, now: datetime) -> None:
    """Let a version take over the images that older versions, not in work, left unanswered."""
    older = {"study": study, "version": heir.version, "now": to_text(now)}
    for row in connection.execute(SUPERSEDE_OLDER, older).fetchall():
        hand_over(connection, study, OpenVersion(job_id=row["job_id"], version=row["version"]), heir, now)


def hand_over(
    connection: sqlite3.Connection, study: str, former: OpenVersion, heir: OpenVersion, now: datetime
) -> None:
    """Make `heir` owe the answer to the images that `former` left unanswered."""
    connection.execute(TAKE_OVER, {"heir": heir.job_id, "former": former.job_id})
    detail = f"version {heir.version} takes over its images"
    record(connection, now, study, former.version, EventKind.SUPERSEDED, detail)


def note_arrival(connection: sqlite3.Connection, job_id: int, now: datetime) -> None:
    """Count the quiet time anew."""
    connection.execute(NOTE_ARRIVAL, {"job_id": job_id, "now": to_text(now)})


def note_sender(connection: sqlite3.Connection, study: str, association: AssociationInfo, now: datetime) -> bool:
    """Remember who sent something of a study; tell whether that is news."""
    facts = {"study": study, "calling_ae": association.calling_ae, "called_ae": association.called_ae}
    return connection.execute(NOTE_SENDER, facts | {"now": to_text(now)}).rowcount > 0


def reschedule(
    connection: sqlite3.Connection, job_id: int, settings: AssemblySettings, open_associations: Container[str]
) -> None:
    """Set when a collecting version is complete; a version in another state is left alone."""
    row = connection.execute(ASSEMBLY, (job_id,)).fetchone()
    if row is None:
        return
    contributors = (found["association_id"] for found in connection.execute(CONTRIBUTORS, (job_id,)).fetchall())
    held = any(association in open_associations for association in contributors)
    due = due_at(settings, to_time(row["first_instance_at"]), to_time(row["last_instance_at"]), held=held)
    connection.execute(SCHEDULE, {"job_id": job_id, "due_at": to_text(due)})


def due_at(settings: AssemblySettings, first: datetime, last: datetime, *, held: bool) -> datetime:
    """Return when a version is complete; `held`: an association that contributed to it is still open."""
    at_the_latest = first + timedelta(seconds=settings.maximum_wait_s)
    return at_the_latest if held else min(at_the_latest, last + timedelta(seconds=settings.quiet_s))


def _open_version(connection: sqlite3.Connection, study: str, now: datetime, why: str) -> OpenVersion:
    row = connection.execute(NEW_JOB, {"study": study, "state": JobState.COLLECTING, "now": to_text(now)}).fetchone()
    opened = OpenVersion(job_id=row["job_id"], version=row["version"])
    detail = "the study is new" if opened.version == 1 else why
    record(connection, now, study, opened.version, EventKind.VERSION_OPENED, detail)
    supersede_older(connection, study, opened, now)
    return opened
