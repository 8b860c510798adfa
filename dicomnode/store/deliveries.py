"""From a finished result to every destination that is to have it: claim, record, and the states in between.

Destinations do not wait for each other: every delivery has its own attempts and its own next time. A delivery that is
claimed is sending until its outcome is recorded, or it is released, or the node starts again.
"""

import logging
import sqlite3
from datetime import datetime, timedelta

from dicomnode.domain.delivery import Accepted, Delivery, DeliveryState, NoAnswer, Refused, RetryPolicy, StoreOutcome
from dicomnode.domain.instance import InstanceRef
from dicomnode.store.blobs.local import Blobs
from dicomnode.store.commitments import begin_commitment
from dicomnode.store.counters import tally_attempt
from dicomnode.store.engine.sqlite import Database
from dicomnode.store.row_mapping import EventKind, record, shortened, to_delivery, to_optional_time, to_text, to_time

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 3600.0
"""No peer's wish to be left alone is heeded for longer."""

CLAIM = """
UPDATE delivery SET state = 'sending', attempts = attempts + 1, next_attempt_at = NULL, changed_at = :now
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

DELIVERED = """
UPDATE delivery SET state = 'delivered', last_error = NULL, last_status = :status, sent_sop_class = :sent_sop_class,
    sent_sop_instance = :sent_sop_instance, changed_at = :now
WHERE delivery_id = :delivery_id AND state = 'sending'
"""

DEAD = """
UPDATE delivery SET state = 'dead', last_error = :cause, last_status = :status, changed_at = :now
WHERE delivery_id = :delivery_id AND state = 'sending'
"""

DEFERRED = """
UPDATE delivery SET state = 'waiting', next_attempt_at = :next_attempt_at, last_error = :cause, last_status = :status,
    changed_at = :now
WHERE delivery_id = :delivery_id AND state = 'sending'
"""

SENDING = """
SELECT delivery.delivery_id, delivery.destination, delivery.attempts, result.study, result.sop_instance
FROM delivery JOIN result USING (result_id) WHERE delivery.state = 'sending'
"""

RECOVERED = """
UPDATE delivery SET state = 'waiting', next_attempt_at = :now, last_error = :cause, changed_at = :now
WHERE delivery_id = :delivery_id AND state = 'sending'
"""

# What is sending changed last when it was claimed.
WAITING_SINCE = "SELECT waiting_since, changed_at FROM delivery WHERE delivery_id = ? AND state = 'sending'"

# Only an operator's retry sets the age of a delivery anew.
URGED = """
SELECT 1 FROM delivery WHERE destination = :destination AND next_attempt_at = waiting_since
    AND waiting_since > :since AND waiting_since > created_at LIMIT 1
"""

NEXT_DUE = "SELECT MIN(next_attempt_at) FROM delivery WHERE destination = ? AND next_attempt_at IS NOT NULL"


class Outbox:
    """Results on their way, per destination."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database, self._blobs = database, blobs

    def claim(self, destination: str, limit: int, now: datetime) -> tuple[Delivery, ...]:
        """Take up to `limit` deliveries that are due at a destination, the longest due first; they are now sending.

        Raises: StoreUnavailable.
        """
        asked = {"destination": destination, "limit": limit, "now": to_text(now)}
        with self._database.transaction() as connection:
            claimed = sorted(row["delivery_id"] for row in connection.execute(CLAIM, asked).fetchall())
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
        """Write down what a destination said; `sent_as` is the fallback that went in the result's place, if one did.

        `commit_within_s`: the destination is to be asked whether it keeps the result, and to answer within this time.
        Returns the state that follows. A delivery that is no longer sending is left as it is. Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            row = connection.execute(WAITING_SINCE, (delivery.delivery_id,)).fetchone()
            if row is None:
                log.warning("outcome-too-late", extra={"delivery": delivery.delivery_id})
                return DeliveryState.DROPPED
            tally_attempt(connection, delivery, outcome, to_time(row["changed_at"]), now)
            if isinstance(outcome, Accepted):
                self._delivered(connection, delivery, outcome, sent_as, now)
                if commit_within_s is not None:
                    begin_commitment(connection, delivery, sent_as or delivery.ref, commit_within_s, now)
                return DeliveryState.DELIVERED
            age_s = (now - to_time(row["waiting_since"])).total_seconds()
            return self._not_delivered(connection, delivery, outcome, now, policy, randomness, age_s)

    def next_due(self, destination: str) -> datetime | None:
        """Return when the next delivery to a destination is due, if any waits.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return to_optional_time(connection.execute(NEXT_DUE, (destination,)).fetchone()[0])

    def urged(self, destination: str, since: datetime) -> bool:
        """Tell whether an operator has asked since then for another try of what waits for a destination.

        Raises: StoreUnavailable.
        """
        asked = {"destination": destination, "since": to_text(since)}
        with self._database.reading() as connection:
            return connection.execute(URGED, asked).fetchone() is not None

    def _delivered(
        self,
        connection: sqlite3.Connection,
        delivery: Delivery,
        outcome: Accepted,
        sent_as: InstanceRef | None,
        now: datetime,
    ) -> None:
        facts = {
            "delivery_id": delivery.delivery_id,
            "status": outcome.warning,
            "sent_sop_class": sent_as.sop_class if sent_as else None,
            "sent_sop_instance": sent_as.sop_instance if sent_as else None,
            "now": to_text(now),
        }
        connection.execute(DELIVERED, facts)
        warned = "" if outcome.warning is None else f", with warning {outcome.warning:04X}H"
        instead = f", as {sent_as.sop_class} {sent_as.sop_instance}" if sent_as else ""
        _record(connection, delivery, EventKind.DELIVERED, f"stored{warned}{instead}", now)

    def _not_delivered(
        self,
        connection: sqlite3.Connection,
        delivery: Delivery,
        outcome: Refused | NoAnswer,
        now: datetime,
        policy: RetryPolicy,
        randomness: float,
        age_s: float,
    ) -> DeliveryState:
        cause = shortened(outcome.cause)
        status = outcome.status if isinstance(outcome, Refused) else None
        facts = {"delivery_id": delivery.delivery_id, "cause": cause, "status": status, "now": to_text(now)}
        if outcome.permanent or policy.exhausted(age_s):
            why = cause if outcome.permanent else f"{cause}; given up after {delivery.attempts} attempt(s)"
            connection.execute(DEAD, facts | {"cause": shortened(why)})
            _record(connection, delivery, EventKind.DELIVERY_DEAD, why, now)
            return DeliveryState.DEAD
        asked_s = outcome.retry_after_s or 0.0 if isinstance(outcome, Refused) else 0.0
        delay_s = max(policy.delay_s(delivery.attempts, randomness), min(asked_s, _LONGEST_PAUSE_S))
        connection.execute(DEFERRED, facts | {"next_attempt_at": to_text(now + timedelta(seconds=delay_s))})
        detail = f"attempt {delivery.attempts}: {cause}; next attempt in {delay_s:.0f} s"
        _record(connection, delivery, EventKind.DELIVERY_DEFERRED, detail, now)
        return DeliveryState.WAITING


def recover_deliveries(connection: sqlite3.Connection, now: datetime) -> None:
    """Put back, in the caller's transaction, what a former run was sending: whether it arrived is unknown.

    Sending it again is safe, since it is the same SOP instance.
    """
    for row in connection.execute(SENDING).fetchall():
        cause = f"the node stopped during attempt {row['attempts']}"
        facts = {"delivery_id": row["delivery_id"], "cause": cause, "now": to_text(now)}
        connection.execute(RECOVERED, facts)
        detail = f"{row['sop_instance']} to {row['destination']}: {cause}"
        version = _version(connection, row["delivery_id"])
        record(connection, now, row["study"], version, EventKind.DELIVERY_INTERRUPTED, detail)


def _record(connection: sqlite3.Connection, delivery: Delivery, kind: EventKind, detail: str, now: datetime) -> None:
    told = f"{delivery.kind.value} {delivery.ref.sop_instance} to {delivery.destination}: {detail}"
    record(connection, now, delivery.ref.study, _version(connection, delivery.delivery_id), kind, told)


def _version(connection: sqlite3.Connection, delivery_id: int) -> int:
    """Return the version of the answer that first had the result of a delivery."""
    return int(connection.execute(VERSION, (delivery_id,)).fetchone()["version"])
