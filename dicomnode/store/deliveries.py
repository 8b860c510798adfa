"""Deliveries: one result on its way to one destination, from the answer that queues it to its outcome.

Destinations do not wait for each other: every delivery has its own attempts and its own next time. A claimed delivery
is `sending` until its outcome is recorded or the node starts again.

A result whose bytes are missing or damaged cannot be delivered: its deliveries are dead letters, and the result is
marked as lost. The next answer that contains the same result replaces the bytes and has them delivered.
"""

import logging
from datetime import datetime, timedelta

from dicomnode.domain.answer import ResultInstance
from dicomnode.domain.delivery import Accepted, Delivery, DeliveryState, NoAnswer, Refused, RetryPolicy, StoreOutcome
from dicomnode.domain.errors import StoreUnavailable
from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.job import Job
from dicomnode.store.blobs.local import Blobs
from dicomnode.store.commitments import begin_commitment
from dicomnode.store.counters import count_attempt
from dicomnode.store.engine import Connection, Database
from dicomnode.store.events import EventKind, record
from dicomnode.store.row_mapping import shortened, to_delivery, to_optional_time, to_text, to_time

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 3600.0
"""A destination that asks for a longer pause (Retry-After) is tried again after this time."""

LOST_RESULT = (
    "the bytes of the result are missing or damaged; "
    "`cxrnode queue retry` makes the result again from the study's images"
)

_ADD = """
INSERT INTO delivery (result_id, destination, state, next_attempt_at, created_at, waiting_since, changed_at)
VALUES (:result_id, :destination, 'waiting', :now, :now, :now, :now)
ON CONFLICT (result_id, destination) DO NOTHING
"""

CLAIM = """
UPDATE delivery SET state = 'sending', attempts = attempts + 1, next_attempt_at = NULL,
    retry_requested_at = NULL, changed_at = :now
WHERE delivery_id IN (
    SELECT delivery_id FROM delivery
    WHERE destination = :destination AND next_attempt_at <= :now
    ORDER BY next_attempt_at, delivery_id
    LIMIT :limit
)
RETURNING delivery_id
"""

CLAIMED = """
SELECT delivery.*, result.study, result.series, result.sop_class, result.sop_instance, result.kind,
    result.transfer_syntax, result.blob
FROM delivery JOIN result USING (result_id)
WHERE delivery.delivery_id = ?
"""

VERSION = """
SELECT MIN(job.version) AS version FROM delivery JOIN job_result USING (result_id) JOIN job USING (job_id)
WHERE delivery.delivery_id = ?
"""

_DELIVERED = """
UPDATE delivery SET state = 'delivered', last_error = NULL, last_status = :status, sent_sop_class = :sent_sop_class,
    sent_sop_instance = :sent_sop_instance, changed_at = :now
WHERE delivery_id = :delivery_id AND state = 'sending'
"""

_DEAD = """
UPDATE delivery SET state = 'dead', last_error = :cause, last_status = :status, changed_at = :now
WHERE delivery_id = :delivery_id AND state = 'sending'
"""

_DEFERRED = """
UPDATE delivery SET state = 'waiting', next_attempt_at = :next_attempt_at, last_error = :cause, last_status = :status,
    changed_at = :now
WHERE delivery_id = :delivery_id AND state = 'sending'
"""

SENDING = """
SELECT delivery.delivery_id, delivery.destination, delivery.attempts, result.study, result.sop_instance,
    result.kind
FROM delivery JOIN result USING (result_id) WHERE delivery.state = 'sending'
"""

_RECOVERED = """
UPDATE delivery SET state = 'waiting', next_attempt_at = :now, last_error = :cause, changed_at = :now
WHERE delivery_id = :delivery_id AND state = 'sending'
"""

# A delivery that is sending changed last when it was claimed.
_WAITING_SINCE = "SELECT waiting_since, changed_at FROM delivery WHERE delivery_id = ? AND state = 'sending'"

RETRY_REQUESTED = """
SELECT 1 FROM delivery WHERE destination = :destination AND next_attempt_at IS NOT NULL AND retry_requested_at > :since
LIMIT 1
"""

_MARK_LOST = "UPDATE result SET lost_at = COALESCE(lost_at, :now) WHERE sop_instance = :sop_instance"

# A delivery that failed for another reason did so before the result was lost.
_REDELIVER = """
UPDATE delivery SET state = 'waiting', next_attempt_at = :now, waiting_since = :now, attempts = 0, changed_at = :now
WHERE result_id = :result_id AND state = 'dead' AND changed_at >= :lost_at
"""

# A delivery that an operator wants retried is due at once.
_POSTPONE = """
UPDATE delivery SET next_attempt_at = :until
WHERE destination = :destination AND next_attempt_at < :until AND retry_requested_at IS NULL
"""

# What the destination refused with a status keeps its own delay.
_BRING_FORWARD = """
UPDATE delivery SET next_attempt_at = :now
WHERE destination = :destination AND next_attempt_at > :now AND last_status IS NULL
"""

NEXT_DUE = "SELECT MIN(next_attempt_at) FROM delivery WHERE destination = ? AND next_attempt_at IS NOT NULL"


def queue_delivery(
    connection: Connection, job: Job, result: ResultInstance, result_id: int, destination: str, now: datetime
) -> None:
    """Queue a result for a destination, in the transaction that writes it; one that is queued already stays."""
    parameters = {"result_id": result_id, "destination": destination, "now": to_text(now)}
    if connection.execute(_ADD, parameters).rowcount:
        facts = {"result_kind": result.kind.value, "sop_instance": result.ref.sop_instance, "destination": destination}
        record(connection, now, job.study, job.version, EventKind.QUEUED, **facts)


class Outbox:
    """Results on their way, per destination."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database, self._blobs = database, blobs

    def claim(self, destination: str, limit: int, now: datetime) -> tuple[Delivery, ...]:
        """Take up to `limit` deliveries that are due at a destination, the longest due first, and mark them as sending.

        Raises: StoreUnavailable.
        """
        parameters = {"destination": destination, "limit": limit, "now": to_text(now)}
        with self._database.transaction() as connection:
            claimed = sorted(row["delivery_id"] for row in connection.execute(CLAIM, parameters).fetchall())
            rows = [connection.execute(CLAIMED, (delivery_id,)).fetchone() for delivery_id in claimed]
        return tuple(to_delivery(row) for row in rows)

    def read(self, delivery: Delivery) -> bytes:
        """Return the Part 10 bytes to be sent, verified.

        Raises: BlobDamaged, StoreUnavailable.
        """
        return self._blobs.read(delivery.blob)

    def record(
        self,
        delivery: Delivery,
        outcome: StoreOutcome,
        now: datetime,
        policy: RetryPolicy,
        randomness: float,
        sent_as: InstanceRef | None = None,
        commit_within_s: float | None = None,
    ) -> DeliveryState:
        """Write down the outcome of an attempt and return the state that follows.

        `sent_as`: the instance that was sent in the result's place, if one was. `commit_within_s`: the destination is
        asked for Storage Commitment and has this time to answer. A delivery that is no longer sending is left as it is.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            row = connection.execute(_WAITING_SINCE, (delivery.delivery_id,)).fetchone()
            if row is None:
                log.warning("outcome-too-late", extra={"delivery": delivery.delivery_id})
                return DeliveryState.DROPPED
            count_attempt(connection, delivery, outcome, to_time(row["changed_at"]), now)
            if isinstance(outcome, Accepted):
                self._delivered(connection, delivery, outcome, sent_as, now)
                if commit_within_s is not None:
                    begin_commitment(connection, delivery, sent_as or delivery.ref, commit_within_s, now)
                return DeliveryState.DELIVERED
            age_s = (now - to_time(row["waiting_since"])).total_seconds()
            return self._not_delivered(connection, delivery, outcome, now, policy, randomness, age_s)

    def next_due(self, destination: str) -> datetime | None:
        """Return when the next delivery to a destination is due; None if none waits.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return to_optional_time(connection.execute(NEXT_DUE, (destination,)).fetchone()[0])

    def bring_forward(self, destination: str, now: datetime) -> None:
        """Make deliveries due now that wait for a destination which has answered again. Raises: StoreUnavailable."""
        with self._database.transaction() as connection:
            connection.execute(_BRING_FORWARD, {"destination": destination, "now": to_text(now)})

    def postpone(self, destination: str, until: datetime) -> None:
        """Make no delivery due before its destination is tried again. Raises: StoreUnavailable."""
        with self._database.transaction() as connection:
            connection.execute(_POSTPONE, {"destination": destination, "until": to_text(until)})

    def retry_requested(self, destination: str, since: datetime) -> bool:
        """Tell whether an operator has asked since then for a retry of a delivery that waits for a destination.

        Raises: StoreUnavailable.
        """
        parameters = {"destination": destination, "since": to_text(since)}
        with self._database.reading() as connection:
            return connection.execute(RETRY_REQUESTED, parameters).fetchone() is not None

    def _delivered(
        self,
        connection: Connection,
        delivery: Delivery,
        outcome: Accepted,
        sent_as: InstanceRef | None,
        now: datetime,
    ) -> None:
        sent = {
            "sent_sop_class": sent_as.sop_class if sent_as else None,
            "sent_sop_instance": sent_as.sop_instance if sent_as else None,
        }
        parameters = {"delivery_id": delivery.delivery_id, "status": outcome.warning, "now": to_text(now)}
        connection.execute(_DELIVERED, parameters | sent)
        _record(connection, delivery, EventKind.DELIVERED, now, warning=outcome.warning, **sent)

    def _not_delivered(
        self,
        connection: Connection,
        delivery: Delivery,
        outcome: Refused | NoAnswer,
        now: datetime,
        policy: RetryPolicy,
        randomness: float,
        age_s: float,
    ) -> DeliveryState:
        status = outcome.status if isinstance(outcome, Refused) else None
        parameters = {"delivery_id": delivery.delivery_id, "status": status, "now": to_text(now)}
        if outcome.permanent or policy.exhausted(age_s):
            cause = self._lose(connection, delivery, now) if self._is_lost(delivery) else outcome.cause
            given_up_after = None if outcome.permanent else delivery.attempts
            last_error = cause if outcome.permanent else f"{cause}; given up after {delivery.attempts} attempt(s)"
            connection.execute(_DEAD, parameters | {"cause": shortened(last_error)})
            facts = {"cause": cause, "given_up_after": given_up_after}
            _record(connection, delivery, EventKind.DELIVERY_DEAD, now, **facts)
            return DeliveryState.DEAD
        cause = shortened(outcome.cause)
        asked_s = outcome.retry_after_s or 0.0 if isinstance(outcome, Refused) else 0.0
        delay_s = max(policy.delay_s(delivery.attempts, randomness), min(asked_s, _LONGEST_PAUSE_S))
        next_attempt_at = to_text(now + timedelta(seconds=delay_s))
        connection.execute(_DEFERRED, parameters | {"cause": cause, "next_attempt_at": next_attempt_at})
        deferred = {"attempt": delivery.attempts, "cause": cause, "retry_in_s": round(delay_s)}
        _record(connection, delivery, EventKind.DELIVERY_DEFERRED, now, **deferred)
        return DeliveryState.WAITING

    def _is_lost(self, delivery: Delivery) -> bool:
        """Tell whether the bytes of a result are missing or damaged; a folder that cannot be read says nothing."""
        try:
            return not self._blobs.is_intact(delivery.blob)
        except StoreUnavailable:
            return False

    def _lose(self, connection: Connection, delivery: Delivery, now: datetime) -> str:
        """Mark the result of a delivery as lost, and return the cause that the operator reads."""
        connection.execute(_MARK_LOST, {"sop_instance": delivery.ref.sop_instance, "now": to_text(now)})
        return LOST_RESULT


def redeliver_lost(connection: Connection, result_id: int, lost_at: str, now: datetime) -> None:
    """Have a result whose bytes were replaced delivered to the destinations that it could not be delivered to.

    `lost_at`: when its bytes were found to be lost, as the row says it.
    """
    connection.execute(_REDELIVER, {"result_id": result_id, "lost_at": lost_at, "now": to_text(now)})


def recover_deliveries(connection: Connection, now: datetime) -> None:
    """Put back what a former run was sending; whether it arrived is unknown.

    Sending it again is safe, since it is the same SOP instance.
    """
    for row in connection.execute(SENDING).fetchall():
        cause = f"the node stopped during attempt {row['attempts']}"
        parameters = {"delivery_id": row["delivery_id"], "cause": cause, "now": to_text(now)}
        connection.execute(_RECOVERED, parameters)
        facts = {
            "result_kind": row["kind"],
            "sop_instance": row["sop_instance"],
            "destination": row["destination"],
            "attempt": row["attempts"],
        }
        version = _version(connection, row["delivery_id"])
        record(connection, now, row["study"], version, EventKind.DELIVERY_INTERRUPTED, **facts)


def _record(connection: Connection, delivery: Delivery, kind: EventKind, now: datetime, **facts: object) -> None:
    """Record an event of a delivery with its facts."""
    record(
        connection,
        now,
        delivery.ref.study,
        _version(connection, delivery.delivery_id),
        kind,
        result_kind=delivery.kind.value,
        sop_instance=delivery.ref.sop_instance,
        destination=delivery.destination,
        **facts,
    )


def _version(connection: Connection, delivery_id: int) -> int:
    """Return the first version of the answer that contains the result of a delivery."""
    return int(connection.execute(VERSION, (delivery_id,)).fetchone()["version"])
