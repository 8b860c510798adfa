"""What an operator may do: try work again, drop it, and have a finished study analysed once more.

All three leave every record in place.

Another analysis opens a new version of the answer to the same images. A model and settings that are the same make
results with the same UIDs, which the store has: nothing is sent again. Where they differ, the results are new, and the
report names the former one. Until the new version is answered, every image keeps the fate that the former one gave it.

The bytes of a result may be lost: missing or damaged. Its delivery cannot be tried again as it is. `retry` then opens a
new version of the answer, which makes the result again and has it delivered.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from dicomnode.domain.job import JobState
from dicomnode.store.commitments import ask_again
from dicomnode.store.engine import Connection, Row
from dicomnode.store.events import EventKind, OpenedFor, record
from dicomnode.store.jobs import NEW_JOB, OpenVersion, supersede_older
from dicomnode.store.row_mapping import to_text

# What an action is about


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
    """How much an action changed; a delivery whose result is made again counts as a job."""

    jobs: int
    deliveries: int


# Newest first: reviving a version supersedes the older ones.
JOBS_OF_STUDY = "SELECT job_id, study, version, state FROM job WHERE study = ? ORDER BY version DESC"
_ONE_JOB = "SELECT job_id, study, version, state FROM job WHERE job_id = ?"
DEAD_JOBS = "SELECT job_id, study, version, state FROM job WHERE state = 'dead' ORDER BY job_id DESC"

_DELIVERY = """
SELECT delivery_id, destination, state, study, sop_instance, lost_at FROM delivery JOIN result USING (result_id)
"""
DELIVERIES_OF_STUDY = f"{_DELIVERY} WHERE study = ?"
_ONE_DELIVERY = f"{_DELIVERY} WHERE delivery_id = ?"
DEAD_DELIVERIES = f"{_DELIVERY} WHERE delivery.state = 'dead'"


def _jobs(connection: Connection, selection: Selection) -> list[Row]:
    match selection:
        case OfStudy(study=study):
            return connection.execute(JOBS_OF_STUDY, (study,)).fetchall()
        case OneJob(job_id=job_id):
            return connection.execute(_ONE_JOB, (job_id,)).fetchall()
        case AllDead():
            return connection.execute(DEAD_JOBS).fetchall()
        case OneDelivery():
            return []


def _deliveries(connection: Connection, selection: Selection) -> list[Row]:
    match selection:
        case OfStudy(study=study):
            return connection.execute(DELIVERIES_OF_STUDY, (study,)).fetchall()
        case OneDelivery(delivery_id=delivery_id):
            return connection.execute(_ONE_DELIVERY, (delivery_id,)).fetchall()
        case AllDead():
            return connection.execute(DEAD_DELIVERIES).fetchall()
        case OneJob():
            return []


# Retry

# A study whose images were purged cannot be analysed again.
_HAS_IMAGES = """
SELECT 1 FROM job WHERE job_id = ? AND state IN ('waiting', 'dead', 'dropped') AND EXISTS (
    SELECT 1 FROM instance WHERE instance.study = job.study AND current = 1 AND purged_at IS NULL
)
"""

_RETRY_JOB = """
UPDATE job SET state = 'waiting', due_at = :now, attempts = 0, changed_at = :now
WHERE job_id = :job_id AND state IN ('waiting', 'dead', 'dropped')
"""

_RETRY_DELIVERY = """
UPDATE delivery SET state = 'waiting', next_attempt_at = :now, waiting_since = :now, attempts = 0,
    retry_requested_at = :now, changed_at = :now
WHERE delivery_id = :delivery_id AND state IN ('waiting', 'dead', 'dropped')
    AND result_id IN (SELECT result_id FROM result WHERE purged_at IS NULL AND lost_at IS NULL)
"""


def retry(connection: Connection, selection: Selection, now: datetime) -> Changed:
    """Make selected work due now and count its attempts from 0: what waits, is dead, or was dropped."""
    jobs = sum(_retry_job(connection, row, now) for row in _jobs(connection, selection))
    deliveries = 0
    for row in _deliveries(connection, selection):
        if row["lost_at"] is not None and row["state"] == "dead":
            jobs += _make_again(connection, row["study"], now)
        elif _retry_delivery(connection, row, now):
            deliveries += 1
    return Changed(jobs=jobs, deliveries=deliveries)


def _retry_job(connection: Connection, row: Row, now: datetime) -> bool:
    if connection.execute(_HAS_IMAGES, (row["job_id"],)).fetchone() is None:
        return False
    revived = OpenVersion(job_id=row["job_id"], version=row["version"])
    supersede_older(connection, row["study"], revived, now)
    connection.execute(_RETRY_JOB, {"job_id": row["job_id"], "now": to_text(now)})
    record(connection, now, row["study"], row["version"], EventKind.RETRIED, former_state=row["state"])
    return True


def _retry_delivery(connection: Connection, row: Row, now: datetime) -> bool:
    parameters = {"delivery_id": row["delivery_id"], "now": to_text(now)}
    moved = connection.execute(_RETRY_DELIVERY, parameters).rowcount > 0
    if not (moved or ask_again(connection, row["delivery_id"], now)):
        return False
    facts = {"sop_instance": row["sop_instance"], "destination": row["destination"]}
    record(connection, now, row["study"], None, EventKind.RETRIED, **facts)
    return True


def _make_again(connection: Connection, study: str, now: datetime) -> bool:
    """Open a version that makes the lost results of a study again; tell whether that could be done."""
    if _why_not_again_now(connection, study):
        return False
    _open_again(connection, study, now, OpenedFor.LOST_RESULT)
    return True


# Drop

_DROP_JOB = """
UPDATE job SET state = 'dropped', due_at = NULL, changed_at = :now
WHERE job_id = :job_id AND state IN ('collecting', 'waiting', 'dead')
"""

_DROP_DELIVERY = """
UPDATE delivery SET state = 'dropped', next_attempt_at = NULL, retry_requested_at = NULL, changed_at = :now
WHERE delivery_id = :delivery_id AND state IN ('waiting', 'dead')
"""


def drop(connection: Connection, selection: Selection, now: datetime) -> Changed:
    """Give up selected work that has not ended well; what is in work or being sent right now is left alone."""
    jobs = deliveries = 0
    for row in _jobs(connection, selection):
        if connection.execute(_DROP_JOB, {"job_id": row["job_id"], "now": to_text(now)}).rowcount:
            record(connection, now, row["study"], row["version"], EventKind.DROPPED, former_state=row["state"])
            jobs += 1
    for row in _deliveries(connection, selection):
        if connection.execute(_DROP_DELIVERY, {"delivery_id": row["delivery_id"], "now": to_text(now)}).rowcount:
            facts = {"sop_instance": row["sop_instance"], "destination": row["destination"]}
            record(connection, now, row["study"], None, EventKind.DROPPED, **facts)
            deliveries += 1
    return Changed(jobs=jobs, deliveries=deliveries)


# Another analysis

_STATES = "SELECT state FROM job WHERE study = ? ORDER BY version DESC"

_KEPT = "SELECT EXISTS (SELECT 1 FROM instance WHERE study = ? AND current = 1 AND purged_at IS NULL)"

_UNFINISHED = frozenset({JobState.COLLECTING, JobState.WAITING, JobState.WORKING})
_ANSWERED = frozenset({JobState.DONE, JobState.REJECTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reanalysis:
    """The version that will be the new answer, or why there will be none."""

    study: str
    version: int | None
    why_not: str = ""


def why_not_again(newest: JobState, others: Collection[JobState], *, kept: bool) -> str:
    """Return why a study cannot be analysed again; an empty text if it can.

    `newest`: the state of the newest version of its answer; `others`: those of the former ones; `kept`: the store has
    the bytes of an image of it.
    """
    if not _UNFINISHED.isdisjoint({newest, *others}):
        return "it is being received or analysed now"
    if newest not in _ANSWERED:
        return "its last analysis failed or was given up: try that one again"
    if not kept:
        return "its images were removed by the rules of retention: send them again"
    return ""


def analyse_again(connection: Connection, study: str, by: str, now: datetime) -> Reanalysis:
    """Open a new version of a study's answer, due now; `by`: who asks, and where."""
    if why_not := _why_not_again_now(connection, study):
        return Reanalysis(study=study, version=None, why_not=why_not)
    version = _open_again(connection, study, now, OpenedFor.OPERATOR, by)
    return Reanalysis(study=study, version=version)


def _why_not_again_now(connection: Connection, study: str) -> str:
    newest, *others = (JobState(row["state"]) for row in connection.execute(_STATES, (study,)).fetchall())
    kept = bool(connection.execute(_KEPT, (study,)).fetchone()[0])
    return why_not_again(newest, others, kept=kept)


def _open_again(
    connection: Connection, study: str, now: datetime, opened_for: OpenedFor, asked_by: str | None = None
) -> int:
    parameters = {"study": study, "state": JobState.WAITING, "now": to_text(now)}
    version = int(connection.execute(NEW_JOB, parameters).fetchone()["version"])
    facts = {"opened_for": opened_for, "asked_by": asked_by}
    record(connection, now, study, version, EventKind.VERSION_OPENED, **facts)
    return version
