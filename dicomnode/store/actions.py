"""What an operator may do to stuck work: try it again, or drop it. Both leave every record in place."""

import sqlite3
from dataclasses import dataclass
from datetime import datetime

from dicomnode.store.assembly import OpenVersion, supersede_older
from dicomnode.store.commitments import ask_again
from dicomnode.store.rows import EventKind, record, to_text


@dataclass(frozen=True, slots=True, kw_only=True)
class OfStudy:
    """Everything of one study."""

    study: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OneJob:
    """One version of one study's answer."""

    job_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OneDelivery:
    """One result on its way to one destination."""

    delivery_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllDead:
    """Every dead letter, of jobs and of deliveries."""


Selection = OfStudy | OneJob | OneDelivery | AllDead


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """How much an action changed."""

    jobs: int
    deliveries: int


# Newest first: reviving a version supersedes the older ones.
JOBS_OF_STUDY = "SELECT job_id, study, version, state FROM job WHERE study = ? ORDER BY version DESC"
ONE_JOB = "SELECT job_id, study, version, state FROM job WHERE job_id = ?"
DEAD_JOBS = "SELECT job_id, study, version, state FROM job WHERE state = 'dead' ORDER BY job_id DESC"

DELIVERIES_OF_STUDY = """
SELECT delivery_id, destination, study, sop_instance FROM delivery JOIN result USING (result_id) WHERE study = ?
"""
ONE_DELIVERY = """
SELECT delivery_id, destination, study, sop_instance FROM delivery JOIN result USING (result_id) WHERE delivery_id = ?
"""
DEAD_DELIVERIES = """
SELECT delivery_id, destination, study, sop_instance FROM delivery JOIN result USING (result_id)
WHERE delivery.state = 'dead'
"""

# A study whose images were purged has nothing to be analysed again.
STILL_THERE = """
SELECT 1 FROM job WHERE job_id = ? AND state IN ('waiting', 'dead', 'dropped') AND EXISTS (
    SELECT 1 FROM instance WHERE instance.study = job.study AND current = 1 AND purged_at IS NULL
)
"""

RETRY_JOB = """
UPDATE job SET state = 'waiting', due_at = :now, attempts = 0, changed_at = :now
WHERE job_id = :job_id AND state IN ('waiting', 'dead', 'dropped')
"""

DROP_JOB = """
UPDATE job SET state = 'dropped', due_at = NULL, changed_at = :now
WHERE job_id = :job_id AND state IN ('collecting', 'waiting', 'dead')
"""

RETRY_DELIVERY = """
UPDATE delivery SET state = 'waiting', next_attempt_at = :now, waiting_since = :now, attempts = 0, changed_at = :now
WHERE delivery_id = :delivery_id AND state IN ('waiting', 'dead', 'dropped')
    AND result_id IN (SELECT result_id FROM result WHERE purged_at IS NULL)
"""

DROP_DELIVERY = """
UPDATE delivery SET state = 'dropped', next_attempt_at = NULL, changed_at = :now
WHERE delivery_id = :delivery_id AND state IN ('waiting', 'dead')
"""


def retry(connection: sqlite3.Connection, selection: Selection, now: datetime) -> Changed:
    """Make selected work due now, with its attempts counted anew: what waits, is dead, or was dropped."""
    jobs = 0
    for row in _jobs(connection, selection):
        if connection.execute(STILL_THERE, (row["job_id"],)).fetchone() is None:
            continue
        revived = OpenVersion(job_id=row["job_id"], version=row["version"])
        supersede_older(connection, row["study"], revived, now)
        connection.execute(RETRY_JOB, {"job_id": row["job_id"], "now": to_text(now)})
        detail = f"an operator asked for another try; it was {row['state']}"
        record(connection, now, row["study"], row["version"], EventKind.RETRIED, detail)
        jobs += 1
    detail = "an operator asked for another try of"
    deliveries = _change_deliveries(connection, selection, RETRY_DELIVERY, EventKind.RETRIED, detail, now)
    return Changed(jobs=jobs, deliveries=deliveries)


def drop(connection: sqlite3.Connection, selection: Selection, now: datetime) -> Changed:
    """Give up selected work that has not ended well; what is in work or being sent right now is left alone."""
    jobs = 0
    for row in _jobs(connection, selection):
        if connection.execute(DROP_JOB, {"job_id": row["job_id"], "now": to_text(now)}).rowcount:
            detail = f"an operator dropped it; it was {row['state']}"
            record(connection, now, row["study"], row["version"], EventKind.DROPPED, detail)
            jobs += 1
    detail = "an operator dropped"
    deliveries = _change_deliveries(connection, selection, DROP_DELIVERY, EventKind.DROPPED, detail, now)
    return Changed(jobs=jobs, deliveries=deliveries)


def _change_deliveries(
    connection: sqlite3.Connection, selection: Selection, statement: str, kind: EventKind, detail: str, now: datetime
) -> int:
    changed = 0
    for row in _deliveries(connection, selection):
        facts = {"delivery_id": row["delivery_id"], "now": to_text(now)}
        moved = connection.execute(statement, facts).rowcount > 0
        if moved or (kind is EventKind.RETRIED and ask_again(connection, row["delivery_id"], now)):
            told = f"{detail} {row['sop_instance']} to {row['destination']}"
            record(connection, now, row["study"], None, kind, told)
            changed += 1
    return changed


def _jobs(connection: sqlite3.Connection, selection: Selection) -> list[sqlite3.Row]:
    match selection:
        case OfStudy(study=study):
            return connection.execute(JOBS_OF_STUDY, (study,)).fetchall()
        case OneJob(job_id=job_id):
            return connection.execute(ONE_JOB, (job_id,)).fetchall()
        case AllDead():
            return connection.execute(DEAD_JOBS).fetchall()
        case OneDelivery():
            return []


def _deliveries(connection: sqlite3.Connection, selection: Selection) -> list[sqlite3.Row]:
    match selection:
        case OfStudy(study=study):
            return connection.execute(DELIVERIES_OF_STUDY, (study,)).fetchall()
        case OneDelivery(delivery_id=delivery_id):
            return connection.execute(ONE_DELIVERY, (delivery_id,)).fetchall()
        case AllDead():
            return connection.execute(DEAD_DELIVERIES).fetchall()
        case OneJob():
            return []
