"""What the store knows, for people: what waits and why, what happened to a study, and whether anything is missing.

What happened to a study, and where it stands, in sentences: for `cxrnode why` and for the page.
"""

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from dicomnode.domain.answer import RejectionReason, ResultKind
from dicomnode.domain.commitment import CommitmentState
from dicomnode.domain.delivery import DeliveryState
from dicomnode.domain.errors import UnknownStudy
from dicomnode.domain.job import JobState
from dicomnode.store.engine.sqlite import Database
from dicomnode.store.operator import Changed, OfStudy, Reanalysis, Selection, analyse_again, drop, retry
from dicomnode.store.row_mapping import EventKind, to_optional_time, to_time

JOB_ENTRY = """
SELECT job.*, (SELECT COUNT(*) FROM instance WHERE instance.study = job.study AND current = 1) AS instances FROM job
"""
JOBS_IN_STATE = JOB_ENTRY + "WHERE state = :state AND job_id > :after ORDER BY job_id LIMIT :limit"
JOBS_OF_STUDY = JOB_ENTRY + "WHERE study = ? ORDER BY version"

DELIVERY_ENTRY = """
SELECT delivery.*, result.study, result.kind, result.sop_instance, commitment.state AS commitment,
    commitment.last_error AS commitment_error, commitment.next_at AS commitment_next_at, (
    SELECT MIN(version) FROM job_result JOIN job USING (job_id) WHERE job_result.result_id = delivery.result_id
) AS version FROM delivery JOIN result USING (result_id) LEFT JOIN commitment USING (delivery_id)
"""
DELIVERIES_IN_STATE = (
    DELIVERY_ENTRY + "WHERE delivery.state = :state AND delivery_id > :after ORDER BY delivery_id LIMIT :limit"
)
DELIVERIES_OF_STUDY = DELIVERY_ENTRY + "WHERE result.study = ? ORDER BY delivery_id"

# The index of commitments by state leads to the few that are overdue.
UNCOMMITTED = (
    DELIVERY_ENTRY.replace("LEFT JOIN commitment", "JOIN commitment")
    + "WHERE commitment.state = 'overdue' AND delivery.state = 'delivered' ORDER BY delivery_id LIMIT ?"
)

REJECTIONS = """
SELECT version, sop_instance, reason, detail FROM rejection JOIN job USING (job_id)
WHERE study = ? ORDER BY version, sop_instance
"""

EVENTS = "SELECT at, study, version, kind, detail FROM event WHERE study = ? ORDER BY event_id"

KNOWN = "SELECT 1 FROM job WHERE study = ? LIMIT 1"

# One row per received instance; the order of the cases is the order of precedence.
BALANCE = """
WITH deliveries AS (
    SELECT job_result.job_id,
        SUM(delivery.state IN ('waiting', 'sending')) AS pending,
        SUM(delivery.state = 'dead') AS dead,
        SUM(delivery.state = 'dropped') AS dropped
    FROM job_result JOIN delivery USING (result_id) GROUP BY job_result.job_id
)
SELECT CASE
    WHEN instance.fate = 'rejected' THEN 'rejected'
    WHEN instance.fate = 'answered' THEN CASE
        WHEN deliveries.pending > 0 THEN 'pending'
        WHEN deliveries.dead > 0 THEN 'dead'
        WHEN deliveries.dropped > 0 THEN 'dropped'
        ELSE 'answered' END
    WHEN instance.fate = 'unmentioned' THEN 'unaccounted'
    WHEN instance.current = 0 THEN 'replaced'
    WHEN instance.purged_at IS NOT NULL THEN 'dropped'
    WHEN job.state IN ('collecting', 'waiting', 'working') THEN 'pending'
    WHEN job.state IN ('dead', 'dropped') THEN job.state
    ELSE 'unaccounted' END AS fate, COUNT(*) AS count
FROM instance JOIN job USING (job_id) LEFT JOIN deliveries USING (job_id)
GROUP BY 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEvent:
    """Something that happened to a study; `detail` carries no patient data."""

    at: datetime
    study: str
    version: int | None
    kind: EventKind
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEntry:
    """One version of one study's answer; `instances` counts what the study holds now."""

    job_id: int
    study: str
    version: int
    state: JobState
    instances: int
    attempts: int
    due_at: datetime | None
    last_error: str | None
    first_instance_at: datetime
    changed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryEntry:
    """One result and one destination. `sent_*`: the fallback that was stored in the result's place, if one was.

    `commitment`: how far the destination has answered for keeping it, where it is asked to.
    """

    delivery_id: int
    study: str
    version: int
    destination: str
    kind: ResultKind
    sop_instance: str
    state: DeliveryState
    attempts: int
    next_attempt_at: datetime | None
    last_error: str | None
    last_status: int | None
    sent_sop_class: str | None
    sent_sop_instance: str | None
    commitment: CommitmentState | None
    commitment_error: str | None
    commitment_next_at: datetime | None
    created_at: datetime
    changed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionEntry:
    """One image that a version of the answer does not analyse."""

    version: int
    sop_instance: str
    reason: RejectionReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Where every received instance stands: in exactly one of these.

    Pending: an answer is owed, or is on its way. Answered: its results are delivered, or kept for want of a
    destination. Replaced: newer content came before it was answered. Dropped: an operator gave it up, and it may have
    been purged since. Unaccounted is a fault, and 0.
    """

    pending: int = 0
    answered: int = 0
    rejected: int = 0
    dead: int = 0
    dropped: int = 0
    replaced: int = 0
    unaccounted: int = 0


class Ledger:
    """The store's books, and the operator's actions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def explain(self, study: str) -> tuple[LedgerEvent, ...]:
        """Return everything that happened to a study, in order.

        Raises: UnknownStudy, StoreUnavailable.
        """
        with self._database.reading() as connection:
            rows = connection.execute(EVENTS, (study,)).fetchall()
        if not rows:
            raise UnknownStudy(f"the store holds nothing of study {study}")
        return tuple(_to_event(row) for row in rows)

    def jobs(self, states: Collection[JobState], *, limit: int = 100, after: int = 0) -> tuple[JobEntry, ...]:
        """Return a page of the jobs in these states, oldest first; `after` is the last job_id of the page before."""
        with self._database.reading() as connection:
            rows = _page(connection, JOBS_IN_STATE, states, limit, after)
        return tuple(sorted(map(_to_job, rows), key=lambda entry: entry.job_id)[:limit])

    def deliveries(
        self, states: Collection[DeliveryState], *, limit: int = 100, after: int = 0
    ) -> tuple[DeliveryEntry, ...]:
        """Return a page of the deliveries in these states, oldest first; `after` is the last id of the page before."""
        with self._database.reading() as connection:
            rows = _page(connection, DELIVERIES_IN_STATE, states, limit, after)
        return tuple(sorted(map(_to_delivery, rows), key=lambda entry: entry.delivery_id)[:limit])

    def uncommitted(self, *, limit: int = 100) -> tuple[DeliveryEntry, ...]:
        """Return the deliveries that a destination has not answered for in time, oldest first."""
        with self._database.reading() as connection:
            return tuple(_to_delivery(row) for row in connection.execute(UNCOMMITTED, (limit,)).fetchall())

    def jobs_of(self, study: str) -> tuple[JobEntry, ...]:
        """Return every version of a study's answer."""
        with self._database.reading() as connection:
            return tuple(_to_job(row) for row in connection.execute(JOBS_OF_STUDY, (study,)).fetchall())

    def deliveries_of(self, study: str) -> tuple[DeliveryEntry, ...]:
        """Return every delivery of a study's results."""
        with self._database.reading() as connection:
            return tuple(_to_delivery(row) for row in connection.execute(DELIVERIES_OF_STUDY, (study,)).fetchall())

    def rejections_of(self, study: str) -> tuple[RejectionEntry, ...]:
        """Return every rejected image of a study, per version."""
        with self._database.reading() as connection:
            rows = connection.execute(REJECTIONS, (study,)).fetchall()
        return tuple(
            RejectionEntry(
                version=row["version"],
                sop_instance=row["sop_instance"],
                reason=RejectionReason(row["reason"]),
                detail=row["detail"],
            )
            for row in rows
        )

    def balance(self) -> Balance:
        """Return where every received instance stands. Reads the whole store."""
        with self._database.reading() as connection:
            return Balance(**{row["fate"]: row["count"] for row in connection.execute(BALANCE).fetchall()})

    def retry(self, selection: Selection, now: datetime) -> Changed:
        """Make selected work due now: what waits, is dead, or was dropped.

        Raises: UnknownStudy, StoreUnavailable.
        """
        with self._database.transaction() as connection:
            _require_known(connection, selection)
            return retry(connection, selection, now)

    def drop(self, selection: Selection, now: datetime) -> Changed:
        """Give up selected work that has not ended well; its records stay, and `retry` brings it back.

        Raises: UnknownStudy, StoreUnavailable.
        """
        with self._database.transaction() as connection:
            _require_known(connection, selection)
            return drop(connection, selection, now)

    def analyse_again(self, study: str, by: str, now: datetime) -> Reanalysis:
        """Open a new version of a study's answer, if the last one is finished and its images are kept.

        `by`: who asks, and where, for the ledger.

        Raises: UnknownStudy, StoreUnavailable.
        """
        with self._database.transaction() as connection:
            _require_known(connection, OfStudy(study=study))
            return analyse_again(connection, study, by, now)


def _require_known(connection: sqlite3.Connection, selection: Selection) -> None:
    if isinstance(selection, OfStudy) and connection.execute(KNOWN, (selection.study,)).fetchone() is None:
        raise UnknownStudy(f"the store holds nothing of study {selection.study}")


def _page(
    connection: sqlite3.Connection, statement: str, states: Collection[str], limit: int, after: int
) -> list[sqlite3.Row]:
    """Return up to `limit` rows per state: one index walk each, where one query over all would have to sort."""
    return [
        row
        for state in states
        for row in connection.execute(statement, {"state": state, "after": after, "limit": limit}).fetchall()
    ]


def _to_event(row: sqlite3.Row) -> LedgerEvent:
    return LedgerEvent(
        at=to_time(row["at"]),
        study=row["study"],
        version=row["version"],
        kind=EventKind(row["kind"]),
        detail=row["detail"],
    )


def _to_job(row: sqlite3.Row) -> JobEntry:
    return JobEntry(
        job_id=row["job_id"],
        study=row["study"],
        version=row["version"],
        state=JobState(row["state"]),
        instances=row["instances"],
        attempts=row["attempts"],
        due_at=to_optional_time(row["due_at"]),
        last_error=row["last_error"],
        first_instance_at=to_time(row["first_instance_at"]),
        changed_at=to_time(row["changed_at"]),
    )


def _to_delivery(row: sqlite3.Row) -> DeliveryEntry:
    return DeliveryEntry(
        delivery_id=row["delivery_id"],
        study=row["study"],
        version=row["version"],
        destination=row["destination"],
        kind=ResultKind(row["kind"]),
        sop_instance=row["sop_instance"],
        state=DeliveryState(row["state"]),
        attempts=row["attempts"],
        next_attempt_at=to_optional_time(row["next_attempt_at"]),
        last_error=row["last_error"],
        last_status=row["last_status"],
        sent_sop_class=row["sent_sop_class"],
        sent_sop_instance=row["sent_sop_instance"],
        commitment=None if row["commitment"] is None else CommitmentState(row["commitment"]),
        commitment_error=row["commitment_error"],
        commitment_next_at=to_optional_time(row["commitment_next_at"]),
        created_at=to_time(row["created_at"]),
        changed_at=to_time(row["changed_at"]),
    )


_SENTENCES = {
    EventKind.RECEIVED: "An image was received: {}.",
    EventKind.DUPLICATE: "An image was received again; nothing changes: {}.",
    EventKind.OWN_RESULT_RETURNED: "A result of this node came back and was left alone: {}.",
    EventKind.REPLACED: "An image was received again with other content: {}.",
    EventKind.REFUSED: "An image was refused: {}.",
    EventKind.VERSION_OPENED: "Version {version} of the answer was begun: {}.",
    EventKind.CLAIMED: "The study was complete; its analysis began: {}.",
    EventKind.INTERRUPTED: "The analysis was interrupted: {}.",
    EventKind.SUPERSEDED: "Version {version} was superseded: {}.",
    EventKind.DEFERRED: "The analysis failed and will be tried again: {}.",
    EventKind.DEAD: "The analysis failed for good: {}.",
    EventKind.IMAGE_REJECTED: "An image was not analysed: {}.",
    EventKind.IMAGE_UNMENTIONED: "An image was left out of the answer, which is a fault: {}.",
    EventKind.ANSWERED: "Version {version} was answered: {}.",
    EventKind.REJECTED: "Version {version} has nothing to report: {}.",
    EventKind.KEPT: "There is nowhere to send results: {}.",
    EventKind.UNROUTED: "The results have nowhere to go: {}.",
    EventKind.QUEUED: "A result is to be delivered: {}.",
    EventKind.DELIVERED: "A result was delivered: {}.",
    EventKind.DELIVERY_DEFERRED: "A delivery failed and will be tried again: {}.",
    EventKind.DELIVERY_INTERRUPTED: "A delivery was interrupted: {}.",
    EventKind.DELIVERY_DEAD: "A delivery failed for good: {}.",
    EventKind.COMMITMENT_REQUESTED: "A destination was asked whether it keeps a result: {}.",
    EventKind.COMMITMENT_DEFERRED: "A destination could not be asked whether it keeps a result: {}.",
    EventKind.COMMITMENT_OVERDUE: "A destination has not answered in time whether it keeps a result: {}.",
    EventKind.COMMITMENT_FAILED: "A destination does not keep a result: {}.",
    EventKind.COMMITTED: "A destination answered for keeping a result: {}.",
    EventKind.RETRIED: "It was tried again: {}.",
    EventKind.DROPPED: "It was given up: {}.",
    EventKind.PURGED: "Its bytes were removed by the rules of retention: {}.",
}


def sentence(event: LedgerEvent) -> str:
    """Return what happened."""
    return _SENTENCES[event.kind].format(event.detail, version=event.version)


def conclusion(jobs: tuple[JobEntry, ...], deliveries: tuple[DeliveryEntry, ...]) -> str:
    """Return the study's state in one sentence."""
    if not jobs:
        return "The node holds no image of this study that it owes an answer for."
    newest = max(jobs, key=lambda entry: entry.version)
    if newest.state is JobState.WAITING and not newest.attempts and newest.last_error is None:
        return "It waits for its analysis, which an operator asked for."
    if newest.state is not JobState.DONE:
        return _UNANSWERED[newest.state].format(reason=newest.last_error or "no reason recorded")
    if not deliveries:
        return "It is answered; there is no destination, so the results are in the store."
    open_ones = [entry for entry in deliveries if entry.state is not DeliveryState.DELIVERED]
    if not open_ones:
        return "It is answered and everything is delivered." + _commitments(deliveries)
    reasons = sorted(
        {f"{entry.destination} {entry.state.value}: {entry.last_error or 'not tried yet'}" for entry in open_ones}
    )
    return f"It is answered; {len(open_ones)} of {len(deliveries)} deliveries are open ({'; '.join(reasons)})."


def _commitments(deliveries: tuple[DeliveryEntry, ...]) -> str:
    """Return a sentence on what destinations have answered for, or nothing where none is asked."""
    asked = [entry for entry in deliveries if entry.commitment is not None]
    if not asked:
        return ""
    if all(entry.commitment is CommitmentState.COMMITTED for entry in asked):
        return " The destinations that were asked to commit themselves have done so."
    late = sum(entry.commitment is CommitmentState.OVERDUE for entry in asked)
    waiting = sum(entry.commitment is not CommitmentState.COMMITTED for entry in asked)
    return f" Whether they are kept is not yet answered for {waiting} of {len(asked)}, {late} of them overdue."


_UNANSWERED = {
    JobState.COLLECTING: "It is still being received, or its quiet time has not passed.",
    JobState.WAITING: "Its analysis waits for the next attempt: {reason}.",
    JobState.WORKING: "It is being analysed now.",
    JobState.REJECTED: "It was not analysed: every image was rejected, as said above.",
    JobState.DEAD: "It failed for good: {reason}. `cxrnode queue retry` tries again.",
    JobState.DROPPED: "An operator dropped it. `cxrnode queue retry` brings it back.",
    JobState.SUPERSEDED: "A newer version took it over.",
}
