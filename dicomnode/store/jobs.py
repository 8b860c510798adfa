"""Jobs: from a study's first image to its answer.

A job is one version of the answer to a study. This module reads in the order of a job's life:

1. An image joins the study's open version (collecting, or waiting for another attempt). If there is none, because the
   study is new, in work, answered or given up, the image opens the next version, which also takes over every image that
   a former version did not answer.
2. A version is complete when no association that contributed to it is open and `quiet_s` passed since its last image,
   or `maximum_wait_s` after its first image, whatever is open.
3. `Inbox.claim` puts a complete version in work, `Inbox.finish` writes down its answer, `Inbox.fail` puts it back or
   closes it as a dead letter, `Inbox.recover` does so for versions that a former run left in work.
4. `finish` makes the results durable, queues them for every destination and closes the job in one transaction.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dicomnode.domain.answer import ResultInstance, StudyAnswer
from dicomnode.domain.instance import AssociationInfo, StudySender
from dicomnode.domain.job import ExpectedJob, Job, JobState
from dicomnode.domain.routing import Route
from dicomnode.results.summary import summary_to_json
from dicomnode.settings.node import AssemblySettings
from dicomnode.store.associations import JOB_HAS_OPEN_SENDER, release_every_association
from dicomnode.store.blob_references import remove_unnamed
from dicomnode.store.blobs.local import Blobs, StagedBlob
from dicomnode.store.counters import count_answer, count_end, times_of_attempt
from dicomnode.store.deliveries import queue_delivery, recover_deliveries, redeliver_lost
from dicomnode.store.engine import Connection, Database, Row
from dicomnode.store.events import EventKind, OpenedFor, record
from dicomnode.store.row_mapping import shortened, to_optional_time, to_ref, to_stored_instance, to_text, to_time
from dicomnode.store.studies import SearchIndex

log = logging.getLogger(__name__)

# The versions of an answer, and when one is complete

OPEN_JOB = "SELECT job_id, version, state FROM job WHERE study = ? AND state IN ('collecting', 'waiting')"

NEW_JOB = """
INSERT INTO job (study, version, state, due_at, first_instance_at, last_instance_at, changed_at)
SELECT :study, 1 + COALESCE(MAX(version), 0), :state, :now, :now, :now, :now FROM job WHERE study = :study
RETURNING job_id, version
"""

_COLLECT_AGAIN = """
UPDATE job SET state = 'collecting', first_instance_at = :now, changed_at = :now WHERE job_id = :job_id
"""

SUPERSEDE_OLDER = """
UPDATE job SET state = 'superseded', due_at = NULL, changed_at = :now
WHERE study = :study AND version < :version AND state IN ('collecting', 'waiting', 'dead', 'dropped')
RETURNING job_id, version
"""

TAKE_OVER = "UPDATE instance SET job_id = :heir WHERE job_id = :former"

_NOTE_ARRIVAL = "UPDATE job SET last_instance_at = MAX(last_instance_at, :now) WHERE job_id = :job_id"

_NOTE_SENDER = """
INSERT INTO study_sender (study, calling_ae, called_ae, since) VALUES (:study, :calling_ae, :called_ae, :now)
ON CONFLICT DO NOTHING
"""

ASSEMBLY = f"""
SELECT first_instance_at, last_instance_at, {JOB_HAS_OPEN_SENDER} AS is_open
FROM job WHERE job_id = ? AND state = 'collecting'
"""

_SCHEDULE = "UPDATE job SET due_at = :due_at WHERE job_id = :job_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVersion:
    """A version of a study's answer, by its job."""

    job_id: int
    version: int


def join_open_version(
    connection: Connection, study: str, now: datetime, *, opened_for: OpenedFor = OpenedFor.LATE_IMAGE
) -> OpenVersion:
    """Return the study's open version, opening one if there is none; `opened_for`: why a later one is opened."""
    row = connection.execute(OPEN_JOB, (study,)).fetchone()
    if row is None:
        return _open_version(connection, study, now, opened_for)
    if row["state"] == JobState.WAITING:
        connection.execute(_COLLECT_AGAIN, {"job_id": row["job_id"], "now": to_text(now)})
    return OpenVersion(job_id=row["job_id"], version=row["version"])


def supersede_older(connection: Connection, study: str, heir: OpenVersion, now: datetime) -> None:
    """Let a version take over the images that older versions, not in work, left unanswered."""
    older = {"study": study, "version": heir.version, "now": to_text(now)}
    for row in connection.execute(SUPERSEDE_OLDER, older).fetchall():
        _hand_over(connection, study, OpenVersion(job_id=row["job_id"], version=row["version"]), heir, now)


def note_arrival(connection: Connection, job_id: int, now: datetime) -> None:
    """Begin the quiet time of a version again."""
    connection.execute(_NOTE_ARRIVAL, {"job_id": job_id, "now": to_text(now)})


def note_sender(connection: Connection, study: str, association: AssociationInfo, now: datetime) -> bool:
    """Remember who sent something of a study; tell whether this sender is new."""
    sender = {"study": study, "calling_ae": association.calling_ae, "called_ae": association.called_ae}
    return connection.execute(_NOTE_SENDER, sender | {"now": to_text(now)}).rowcount > 0


def reschedule(connection: Connection, job_id: int, settings: AssemblySettings) -> None:
    """Set when a collecting version is complete; a version in another state is left alone."""
    row = connection.execute(ASSEMBLY, (job_id,)).fetchone()
    if row is None:
        return
    first, last = to_time(row["first_instance_at"]), to_time(row["last_instance_at"])
    due = first + timedelta(seconds=settings.maximum_wait_s)
    if not row["is_open"]:
        due = min(due, last + timedelta(seconds=settings.quiet_s))
    connection.execute(_SCHEDULE, {"job_id": job_id, "due_at": to_text(due)})


def _open_version(connection: Connection, study: str, now: datetime, opened_for: OpenedFor) -> OpenVersion:
    row = connection.execute(NEW_JOB, {"study": study, "state": JobState.COLLECTING, "now": to_text(now)}).fetchone()
    opened = OpenVersion(job_id=row["job_id"], version=row["version"])
    reason = OpenedFor.NEW_STUDY if opened.version == 1 else opened_for
    record(connection, now, study, opened.version, EventKind.VERSION_OPENED, opened_for=reason)
    supersede_older(connection, study, opened, now)
    return opened


def _hand_over(connection: Connection, study: str, former: OpenVersion, heir: OpenVersion, now: datetime) -> None:
    """Make `heir` owe the answer to the images that `former` left unanswered."""
    connection.execute(TAKE_OVER, {"heir": heir.job_id, "former": former.job_id})
    record(connection, now, study, former.version, EventKind.SUPERSEDED, by_version=heir.version)


# A version as it is claimed

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

EXPECTED = f"""
SELECT job.job_id, job.study, job.version, job.attempts + 1 AS attempts, {JOB_HAS_OPEN_SENDER} AS is_open
FROM job JOIN instance ON instance.study = job.study AND instance.current = 1 AND instance.purged_at IS NULL
WHERE job.state = 'collecting'
GROUP BY job.job_id
HAVING MIN(instance.received_at) >= :since AND COUNT(*) <= :most_images
ORDER BY job.due_at
LIMIT :most
"""

_MOST_EXPECTED = 16
_MOST_IMAGES = 64


def read_job(connection: Connection, row: Row) -> Job:
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


def _read_expected(connection: Connection, since: datetime) -> tuple[ExpectedJob, ...]:
    """Return incomplete versions in the order in which they will be claimed; see `Inbox.expected`.

    There may be more; sixteen are enough to be ahead of the next claims. A study of more than 64 images is no study of
    radiographs and is not looked at before its claim.
    """
    parameters = {"since": to_text(since), "most": _MOST_EXPECTED, "most_images": _MOST_IMAGES}
    found = connection.execute(EXPECTED, parameters).fetchall()
    return tuple(ExpectedJob(job=read_job(connection, row), is_quiet=not row["is_open"]) for row in found)


# The queue of jobs

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

_COLLECTING = "SELECT job_id FROM job WHERE state = 'collecting'"

NEXT_DUE = "SELECT MIN(due_at) FROM job WHERE due_at IS NOT NULL"


class Inbox:
    """Received studies, until they are answered."""

    def __init__(
        self, database: Database, blobs: Blobs, settings: AssemblySettings, search: SearchIndex | None = None
    ) -> None:
        """`search`: the index in which answered studies are entered."""
        self._database, self._blobs, self._settings, self._search = database, blobs, settings, search
        self._clock = ClockWatch()

    def claim(self, now: datetime) -> Job | None:
        """Put the study in work that has been complete for longest and return it; None if none is complete.

        If the clock was set back since the last call, what was planned by the former time is due now.
        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            self._clock.check(connection, now)
            row = connection.execute(CLAIM, {"now": to_text(now)}).fetchone()
            if row is None:
                return None
            job = read_job(connection, row)
            facts = {"attempt": job.attempts, "instances": len(job.instances)}
            record(connection, now, job.study, job.version, EventKind.CLAIMED, **facts)
        return job

    def finish(
        self, job: Job, answer: StudyAnswer, route: Route, now: datetime, staged: Sequence[StagedBlob] = ()
    ) -> None:
        """Make the answer durable, queue it for its destinations and close the job: all or nothing.

        `staged`: the bytes of the results, in their order, if they are written beforehand. The caller discards them
        afterwards.

        A job that is no longer in work is left as it is, so finishing twice is finishing once. Without any destination
        the results stay in the store. If there are destinations and no route leads to one, the job is a dead letter;
        trying it again sends the results once a rule matches.

        Raises: DiskFull, StoreUnavailable; the job then stays in work, and the caller finishes or fails it.
        """
        written: dict[str, str] = {}
        replaced: list[str] = []
        try:
            self._write_results(answer, staged, written)
            with self._database.transaction() as connection:
                if not _close_answered(connection, job, answer, route, now):
                    log.warning("answer-too-late", extra={"study": job.study, "version": job.version})
                    replaced = list(written.values())
                    return
                blobs = tuple(self._present(written[result.ref.sop_instance], result) for result in answer.results)
                replaced = _write_answer(connection, job, answer, blobs, route, now)
                if self._search is not None:
                    self._search.note(connection, job.study, answer.subjects)
        except BaseException:
            replaced = list(written.values())
            raise
        finally:
            remove_unnamed(self._database, self._blobs, replaced)

    def fail(self, job: Job, cause: str, retry_at: datetime | None, now: datetime) -> None:
        """Put a job back until `retry_at`, or close it as a dead letter; `cause` carries no patient data.

        If a newer version has the study's images, the failed one is superseded by it instead. Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            self._end_attempt(connection, job.job_id, job.study, cause, retry_at, now)

    def recover(self, now: datetime, *, maximum_attempts: int) -> None:
        """Put back what a former run left open; the node calls this once, before it starts its loops.

        A claim that was interrupted counts as an attempt, so a study that ends the process each time becomes a dead
        letter after `maximum_attempts`.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            release_every_association(connection, now)
            for row in connection.execute(IN_WORK).fetchall():
                attempt = row["attempts"]
                record(connection, now, row["study"], row["version"], EventKind.INTERRUPTED, attempt=attempt)
                cause = f"the node stopped during attempt {attempt}"
                retry_at = now if attempt < maximum_attempts else None
                self._end_attempt(connection, row["job_id"], row["study"], cause, retry_at, now)
            for row in connection.execute(_COLLECTING).fetchall():
                reschedule(connection, row["job_id"], self._settings)
            recover_deliveries(connection, now)
            _plan_anew(connection, now)

    def next_due(self) -> datetime | None:
        """Return when the next study is due, if one is expected. Raises: StoreUnavailable."""
        with self._database.reading() as connection:
            return to_optional_time(connection.execute(NEXT_DUE).fetchone()[0])

    def expected(self, since: datetime) -> tuple[ExpectedJob, ...]:
        """Return incomplete versions all of whose images came after `since`, the one that is due first first.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return _read_expected(connection, since)

    def _write_results(self, answer: StudyAnswer, staged: Sequence[StagedBlob], written: dict[str, str]) -> None:
        """Make the bytes of results durable, and enter their blobs in `written` by SOP Instance UID.

        A result that the store has, with its bytes intact, is not written again: its first bytes stay, since a
        destination may have them.
        """
        with self._database.reading() as connection:
            known = {result.ref.sop_instance: _kept_blob(connection, result) for result in answer.results}
        for number, result in enumerate(answer.results):
            uid = result.ref.sop_instance
            name = known[uid]
            if name is None or not self._blobs.is_intact(name):
                name = self._blobs.write(result.part10, staged[number] if staged else None)
            written[uid] = name

    def _present(self, name: str, result: ResultInstance) -> str:
        """Return a blob of a result that is there; within a transaction, so that it cannot be purged meanwhile."""
        return name if self._blobs.exists(name) else self._blobs.write(result.part10)

    def _end_attempt(
        self,
        connection: Connection,
        job_id: int,
        study: str,
        cause: str,
        retry_at: datetime | None,
        now: datetime,
    ) -> None:
        """Supersede, put back or close a job in work whose attempt gave no answer."""
        parameters = {"job_id": job_id, "cause": shortened(cause), "now": to_text(now)}
        heir = connection.execute(OPEN_JOB, (study,)).fetchone()
        state = JobState.DEAD if heir is None else JobState.SUPERSEDED
        if heir is None and retry_at is not None:
            back = connection.execute(PUT_BACK, parameters | {"due_at": to_text(retry_at)}).fetchone()
            if back is not None:
                facts = {"cause": cause, "retry_in_s": round((retry_at - now).total_seconds())}
                record(connection, now, study, back["version"], EventKind.DEFERRED, **facts)
            return
        closed = connection.execute(CLOSE, parameters | {"state": state}).fetchone()
        if closed is None:
            return
        if heir is not None:
            former = OpenVersion(job_id=job_id, version=closed["version"])
            _hand_over(connection, study, former, OpenVersion(job_id=heir["job_id"], version=heir["version"]), now)
            return
        record(connection, now, study, closed["version"], EventKind.DEAD, cause=cause)
        count_end(connection, JobState.DEAD, now)


# The answer to a job, in the transaction that closes it

RESULT = "SELECT result_id, blob, purged_at, lost_at FROM result WHERE sop_instance = ?"

_ADD_RESULT = """
INSERT INTO result (study, series, sop_class, sop_instance, kind, prefix, transfer_syntax, blob, size_bytes,
    derived_from, created_at)
VALUES (:study, :series, :sop_class, :sop_instance, :kind, :prefix, :transfer_syntax, :blob, :size_bytes,
    :derived_from, :now)
RETURNING result_id
"""

_REPLACE_BYTES = """
UPDATE result SET blob = :blob, size_bytes = :size_bytes, purged_at = NULL, lost_at = NULL WHERE result_id = :result_id
"""

_LINK_RESULT = "INSERT INTO job_result (job_id, result_id) VALUES (?, ?) ON CONFLICT DO NOTHING"

_ADD_REJECTION = """
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


def _close_answered(connection: Connection, job: Job, answer: StudyAnswer, route: Route, now: datetime) -> bool:
    """Close a job in work with the state that its answer leads to, and count it; tell whether it was in work."""
    times = times_of_attempt(connection, job.job_id)
    if times is None:
        return False
    unrouted = bool(answer.results) and route.is_missing
    state = JobState.DEAD if unrouted else JobState.REJECTED if _is_rejected(answer) else JobState.DONE
    closing = {
        "job_id": job.job_id,
        "state": state,
        "cause": shortened(no_route(route.calling_aes)) if unrouted else None,
        "summary": json.dumps(summary_to_json(answer.summary), sort_keys=True),
        "now": to_text(now),
    }
    connection.execute(CLOSE_ANSWERED, closing)
    count_end(connection, state, now)
    count_answer(connection, job, answer, times, now)
    return True


def no_route(calling_aes: Sequence[str]) -> str:
    """Return why the results of a study from these AE titles have no destination."""
    titles = ", ".join(calling_aes)
    return f"no rule of delivery.routes or delivery.return_to_sender matches {titles}, and there is no default"


def _is_rejected(answer: StudyAnswer) -> bool:
    return bool(answer.rejections) and not (answer.results or answer.analysed)


def _write_answer(
    connection: Connection, job: Job, answer: StudyAnswer, blobs: Sequence[str], route: Route, now: datetime
) -> list[str]:
    """Write down the answer to a job; `blobs` name the bytes of its results, in their order.

    Returns blobs that results had before and do not need any more.
    """
    replaced: list[str] = []
    known = 0
    for result, blob in zip(answer.results, blobs, strict=True):
        former = connection.execute(RESULT, (result.ref.sop_instance,)).fetchone()
        known += former is not None
        if former is not None and former["blob"] != blob:
            replaced.append(former["blob"])
        result_id = _write_result(connection, job, result, blob, former, now)
        connection.execute(_LINK_RESULT, (job.job_id, result_id))
        for recipient in route.recipients:
            if recipient.wants(result.kind, result.prefix):
                queue_delivery(connection, job, result, result_id, recipient.name, now)
    for rejection in answer.rejections:
        uid, reason = rejection.source.sop_instance, rejection.reason.value
        row = {"job_id": job.job_id, "sop_instance": uid, "reason": reason, "detail": shortened(rejection.detail)}
        connection.execute(_ADD_REJECTION, row)
        facts = {"sop_instance": uid, "reason": reason, "detail": rejection.detail}
        record(connection, now, job.study, job.version, EventKind.IMAGE_REJECTED, **facts)
    _seal_fates(connection, job, answer, route, now)
    _record_answer(connection, job, answer, route, known, now)
    return replaced


def _kept_blob(connection: Connection, result: ResultInstance) -> str | None:
    """Return the blob that the store has of a result; None if it has none that can be used."""
    row = connection.execute(RESULT, (result.ref.sop_instance,)).fetchone()
    if row is None or row["purged_at"] is not None or row["lost_at"] is not None:
        return None
    return str(row["blob"])


def _write_result(
    connection: Connection, job: Job, result: ResultInstance, blob: str, former: Row | None, now: datetime
) -> int:
    """Write down one result and return its number; `former`: its row, if it was made before.

    The bytes of a former one are replaced only if they were purged or lost: a destination may have them.
    """
    if former is None:
        row = {
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
        return int(connection.execute(_ADD_RESULT, row).fetchone()["result_id"])
    result_id = int(former["result_id"])
    is_lost = former["lost_at"] is not None
    if is_lost or former["purged_at"] is not None or former["blob"] != blob:
        replacement = {"result_id": result_id, "blob": blob, "size_bytes": len(result.part10)}
        connection.execute(_REPLACE_BYTES, replacement)
    if is_lost:
        facts = {"result_kind": result.kind.value, "sop_instance": result.ref.sop_instance}
        record(connection, now, job.study, job.version, EventKind.RESULT_REPLACED, **facts)
        redeliver_lost(connection, result_id, former["lost_at"], now)
    return result_id


def _seal_fates(connection: Connection, job: Job, answer: StudyAnswer, route: Route, now: datetime) -> None:
    """Give every image of the job its fate. An image that the answer does not mention is a fault, and recorded as one.

    The answer of a dead letter without a route is still owed, so its analysed images keep having no fate.
    """
    rejected = {rejection.source.sop_instance for rejection in answer.rejections}
    answered = {uid for result in answer.results for uid in result.derived_from} | set(answer.analysed)
    for instance in job.instances:
        uid = instance.ref.sop_instance
        if uid in answered and uid not in rejected and route.is_missing:
            continue
        fate = "rejected" if uid in rejected else "answered" if uid in answered else "unmentioned"
        parameters = {"fate": fate, "job_id": job.job_id, "sop_instance": uid, "blob": instance.blob}
        connection.execute(SEAL, parameters | {"received_at": to_text(instance.received_at)})
        if fate == "unmentioned":
            record(connection, now, job.study, job.version, EventKind.IMAGE_UNMENTIONED, sop_instance=uid)
            log.error("image-unmentioned", extra={"study": job.study, "version": job.version, "instance": uid})


def _record_answer(
    connection: Connection, job: Job, answer: StudyAnswer, route: Route, known: int, now: datetime
) -> None:
    """Record what the answer is; `known`: how many of its results were made before."""
    rejected, results = len(answer.rejections), len(answer.results)
    if _is_rejected(answer):
        record(connection, now, job.study, job.version, EventKind.REJECTED, rejected_images=rejected)
        return
    facts = {"results": results, "rejected_images": rejected, "known_results": known or None}
    record(connection, now, job.study, job.version, EventKind.ANSWERED, **facts)
    if results and route.is_missing:
        unrouted = {"results": results, "calling_aes": list(route.calling_aes)}
        record(connection, now, job.study, job.version, EventKind.UNROUTED, **unrouted)
    elif results and not route.recipients:
        record(connection, now, job.study, job.version, EventKind.KEPT, results=results)


# The clock

_PLANNED_IN_FUTURE = "UPDATE job SET due_at = :now WHERE due_at > :now AND changed_at > :now"
_SENT_IN_FUTURE = "UPDATE delivery SET next_attempt_at = :now WHERE next_attempt_at > :now AND changed_at > :now"

_SET_BACK = timedelta(seconds=30)
"""Threads read the clock before they wait for each other, so it seems to go back a little all the time."""


class ClockWatch:
    """Notices that the clock was set back between two calls: what was planned by the former time would wait for it."""

    def __init__(self) -> None:
        self._latest: datetime | None = None

    def check(self, connection: Connection, now: datetime) -> None:
        """If the clock was set back, make due now what was planned by the former time."""
        if self._latest is not None and now < self._latest - _SET_BACK:
            log.warning("clock-set-back")
            _plan_anew(connection, now)
        self._latest = now


def _plan_anew(connection: Connection, now: datetime) -> None:
    """Make due now what was planned at a time that is still to come."""
    for statement in (_PLANNED_IN_FUTURE, _SENT_IN_FUTURE):
        connection.execute(statement, {"now": to_text(now)})
