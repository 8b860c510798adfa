"""Writing down an answer, in the transaction that closes its job: results, deliveries, rejections, and every fate."""

import json
import logging
import sqlite3
from collections.abc import Sequence
from datetime import datetime

from dicomnode.domain.job import Job, JobState, ResultInstance, StudyAnswer
from dicomnode.domain.routing import Route
from dicomnode.store.rows import EventKind, record, shortened, to_text
from dicomnode.store.tallies import tally_answer, tally_end, times_of_attempt

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
        "summary": json.dumps(answer.summary, sort_keys=True),
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
