"""Another analysis of a study whose answer is finished, because an operator asks for it: a new version of the answer.

It speaks of the same images, so a model and settings that are the same make results with the same UIDs, which the store
knows: nothing is sent again. Where they differ, the results are new, and the report names the former one. Until the new
version is answered, every image keeps the fate that the former one gave it.

What an operator may do to stuck work: try it again, or drop it. Both leave every record in place.
"""

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from dicomnode.domain.job import JobState
from dicomnode.store.commitments import ask_again
from dicomnode.store.jobs import NEW_JOB, OpenVersion, supersede_older
from dicomnode.store.row_mapping import EventKind, record, to_text

STATES = "SELECT state FROM job WHERE study = ? ORDER BY version DESC"

KEPT = "SELECT EXISTS (SELECT 1 FROM instance WHERE study = ? AND current = 1 AND purged_at IS NULL)"

_UNFINISHED = frozenset({JobState.COLLECTING, JobState.WAITING, JobState.WORKING})
_ANSWERED = frozenset({JobState.DONE, JobState.REJECTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reanalysis:
    """What came of asking: the version that will be the answer, or why there will be none."""

    study: str
    version: int | None
    why_not: str = ""


def why_not_again(newest: JobState, others: Collection[JobState], *, kept: bool) -> str:
    """Return why a study cannot be analysed again, or nothing if it can.

    `newest` is the state of the newest version of its answer, `others` those of the former ones; `kept`: an image of it
    is there.
    """
    if not _UNFINISHED.isdisjoint({newest, *others}):
        return "it is being received or analysed now"
    if newest not in _ANSWERED:
        return "its last analysis failed or was given up: try that one again"
    if not kept:
        return "its images were removed by the rules of retention: send them again"
    return ""


def analyse_again(connection: sqlite3.Connection, study: str, by: str, now: datetime) -> Reanalysis:
    """Open a new version of a study's answer, due now, in the caller's transaction; `by`: who asks, and where."""
    newest, *others = (JobState(row["state"]) for row in connection.execute(STATES, (study,)).fetchall())
    kept = bool(connection.execute(KEPT, (study,)).fetchone()[0])
    if why_not := why_not_again(newest, others, kept=kept):
        return Reanalysis(study=study, version=None, why_not=why_not)
    facts = {"study": study, "state": JobState.WAITING, "now": to_text(now)}
    version = int(connection.execute(NEW_JOB, facts).fetchone()["version"])
    record(connection, now, study, version, EventKind.VERSION_OPENED, f"{by} asked for another analysis")
    return Reanalysis(study=study, version=version)


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
