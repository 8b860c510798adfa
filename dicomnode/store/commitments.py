"""From a delivered result to a destination's word that it keeps it: ask, be answered, be refused, wait in vain.

The request is written down before it is made, since its answer may overtake it. A destination that does not answer in
time is asked again with a new transaction; every transaction is kept, and a late answer to any of them counts. A result
that is not kept is delivered again, as the same SOP instance, until the retry policy gives it up.
"""

import logging
import sqlite3
from datetime import datetime, timedelta

from dicomnode.domain.commitment import CommitmentChanges, CommitmentFailure, CommitmentItem, CommitmentReport, Remedy
from dicomnode.domain.delivery import Delivery, RetryPolicy
from dicomnode.domain.instance import InstanceRef
from dicomnode.store.engine.sqlite import Database
from dicomnode.store.row_mapping import EventKind, record, shortened, to_optional_time, to_text, to_time

log = logging.getLogger(__name__)

# A result that is delivered again after a failure begins anew; a destination that has committed is not asked again.
BEGIN = """
INSERT INTO commitment (delivery_id, destination, sop_class, sop_instance, state, next_at, deadline_at, begun_at,
    changed_at)
VALUES (:delivery_id, :destination, :sop_class, :sop_instance, 'due', :now, :deadline_at, :now, :now)
ON CONFLICT (delivery_id) DO UPDATE SET sop_class = excluded.sop_class, sop_instance = excluded.sop_instance,
    state = 'due', next_at = excluded.next_at, deadline_at = excluded.deadline_at, changed_at = excluded.changed_at
WHERE commitment.state = 'failed'
"""

OVERDUE = """
UPDATE commitment SET state = 'overdue', next_at = :now, deadline_at = NULL, changed_at = :now
WHERE destination = :destination AND deadline_at <= :now
RETURNING delivery_id
"""

CLAIM = """
UPDATE commitment SET state = IIF(state = 'due', 'requested', state), transaction_uid = :transaction_uid,
    requests = requests + 1, next_at = IIF(begun_at > :given_up_before, :again_at, NULL),
    requested_at = :now, changed_at = :now
WHERE delivery_id IN (
    SELECT delivery_id FROM commitment WHERE destination = :destination AND next_at <= :now
    ORDER BY next_at, delivery_id LIMIT :limit
)
RETURNING delivery_id
"""

NOTE_REQUEST = "INSERT INTO commitment_request (transaction_uid, delivery_id, requested_at) VALUES (?, ?, ?)"

OF_TRANSACTION = """
SELECT delivery_id FROM commitment_request WHERE transaction_uid = ? ORDER BY delivery_id
"""

ENTRY = """
SELECT commitment.*, result.study, result.kind, delivery.state AS delivery_state, delivery.waiting_since
FROM commitment JOIN delivery USING (delivery_id) JOIN result USING (result_id)
WHERE commitment.delivery_id = ?
"""

POSTPONE = """
UPDATE commitment SET state = IIF(state = 'requested', 'due', state), next_at = :next_at, last_error = :cause,
    changed_at = :now
WHERE delivery_id = :delivery_id AND state IN ('requested', 'overdue')
"""

COMMITTED = """
UPDATE commitment SET state = 'committed', next_at = NULL, deadline_at = NULL, answered_at = :now,
    failure_reason = NULL, last_error = NULL, changed_at = :now
WHERE delivery_id = :delivery_id AND state <> 'committed'
"""

FAILED = """
UPDATE commitment SET state = 'failed', failures = failures + 1, next_at = NULL, deadline_at = NULL,
    answered_at = :now, failure_reason = :reason, last_error = :cause, changed_at = :now
WHERE delivery_id = :delivery_id AND state NOT IN ('committed', 'failed')
RETURNING failures
"""

DELIVER_AGAIN = """
UPDATE delivery SET state = 'waiting', next_attempt_at = :next_attempt_at, last_error = :cause, changed_at = :now
WHERE delivery_id = :delivery_id AND state = 'delivered'
"""

GIVE_UP = """
UPDATE delivery SET state = 'dead', last_error = :cause, changed_at = :now
WHERE delivery_id = :delivery_id AND state = 'delivered'
"""

NEXT_DUE = """
SELECT MIN(at) FROM (
    SELECT MIN(next_at) AS at FROM commitment WHERE destination = :destination AND next_at IS NOT NULL
    UNION ALL
    SELECT MIN(deadline_at) FROM commitment WHERE destination = :destination AND deadline_at IS NOT NULL
)
"""

# Only an operator's retry makes an overdue one due at the very time from which its age counts.
URGED = """
SELECT 1 FROM commitment WHERE destination = :destination AND state = 'overdue' AND next_at = begun_at
    AND begun_at > :since LIMIT 1
"""

RETRY = """
UPDATE commitment SET next_at = :now, begun_at = :now, changed_at = :now WHERE delivery_id = :delivery_id
    AND state = 'overdue'
"""


def begin_commitment(
    connection: sqlite3.Connection, delivery: Delivery, stored: InstanceRef, within_s: float, now: datetime
) -> None:
    """Have a destination asked, in the caller's transaction, whether it keeps what it was just sent."""
    facts = {
        "delivery_id": delivery.delivery_id,
        "destination": delivery.destination,
        "sop_class": stored.sop_class,
        "sop_instance": stored.sop_instance,
        "deadline_at": to_text(now + timedelta(seconds=within_s)),
        "now": to_text(now),
    }
    connection.execute(BEGIN, facts)


def ask_again(connection: sqlite3.Connection, delivery_id: int, now: datetime) -> bool:
    """Have a destination that has not answered in time asked now; tell whether there was anything to ask."""
    return connection.execute(RETRY, {"delivery_id": delivery_id, "now": to_text(now)}).rowcount > 0


class Commitments:
    """What destinations are asked to answer for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def expire(self, destination: str, now: datetime) -> tuple[CommitmentItem, ...]:
        """Return what has become overdue at a destination since the last call; it is to be asked again at once.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            late = connection.execute(OVERDUE, {"destination": destination, "now": to_text(now)}).fetchall()
            rows = [connection.execute(ENTRY, (row["delivery_id"],)).fetchone() for row in late]
            for row in rows:
                _record(connection, row, EventKind.COMMITMENT_OVERDUE, "no answer in time", now)
        return tuple(_to_item(row) for row in rows)

    def claim(
        self,
        destination: str,
        limit: int,
        transaction_uid: str,
        again_after_s: float,
        now: datetime,
        policy: RetryPolicy,
    ) -> tuple[CommitmentItem, ...]:
        """Take up to `limit` results that a destination is to be asked about now, in one transaction.

        Without an answer they are due again after `again_after_s`, until the policy gives up. Raises: StoreUnavailable.
        """
        asked = {"destination": destination, "limit": limit, "transaction_uid": transaction_uid, "now": to_text(now)}
        asked["again_at"] = to_text(now + timedelta(seconds=again_after_s))
        asked["given_up_before"] = to_text(now - timedelta(seconds=policy.give_up_after_s))
        with self._database.transaction() as connection:
            claimed = sorted(row["delivery_id"] for row in connection.execute(CLAIM, asked).fetchall())
            rows = [connection.execute(ENTRY, (delivery_id,)).fetchone() for delivery_id in claimed]
            for row in rows:
                connection.execute(NOTE_REQUEST, (transaction_uid, row["delivery_id"], to_text(now)))
                detail = f"asked in transaction {transaction_uid}"
                _record(connection, row, EventKind.COMMITMENT_REQUESTED, detail, now)
        return tuple(_to_item(row) for row in rows)

    def not_requested(
        self, transaction_uid: str, cause: str, now: datetime, policy: RetryPolicy, randomness: float
    ) -> None:
        """Write down that a destination could not be asked; it is asked again by the policy, until that gives up.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            for row in _entries(connection, transaction_uid):
                age_s = (now - to_time(row["begun_at"])).total_seconds()
                next_at = now + timedelta(seconds=policy.delay_s(row["requests"], randomness))
                facts = {"delivery_id": row["delivery_id"], "cause": shortened(cause), "now": to_text(now)}
                facts["next_at"] = None if policy.exhausted(age_s) else to_text(next_at)
                if connection.execute(POSTPONE, facts).rowcount:
                    again = "given up" if facts["next_at"] is None else "to be asked again"
                    _record(connection, row, EventKind.COMMITMENT_DEFERRED, f"{cause}; {again}", now)

    def report(
        self, report: CommitmentReport, now: datetime, policy: RetryPolicy, randomness: float
    ) -> CommitmentChanges:
        """Write down a destination's answer, of whatever age; what it does not keep is delivered again.

        Raises: StoreUnavailable.
        """
        committed: list[str] = []
        failed: list[str] = []
        dead: list[str] = []
        with self._database.transaction() as connection:
            rows = _entries(connection, report.transaction_uid)
            for row in rows:
                uid = row["sop_instance"]
                if uid in report.failed:
                    remedy = self._not_kept(connection, row, report.failed[uid], now, policy, randomness)
                    if remedy is not None:
                        (dead if remedy is Remedy.GIVE_UP else failed).append(uid)
                elif uid in report.committed and self._kept(connection, row, now):
                    committed.append(uid)
        return CommitmentChanges(committed=tuple(committed), failed=tuple(failed), dead=tuple(dead), unknown=not rows)

    def next_due(self, destination: str) -> datetime | None:
        """Return when a destination is to be asked next, or is overdue next, if ever.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return to_optional_time(connection.execute(NEXT_DUE, {"destination": destination}).fetchone()[0])

    def urged(self, destination: str, since: datetime) -> bool:
        """Tell whether an operator has asked since then for a destination to be asked again.

        Raises: StoreUnavailable.
        """
        asked = {"destination": destination, "since": to_text(since)}
        with self._database.reading() as connection:
            return connection.execute(URGED, asked).fetchone() is not None

    def _kept(self, connection: sqlite3.Connection, row: sqlite3.Row, now: datetime) -> bool:
        facts = {"delivery_id": row["delivery_id"], "now": to_text(now)}
        if not connection.execute(COMMITTED, facts).rowcount:
            return False
        _record(connection, row, EventKind.COMMITTED, "the destination keeps it", now)
        return True

    def _not_kept(
        self,
        connection: sqlite3.Connection,
        row: sqlite3.Row,
        failure: CommitmentFailure,
        now: datetime,
        policy: RetryPolicy,
        randomness: float,
    ) -> Remedy | None:
        """Write down one failure and return its remedy; None where a report comes twice, or after a better one."""
        cause = shortened(f"not committed, {failure.cause}")
        facts = {"delivery_id": row["delivery_id"], "cause": cause, "now": to_text(now)}
        if failure.remedy is Remedy.ASK_AGAIN:
            if not connection.execute(POSTPONE, facts | {"next_at": to_text(now)}).rowcount:
                return None
            _record(connection, row, EventKind.COMMITMENT_DEFERRED, f"{cause}; to be asked again", now)
            return Remedy.ASK_AGAIN
        counted = connection.execute(FAILED, facts | {"reason": failure.reason}).fetchone()
        if counted is None:
            return None
        age_s = (now - to_time(row["waiting_since"])).total_seconds()
        if failure.remedy is Remedy.GIVE_UP or policy.exhausted(age_s):
            connection.execute(GIVE_UP, facts)
            _record(connection, row, EventKind.COMMITMENT_FAILED, f"{cause}; given up", now)
            return Remedy.GIVE_UP
        delay_s = policy.delay_s(counted["failures"], randomness)
        connection.execute(DELIVER_AGAIN, facts | {"next_attempt_at": to_text(now + timedelta(seconds=delay_s))})
        detail = f"{cause}; it is sent again in {delay_s:.0f} s"
        _record(connection, row, EventKind.COMMITMENT_FAILED, detail, now)
        return Remedy.SEND_AGAIN


def _entries(connection: sqlite3.Connection, transaction_uid: str) -> list[sqlite3.Row]:
    asked = connection.execute(OF_TRANSACTION, (transaction_uid,)).fetchall()
    return [connection.execute(ENTRY, (row["delivery_id"],)).fetchone() for row in asked]


def _to_item(row: sqlite3.Row) -> CommitmentItem:
    return CommitmentItem(
        delivery_id=row["delivery_id"],
        study=row["study"],
        sop_class=row["sop_class"],
        sop_instance=row["sop_instance"],
    )


def _record(connection: sqlite3.Connection, row: sqlite3.Row, kind: EventKind, detail: str, now: datetime) -> None:
    told = f"{row['kind']} {row['sop_instance']} at {row['destination']}: {detail}"
    record(connection, now, row["study"], None, kind, told)
