"""From a received study to its answer: claim, finish, fail, recover.

What `finish` promises: the results are durable and are queued for every destination in the same transaction that closes
the job.
"""

import logging
import sqlite3
from datetime import datetime

from dicomnode.domain.job import Expected, Job, JobState, StudyAnswer
from dicomnode.domain.routing import Route
from dicomnode.settings import AssemblySettings
from dicomnode.store.answers import close_answered, write_answer
from dicomnode.store.assembly import OPEN_JOB, OpenVersion, hand_over, reschedule
from dicomnode.store.blobs import Blobs
from dicomnode.store.clock import ClockWatch, plan_anew
from dicomnode.store.database import Database
from dicomnode.store.jobs import read_expected, read_job
from dicomnode.store.outbox import recover_deliveries
from dicomnode.store.rows import EventKind, record, shortened, to_optional_time, to_text
from dicomnode.store.search import SearchIndex
from dicomnode.store.tallies import tally_end

log = logging.getLogger(__name__)

CLAIM = """
UPDATE job SET state = 'working', attempts = attempts + 1, due_at = NULL, changed_at = :now
WHERE job_id = (
    SELECT due.job_id FROM job AS due
    WHERE due.due_at <= :now
        AND NOT EXISTS (SELECT 1 FROM job AS busy WHERE busy.study = due.study AND busy.state = 'working')
    ORDER BY due.due_at
    LIMIT 1
)
RETURNING job_id, study, version, attempts
"""

PUT_BACK = """
UPDATE job SET state = 'waiting', due_at = :due_at, last_error = :cause, changed_at = :now
WHERE job_id = :job_id AND state = 'working'
RETURNING version
"""

CLOSE = """
UPDATE job SET state = :state, last_error = :cause, changed_at = :now
WHERE job_id = :job_id AND state = 'working'
RETURNING version
"""

IN_WORK = "SELECT job_id, study, version, attempts FROM job WHERE state = 'working' ORDER BY job_id"

COLLECTING = "SELECT job_id FROM job WHERE state = 'collecting'"

RELEASE_ALL = "UPDATE association SET released_at = ? WHERE released_at IS NULL"

NEXT_DUE = "SELECT MIN(due_at) FROM job WHERE due_at IS NOT NULL"


class Inbox:
    """Received studies, until they are answered."""

    def __init__(
        self, database: Database, blobs: Blobs, settings: AssemblySettings, search: SearchIndex | None = None
    ) -> None:
        """`search`: where people find answered studies."""
        self._database, self._blobs, self._settings, self._search = database, blobs, settings, search
        self._clock = ClockWatch()

    def claim(self, now: datetime) -> Job | None:
        """Take the study that has been complete for longest, if any, and put it in work.

        If the clock was set back since the last call, what was planned by the former time is due now.
        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            self._clock.look(connection, now)
            row = connection.execute(CLAIM, {"now": to_text(now)}).fetchone()
            if row is None:
                return None
            job = read_job(connection, row)
            detail = f"attempt {row['attempts']}, {len(job.instances)} instance(s)"
            record(connection, now, row["study"], row["version"], EventKind.CLAIMED, detail)
        return job

    def finish(self, job: Job, answer: StudyAnswer, route: Route, now: datetime) -> None:
        """Make the answer durable, queue it for whom it is routed to and close the job, all or nothing.

        A job that is no longer in work is left as it is, so that finishing twice is finishing once. Without a
        destination the results stay in the store, and the ledger says so; if there are destinations, but no route, the
        job is a dead letter: trying it again, once a rule is there, sends them.

        Raises: DiskFull, StoreUnavailable; the job then stays in work and is the caller's to finish or fail.
        """
        blobs = tuple(self._blobs.write(result.part10) for result in answer.results)
        with self._database.transaction() as connection:
            if not close_answered(connection, job, answer, route, now):
                log.warning("answer-too-late", extra={"study": job.study, "version": job.version})
                return
            write_answer(connection, job, answer, blobs, route, now)
            if self._search is not None:
                self._search.note(connection, job.study, answer.subjects)
            for name, result in zip(blobs, answer.results, strict=True):
                self._blobs.ensure(name, result.part10)

    def fail(self, job: Job, cause: str, retry_at: datetime | None, now: datetime) -> None:
        """Put a job back until `retry_at`, or close it as a dead letter; `cause` carries no patient data.

        If a newer version has the study's images by now, the failed one is superseded by it instead.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            self._settle(connection, job.job_id, job.study, cause, retry_at, now)

    def recover(self, now: datetime, *, maximum_attempts: int) -> None:
        """Take up what a former run left open; to be called once, before anything else.

        A claim that was interrupted counts as an attempt, so that a study that kills the node is a dead letter after
        `maximum_attempts`.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            connection.execute(RELEASE_ALL, (to_text(now),))
            for row in connection.execute(IN_WORK).fetchall():
                cause = f"the node stopped during attempt {row['attempts']}"
                record(connection, now, row["study"], row["version"], EventKind.INTERRUPTED, cause)
                retry_at = now if row["attempts"] < maximum_attempts else None
                self._settle(connection, row["job_id"], row["study"], cause, retry_at, now)
            for row in connection.execute(COLLECTING).fetchall():
                reschedule(connection, row["job_id"], self._settings, open_associations=())
            recover_deliveries(connection, now)
            plan_anew(connection, now)

    def next_due(self) -> datetime | None:
        """Return when the next study is due, if one is expected."""
        with self._database.reading() as connection:
            return to_optional_time(connection.execute(NEXT_DUE).fetchone()[0])

    def expected(self, since: datetime) -> tuple[Expected, ...]:
        """Return versions that are not complete, all of whose images came `since` then; see `jobs.read_expected`.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return read_expected(connection, since)

    def _settle(
        self,
        connection: sqlite3.Connection,
        job_id: int,
        study: str,
        cause: str,
        retry_at: datetime | None,
        now: datetime,
    ) -> None:
        """Decide what becomes of a job in work that gave no answer."""
        facts = {"job_id": job_id, "cause": shortened(cause), "now": to_text(now)}
        heir = connection.execute(OPEN_JOB, (study,)).fetchone()
        if heir is not None:
            if (closed := connection.execute(CLOSE, facts | {"state": JobState.SUPERSEDED}).fetchone()) is not None:
                former = OpenVersion(job_id=job_id, version=closed["version"])
                hand_over(connection, study, former, OpenVersion(job_id=heir["job_id"], version=heir["version"]), now)
        elif retry_at is not None:
            if (back := connection.execute(PUT_BACK, facts | {"due_at": to_text(retry_at)}).fetchone()) is not None:
                detail = f"{cause}; next attempt in {(retry_at - now).total_seconds():.0f} s"
                record(connection, now, study, back["version"], EventKind.DEFERRED, detail)
        elif (dead := connection.execute(CLOSE, facts | {"state": JobState.DEAD}).fetchone()) is not None:
            record(connection, now, study, dead["version"], EventKind.DEAD, cause)
            tally_end(connection, JobState.DEAD, now)
