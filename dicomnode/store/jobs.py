"""Which version of a study's answer an image belongs to, and when that version is complete.

An image joins the study's open version (collecting, or waiting for another attempt). If there is none, because the
study is new, in work, answered or given up, it opens the next version, which also takes over every image that a former
version did not answer. A version is complete when no open association has contributed to it and `quiet_s` passed since
its last image, or `maximum_wait_s` after its first, whatever is still open.

A version of a study's answer as it is worked on: its images, who sent them, and the reports it follows.

Writing down an answer, in the transaction that closes its job: results, deliveries, rejections, and every fate.

A clock that is set back: what was planned by its former time would wait until it is there again.

From a received study to its answer: claim, finish, fail, recover.

What `finish` promises: the results are durable and are queued for every destination in the same transaction that closes
the job.
"""

import json
import logging
import sqlite3
from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dicomnode.domain.answer import ResultInstance, StudyAnswer
from dicomnode.domain.delivery import Expected
from dicomnode.domain.instance import AssociationInfo, StudySender
from dicomnode.domain.job import Job, JobState
from dicomnode.domain.routing import Route
from dicomnode.results.summary import summary_to_json
from dicomnode.settings.node import AssemblySettings
from dicomnode.store.blobs.local import Blobs
from dicomnode.store.counters import tally_answer, tally_end, times_of_attempt
from dicomnode.store.deliveries import recover_deliveries
from dicomnode.store.engine.sqlite import Database
from dicomnode.store.row_mapping import (
    EventKind,
    record,
    shortened,
    to_optional_time,
    to_ref,
    to_stored_instance,
    to_text,
    to_time,
)
from dicomnode.store.studies import SearchIndex

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


SENDERS = "SELECT calling_ae, called_ae FROM study_sender WHERE study = ?"

CONTENTS = """
SELECT instance.*, association.calling_ae FROM instance JOIN association USING (association_id)
WHERE instance.study = ? AND instance.current = 1 AND instance.purged_at IS NULL
ORDER BY instance.instance_id
"""

PREDECESSORS = """
SELECT result.* FROM job_result JOIN result USING (result_id)
WHERE result.kind = 'sr' AND job_result.job_id = (
    SELECT former.job_id FROM job AS former
    JOIN job_result AS link ON link.job_id = former.job_id
    JOIN result AS report ON report.result_id = link.result_id AND report.kind = 'sr'
    WHERE former.study = :study AND former.version < :version
    ORDER BY former.version DESC
    LIMIT 1
)
ORDER BY result.result_id
"""

EXPECTED = """
SELECT job.job_id, job.study, job.version, job.attempts + 1 AS attempts,
    MAX(association.released_at IS NULL) AS is_held
FROM job JOIN instance ON instance.study = job.study AND instance.current = 1 AND instance.purged_at IS NULL
JOIN association USING (association_id)
WHERE job.state = 'collecting'
GROUP BY job.job_id
HAVING MIN(instance.received_at) >= :since AND COUNT(*) <= :most_images
ORDER BY job.due_at
LIMIT :most
"""

_MOST_EXPECTED = 16
_MOST_IMAGES = 64


def read_job(connection: sqlite3.Connection, row: sqlite3.Row) -> Job:
    """Return the version that a row names by `job_id`, `study`, `version` and `attempts`."""
    instances = connection.execute(CONTENTS, (row["study"],)).fetchall()
    former = connection.execute(PREDECESSORS, {"study": row["study"], "version": row["version"]}).fetchall()
    senders = connection.execute(SENDERS, (row["study"],)).fetchall()
    return Job(
        job_id=row["job_id"],
        study=row["study"],
        version=row["version"],
        attempts=row["attempts"],
        instances=tuple(to_stored_instance(found) for found in instances),
        predecessors=tuple(to_ref(found) for found in former),
        prefixes={found["sop_instance"]: found["prefix"] for found in former if found["prefix"]},
        senders=frozenset(StudySender(calling_ae=who["calling_ae"], called_ae=who["called_ae"]) for who in senders),
    )


def read_expected(connection: sqlite3.Connection, since: datetime) -> tuple[Expected, ...]:
    """Return versions that are not complete, in the order they will be claimed, all of whose images came `since` then.

    There may be more: so many are enough to be ahead of the next claims. A study of very many images is no study of
    radiographs, and waits for its claim.
    """
    facts = {"since": to_text(since), "most": _MOST_EXPECTED, "most_images": _MOST_IMAGES}
    found = connection.execute(EXPECTED, facts).fetchall()
    return tuple(Expected(job=read_job(connection, row), is_quiet=not row["is_held"]) for row in found)


log = logging.getLogger(__name__)

# The UID of a result derives from what it was made of: if it is there already, the first one stays, since a
# destination may hold it. Only bytes that were purged since are replaced.
ADD_RESULT = """
INSERT INTO result (study, series, sop_class, sop_instance, kind, prefix, transfer_syntax, blob, size_bytes,
    derived_from, created_at)
VALUES (:study, :series, :sop_class, :sop_instance, :kind, :prefix, :transfer_syntax, :blob, :size_bytes,
    :derived_from, :now)
ON CONFLICT (sop_instance) DO UPDATE SET blob = excluded.blob, size_bytes = excluded.size_bytes, purged_at = NULL
WHERE purged_at IS NOT NULL
"""

RESULT_ID = "SELECT result_id FROM result WHERE sop_instance = ?"

LINK_RESULT = "INSERT INTO job_result (job_id, result_id) VALUES (?, ?) ON CONFLICT DO NOTHING"

ADD_DELIVERY = """
INSERT INTO delivery (result_id, destination, state, next_attempt_at, created_at, waiting_since, changed_at)
VALUES (:result_id, :destination, 'waiting', :now, :now, :now, :now)
ON CONFLICT (result_id, destination) DO NOTHING
"""

ADD_REJECTION = """
INSERT INTO rejection (job_id, sop_instance, reason, detail) VALUES (:job_id, :sop_instance, :reason, :detail)
"""

CLOSE_ANSWERED = """
UPDATE job SET state = :state, summary = :summary, last_error = :cause, changed_at = :now
WHERE job_id = :job_id AND state = 'working'
"""

SEAL = """
UPDATE instance SET fate = :fate, job_id = :job_id
WHERE sop_instance = :sop_instance AND blob = :blob AND received_at = :received_at
"""


def close_answered(connection: sqlite3.Connection, job: Job, answer: StudyAnswer, route: Route, now: datetime) -> bool:
    """Close a job in work with the state that its answer leads to, and count it; tell whether it was in work."""
    times = times_of_attempt(connection, job.job_id)
    if times is None:
        return False
    unrouted = bool(answer.results) and route.is_missing
    rejected = bool(answer.rejections) and not (answer.results or answer.analysed)
    state = JobState.DEAD if unrouted else JobState.REJECTED if rejected else JobState.DONE
    closing = {
        "job_id": job.job_id,
        "state": state,
        "cause": shortened(no_route(route)) if unrouted else None,
        "summary": json.dumps(summary_to_json(answer.summary), sort_keys=True),
        "now": to_text(now),
    }
    connection.execute(CLOSE_ANSWERED, closing)
    tally_end(connection, state, now)
    tally_answer(connection, job, answer, times, now)
    return True


def write_answer(
    connection: sqlite3.Connection,
    job: Job,
    answer: StudyAnswer,
    blobs: Sequence[str],
    route: Route,
    now: datetime,
) -> None:
    """Write down the answer to a job in work; `blobs` are the names of the results' bytes, in their order."""
    pairs = zip(answer.results, blobs, strict=True)
    known = sum(not _write_result(connection, job, result, blob, route, now) for result, blob in pairs)
    for rejection in answer.rejections:
        uid, reason = rejection.source.sop_instance, rejection.reason.value
        facts = {"job_id": job.job_id, "sop_instance": uid, "reason": reason, "detail": shortened(rejection.detail)}
        connection.execute(ADD_REJECTION, facts)
        detail = f"{uid}: {reason}: {rejection.detail}"
        record(connection, now, job.study, job.version, EventKind.IMAGE_REJECTED, detail)
    _seal_fates(connection, job, answer, route, now)
    _record_answer(connection, job, answer, route, known, now)


def no_route(route: Route) -> str:
    """Return why the results of a study have nowhere to go."""
    titles = ", ".join(dict.fromkeys(sender.calling_ae for sender in route.unrouted))
    return f"no rule of delivery.routes or delivery.return_to_sender matches {titles}, and there is no default"


def _write_result(
    connection: sqlite3.Connection,
    job: Job,
    result: ResultInstance,
    blob: str,
    route: Route,
    now: datetime,
) -> bool:
    """Write down one result and whom it goes to; tell whether it is new."""
    facts = {
        "study": result.ref.study,
        "series": result.ref.series,
        "sop_class": result.ref.sop_class,
        "sop_instance": result.ref.sop_instance,
        "kind": result.kind,
        "prefix": result.prefix,
        "transfer_syntax": result.transfer_syntax,
        "blob": blob,
        "size_bytes": len(result.part10),
        "derived_from": json.dumps(result.derived_from),
        "now": to_text(now),
    }
    is_new = connection.execute(RESULT_ID, (result.ref.sop_instance,)).fetchone() is None
    connection.execute(ADD_RESULT, facts)
    result_id = connection.execute(RESULT_ID, (result.ref.sop_instance,)).fetchone()["result_id"]
    connection.execute(LINK_RESULT, (job.job_id, result_id))
    for recipient in route.recipients:
        if not recipient.wants(result.kind, result.prefix):
            continue
        delivery = {"result_id": result_id, "destination": recipient.name, "now": to_text(now)}
        if connection.execute(ADD_DELIVERY, delivery).rowcount:
            detail = f"{result.kind.value} {result.ref.sop_instance} for {recipient.name}"
            record(connection, now, job.study, job.version, EventKind.QUEUED, detail)
    return is_new


def _seal_fates(connection: sqlite3.Connection, job: Job, answer: StudyAnswer, route: Route, now: datetime) -> None:
    """Give every image of the job its fate. One that the answer does not mention is a fault, and is said to be one.

    An answer with nowhere to go is owed still: its images keep the fate of the job, which is a dead letter.
    """
    rejected = {rejection.source.sop_instance for rejection in answer.rejections}
    answered = {uid for result in answer.results for uid in result.derived_from} | set(answer.analysed)
    for instance in job.instances:
        uid = instance.ref.sop_instance
        if uid in answered and uid not in rejected and route.is_missing:
            continue
        fate = "rejected" if uid in rejected else "answered" if uid in answered else "unmentioned"
        facts = {"fate": fate, "job_id": job.job_id, "sop_instance": uid, "blob": instance.blob}
        connection.execute(SEAL, facts | {"received_at": to_text(instance.received_at)})
        if fate == "unmentioned":
            detail = f"{uid} is neither in a result nor rejected"
            record(connection, now, job.study, job.version, EventKind.IMAGE_UNMENTIONED, detail)
            log.error("image-unmentioned", extra={"study": job.study, "version": job.version, "instance": uid})


def _record_answer(
    connection: sqlite3.Connection, job: Job, answer: StudyAnswer, route: Route, known: int, now: datetime
) -> None:
    """Record what the answer is; `known`: how many of its results were there already."""
    if answer.rejections and not (answer.results or answer.analysed):
        detail = f"all {len(answer.rejections)} image(s) were rejected"
        record(connection, now, job.study, job.version, EventKind.REJECTED, detail)
        return
    detail = f"{len(answer.results)} result(s), {len(answer.rejections)} image(s) rejected"
    if known:
        detail += f"; {known} of the results were made before, and go only where they have not been"
    record(connection, now, job.study, job.version, EventKind.ANSWERED, detail)
    if answer.results and route.is_missing:
        detail = f"{len(answer.results)} result(s) stay in the store: {no_route(route)}"
        record(connection, now, job.study, job.version, EventKind.UNROUTED, detail)
    elif answer.results and not route.recipients:
        detail = f"{len(answer.results)} result(s) stay in the store: no destination is configured"
        record(connection, now, job.study, job.version, EventKind.KEPT, detail)


PLANNED_IN_FUTURE = "UPDATE job SET due_at = :now WHERE due_at > :now AND changed_at > :now"
SENT_IN_FUTURE = "UPDATE delivery SET next_attempt_at = :now WHERE next_attempt_at > :now AND changed_at > :now"

_SET_BACK = timedelta(seconds=30)
"""Callers read the clock before they wait for each other, so it seems to go back a little all the time."""


class ClockWatch:
    """Notices, from one call to the next, that the clock was set back."""

    def __init__(self) -> None:
        self._seen: datetime | None = None

    def look(self, connection: sqlite3.Connection, now: datetime) -> None:
        """Make what was planned by a former time due now, in the caller's transaction."""
        if self._seen is not None and now < self._seen - _SET_BACK:
            log.warning("clock-set-back")
            plan_anew(connection, now)
        self._seen = now


def plan_anew(connection: sqlite3.Connection, now: datetime) -> None:
    """Make due now what was planned at a time that is still to come, in the caller's transaction."""
    for statement in (PLANNED_IN_FUTURE, SENT_IN_FUTURE):
        connection.execute(statement, {"now": to_text(now)})


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
