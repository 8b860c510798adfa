"""The ledger, for people: what waits and why, what happened to a study, and whether every image is accounted for.

It reads in this order: the entries and the `Ledger` that returns them; then the story of a study in sentences, made of
the facts of its events when `cxrnode why` or the page shows them.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dicomnode.domain.answer import RejectionReason, ResultKind
from dicomnode.domain.commitment import CommitmentState
from dicomnode.domain.delivery import DeliveryState
from dicomnode.domain.errors import UnknownStudy
from dicomnode.domain.job import JobState
from dicomnode.store.engine import Connection, Database, Row
from dicomnode.store.events import EventKind, LedgerEvent, OpenedFor, to_event
from dicomnode.store.jobs import no_route
from dicomnode.store.operator import Changed, OfStudy, Reanalysis, Selection, analyse_again, drop, retry
from dicomnode.store.row_mapping import to_optional_time, to_time

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

EVENTS = "SELECT at, study, version, kind, facts, former_text FROM event WHERE study = ? ORDER BY event_id"

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
class JobEntry:
    """One version of one study's answer; `instances` is how many images the study has now."""

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
    """One result and one destination. `sent_*`: the instance that was stored in the result's place, if one was.

    `commitment`: the state of its Storage Commitment; None where the destination is not asked for it.
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
    """How many received instances have which fate; each instance has exactly one.

    Pending: an answer is owed, or is on its way. Answered: its results are delivered, or are kept because there is no
    destination. Replaced: newer content came before it was answered. Dropped: an operator gave it up; it may have been
    purged since. Unaccounted is a fault and must be 0.
    """

    pending: int = 0
    answered: int = 0
    rejected: int = 0
    dead: int = 0
    dropped: int = 0
    replaced: int = 0
    unaccounted: int = 0


class Ledger:
    """Reads the ledger, and does what operators ask for."""

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
        return tuple(to_event(row) for row in rows)

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
        """Return the deliveries whose Storage Commitment is overdue, oldest first."""
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
        """Return how many received instances have which fate. Reads the whole store."""
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


def _require_known(connection: Connection, selection: Selection) -> None:
    if isinstance(selection, OfStudy) and connection.execute(KNOWN, (selection.study,)).fetchone() is None:
        raise UnknownStudy(f"the store holds nothing of study {selection.study}")


def _page(connection: Connection, statement: str, states: Collection[str], limit: int, after: int) -> list[Row]:
    """Return up to `limit` rows per state: one index walk each, where one query over all would have to sort."""
    return [
        row
        for state in states
        for row in connection.execute(statement, {"state": state, "after": after, "limit": limit}).fetchall()
    ]


def _to_job(row: Row) -> JobEntry:
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


def _to_delivery(row: Row) -> DeliveryEntry:
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


# The story of a study

Facts = Mapping[str, Any]


def sentence(event: LedgerEvent) -> str:
    """Return a sentence that says what happened."""
    return _SENTENCES[event.kind].format(describe(event), version=event.version)


def describe(event: LedgerEvent) -> str:
    """Return what is particular to an event: its facts in words, without the sentence around them."""
    if event.former_text is not None:
        return event.former_text
    return _DESCRIPTIONS[event.kind](event.facts)


_SENTENCES = {
    EventKind.RECEIVED: "An image was received: {}.",
    EventKind.DUPLICATE: "An image was received again; nothing changes: {}.",
    EventKind.OWN_RESULT_RETURNED: "A result of this node was received and left alone: {}.",
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
    EventKind.KEPT: "There is no destination for the results: {}.",
    EventKind.UNROUTED: "No destination was found for the results: {}.",
    EventKind.QUEUED: "A result is to be delivered: {}.",
    EventKind.DELIVERED: "A result was delivered: {}.",
    EventKind.DELIVERY_DEFERRED: "A delivery failed and will be tried again: {}.",
    EventKind.DELIVERY_INTERRUPTED: "A delivery was interrupted: {}.",
    EventKind.DELIVERY_DEAD: "A delivery failed for good: {}.",
    EventKind.RESULT_REPLACED: "A result whose bytes were lost was made again: {}.",
    EventKind.COMMITMENT_REQUESTED: "Storage Commitment was requested: {}.",
    EventKind.COMMITMENT_DEFERRED: "Storage Commitment could not be requested: {}.",
    EventKind.COMMITMENT_OVERDUE: "Storage Commitment was not reported in time: {}.",
    EventKind.COMMITMENT_FAILED: "A destination does not commit itself to a result: {}.",
    EventKind.COMMITTED: "A destination committed itself to a result: {}.",
    EventKind.RETRIED: "It was tried again: {}.",
    EventKind.DROPPED: "It was given up: {}.",
    EventKind.PURGED: "Its bytes were removed by the rules of retention: {}.",
    EventKind.WRITTEN_OFF: "Damaged or missing bytes were written off: {}.",
}


def _arrival(how: str) -> Callable[[Facts], str]:
    return lambda facts: f"{facts['sop_instance']}{how} from {facts['calling_ae']} at {facts['peer_address']}"


def _received(facts: Facts) -> str:
    return _arrival(" came again after it was purged" if facts.get("after_purge") else " came")(facts)


def _version_opened(facts: Facts) -> str:
    reasons = {
        OpenedFor.NEW_STUDY: "the study is new",
        OpenedFor.LATE_IMAGE: "an image arrived after the former version was taken up",
        OpenedFor.NEW_SENDER: "another peer sent the study",
        OpenedFor.LOST_RESULT: "a result that is not delivered yet was lost",
        OpenedFor.OPERATOR: f"{facts.get('asked_by')} asked for another analysis",
    }
    return reasons[OpenedFor(facts["opened_for"])]


def _answered(facts: Facts) -> str:
    known = facts.get("known_results")
    again = f"; {known} of the results were made before, and go only where they have not been" if known else ""
    return f"{facts['results']} result(s), {facts['rejected_images']} image(s) rejected{again}"


def _delivery(facts: Facts, preposition: str = "to") -> str:
    kind = f"{facts['result_kind']} " if "result_kind" in facts else ""
    return f"{kind}{facts['sop_instance']} {preposition} {facts['destination']}"


def _delivered(facts: Facts) -> str:
    warned = f", with warning {facts['warning']:04X}H" if "warning" in facts else ""
    sent = f", as {facts['sent_sop_class']} {facts['sent_sop_instance']}" if "sent_sop_instance" in facts else ""
    return f"{_delivery(facts)}: stored{warned}{sent}"


def _delivery_dead(facts: Facts) -> str:
    given_up = f"; given up after {facts['given_up_after']} attempt(s)" if "given_up_after" in facts else ""
    return f"{_delivery(facts)}: {facts['cause']}{given_up}"


def _delivery_deferred(facts: Facts) -> str:
    attempt, cause, retry_in_s = facts["attempt"], facts["cause"], facts["retry_in_s"]
    return f"{_delivery(facts)}: attempt {attempt}: {cause}; next attempt in {retry_in_s} s"


def _commitment_deferred(facts: Facts) -> str:
    again = "given up" if facts["given_up"] else "to be asked again"
    return f"{_delivery(facts, 'at')}: {facts['cause']}; {again}"


def _commitment_failed(facts: Facts) -> str:
    again = "given up" if facts.get("given_up") else f"it is sent again in {facts['retry_in_s']} s"
    return f"{_delivery(facts, 'at')}: {facts['cause']}; {again}"


def _operators(what: str) -> Callable[[Facts], str]:
    def described(facts: Facts) -> str:
        if "sop_instance" in facts:
            return f"an operator {what} {_delivery(facts)}"
        return f"an operator {what} it; it was {facts['former_state']}"

    return described


def _purged(facts: Facts) -> str:
    pending = "; audit messages about it are still to be sent, and will not name the patient"
    return (
        f"the bytes of {facts['files']} {facts['what']} were removed, {facts['days']:g} day(s) after the study was "
        f"settled{pending if facts.get('audit_pending') else ''}"
    )


_DESCRIPTIONS: Mapping[EventKind, Callable[[Facts], str]] = {
    EventKind.RECEIVED: _received,
    EventKind.DUPLICATE: _arrival(" came again, unchanged,"),
    EventKind.OWN_RESULT_RETURNED: _arrival(", a result of this node, came"),
    EventKind.REPLACED: _arrival(" came again with other content"),
    EventKind.REFUSED: lambda facts: f"{facts['sop_instance']} is already held in study {facts['held_in_study']}",
    EventKind.VERSION_OPENED: _version_opened,
    EventKind.CLAIMED: lambda facts: f"attempt {facts['attempt']}, {facts['instances']} instance(s)",
    EventKind.INTERRUPTED: lambda facts: f"the node stopped during attempt {facts['attempt']}",
    EventKind.SUPERSEDED: lambda facts: f"version {facts['by_version']} takes over its images",
    EventKind.DEFERRED: lambda facts: f"{facts['cause']}; next attempt in {facts['retry_in_s']} s",
    EventKind.DEAD: lambda facts: str(facts["cause"]),
    EventKind.IMAGE_REJECTED: lambda facts: f"{facts['sop_instance']}: {facts['reason']}: {facts['detail']}",
    EventKind.IMAGE_UNMENTIONED: lambda facts: f"{facts['sop_instance']} is neither in a result nor rejected",
    EventKind.ANSWERED: _answered,
    EventKind.REJECTED: lambda facts: f"all {facts['rejected_images']} image(s) were rejected",
    EventKind.KEPT: lambda facts: f"{facts['results']} result(s) stay in the store: no destination is configured",
    EventKind.UNROUTED: lambda facts: (
        f"{facts['results']} result(s) stay in the store: {no_route(facts['calling_aes'])}"
    ),
    EventKind.QUEUED: lambda facts: _delivery(facts, "for"),
    EventKind.DELIVERED: _delivered,
    EventKind.DELIVERY_DEFERRED: _delivery_deferred,
    EventKind.DELIVERY_INTERRUPTED: lambda facts: (
        f"{_delivery(facts)}: the node stopped during attempt {facts['attempt']}"
    ),
    EventKind.DELIVERY_DEAD: _delivery_dead,
    EventKind.RESULT_REPLACED: lambda facts: f"{facts['result_kind']} {facts['sop_instance']}",
    EventKind.COMMITMENT_REQUESTED: lambda facts: (
        f"{_delivery(facts, 'at')}: asked in transaction {facts['transaction_uid']}"
    ),
    EventKind.COMMITMENT_DEFERRED: _commitment_deferred,
    EventKind.COMMITMENT_OVERDUE: lambda facts: f"{_delivery(facts, 'at')}: no report in time",
    EventKind.COMMITMENT_FAILED: _commitment_failed,
    EventKind.COMMITTED: lambda facts: f"{_delivery(facts, 'at')}: the destination keeps it",
    EventKind.RETRIED: _operators("asked for another try of"),
    EventKind.DROPPED: _operators("dropped"),
    EventKind.PURGED: _purged,
    EventKind.WRITTEN_OFF: lambda facts: (
        f"blob {facts['blob'][:12]}, whose bytes no answer and no delivery needs any more"
    ),
}


def conclusion(jobs: tuple[JobEntry, ...], deliveries: tuple[DeliveryEntry, ...]) -> str:
    """Return in one sentence how far a study has come."""
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
        return " The destinations that were asked for Storage Commitment have committed themselves."
    late = sum(entry.commitment is CommitmentState.OVERDUE for entry in asked)
    waiting = sum(entry.commitment is not CommitmentState.COMMITTED for entry in asked)
    return f" Storage Commitment is not reported yet for {waiting} of {len(asked)}, {late} of them overdue."


_UNANSWERED = {
    JobState.COLLECTING: "It is still being received, or its quiet time has not passed.",
    JobState.WAITING: "Its analysis waits for the next attempt: {reason}.",
    JobState.WORKING: "It is being analysed now.",
    JobState.REJECTED: "It was not analysed: every image was rejected.",
    JobState.DEAD: "It failed for good: {reason}. `cxrnode queue retry` tries again.",
    JobState.DROPPED: "An operator dropped it. `cxrnode queue retry` brings it back.",
    JobState.SUPERSEDED: "A newer version took it over.",
}
