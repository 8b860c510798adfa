"""Storage Commitment of delivered results: requests, reports, and what follows from them (PS3.4 Annex J).

A request is written down before it is sent, since its report may come before the request is answered. A destination
that does not report in time is asked again with a new transaction; every transaction is kept, and a late report on any
of them counts. A result that is not committed is delivered again, as the same SOP instance, until the retry policy
gives it up.
"""

import logging
from datetime import datetime, timedelta

from dicomnode.domain.commitment import CommitmentChanges, CommitmentFailure, CommitmentItem, CommitmentReport, Remedy
from dicomnode.domain.delivery import Delivery, RetryPolicy
from dicomnode.domain.instance import InstanceRef
from dicomnode.store.engine import Connection, Database, Row
from dicomnode.store.events import EventKind, record
from dicomnode.store.row_mapping import shortened, to_optional_time, to_text, to_time

log = logging.getLogger(__name__)

# A result that is delivered again after a failure begins anew; a destination that has committed is not asked again.
_BEGIN = """
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
    retry_requested_at = NULL, requested_at = :now, changed_at = :now
WHERE delivery_id IN (
    SELECT delivery_id FROM commitment WHERE destination = :destination AND next_at <= :now
    ORDER BY next_at, delivery_id LIMIT :limit
)
RETURNING delivery_id
"""

_NOTE_REQUEST = "INSERT INTO commitment_request (transaction_uid, delivery_id, requested_at) VALUES (?, ?, ?)"

OF_TRANSACTION = """
SELECT delivery_id FROM commitment_request WHERE transaction_uid = ? ORDER BY delivery_id
"""

_DESTINATION_OF_TRANSACTION = """
SELECT commitment.destination FROM commitment_request JOIN commitment USING (delivery_id)
WHERE commitment_request.transaction_uid = ? LIMIT 1
"""

ENTRY = """
SELECT commitment.*, result.study, result.kind, delivery.state AS delivery_state, delivery.waiting_since
FROM commitment JOIN delivery USING (delivery_id) JOIN result USING (result_id)
WHERE commitment.delivery_id = ?
"""

_POSTPONE = """
UPDATE commitment SET state = IIF(state = 'requested', 'due', state), next_at = :next_at, last_error = :cause,
    changed_at = :now
WHERE delivery_id = :delivery_id AND state IN ('requested', 'overdue')
"""

_COMMITTED = """
UPDATE commitment SET state = 'committed', next_at = NULL, deadline_at = NULL, answered_at = :now,
    failure_reason = NULL, last_error = NULL, changed_at = :now
WHERE delivery_id = :delivery_id AND state <> 'committed'
"""

_FAILED = """
UPDATE commitment SET state = 'failed', failures = failures + 1, next_at = NULL, deadline_at = NULL,
    answered_at = :now, failure_reason = :reason, last_error = :cause, changed_at = :now
WHERE delivery_id = :delivery_id AND state NOT IN ('committed', 'failed')
RETURNING failures
"""

_DELIVER_AGAIN = """
UPDATE delivery SET state = 'waiting', next_attempt_at = :next_attempt_at, last_error = :cause, changed_at = :now
WHERE delivery_id = :delivery_id AND state = 'delivered'
"""

_GIVE_UP = """
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

RETRY_REQUESTED = """
SELECT 1 FROM commitment WHERE destination = :destination AND next_at IS NOT NULL AND retry_requested_at > :since
LIMIT 1
"""

# A request that an operator wants repeated is due at once.
_POSTPONE_ALL = """
UPDATE commitment SET next_at = :until
WHERE destination = :destination AND next_at < :until AND retry_requested_at IS NULL
"""

# What was requested and may still be answered in time is not requested again.
_BRING_FORWARD = """
UPDATE commitment SET next_at = :now
WHERE destination = :destination AND next_at > :now AND state IN ('due', 'overdue')
"""

_RETRY = """
UPDATE commitment SET next_at = :now, begun_at = :now, retry_requested_at = :now, changed_at = :now
WHERE delivery_id = :delivery_id AND state = 'overdue'
"""


def begin_commitment(
    connection: Connection, delivery: Delivery, stored: InstanceRef, within_s: float, now: datetime
) -> None:
    """Have a destination asked to commit itself to what it has just stored, in the caller's transaction."""
    parameters = {
        "delivery_id": delivery.delivery_id,
        "destination": delivery.destination,
        "sop_class": stored.sop_class,
        "sop_instance": stored.sop_instance,
        "deadline_at": to_text(now + timedelta(seconds=within_s)),
        "now": to_text(now),
    }
    connection.execute(_BEGIN, parameters)


def ask_again(connection: Connection, delivery_id: int, now: datetime) -> bool:
    """Have a destination that has not reported in time asked again now; tell whether there was anything to ask."""
    return connection.execute(_RETRY, {"delivery_id": delivery_id, "now": to_text(now)}).rowcount > 0


class Commitments:
    """The commitments that destinations are asked for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def expire(self, destination: str, now: datetime) -> tuple[CommitmentItem, ...]:
        """Mark what has become overdue at a destination and return it; the destination is to be asked again at once.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            late = connection.execute(OVERDUE, {"destination": destination, "now": to_text(now)}).fetchall()
            rows = [connection.execute(ENTRY, (row["delivery_id"],)).fetchone() for row in late]
            for row in rows:
                _record(connection, row, EventKind.COMMITMENT_OVERDUE, now)
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
        parameters: dict[str, object] = {"destination": destination, "limit": limit, "transaction_uid": transaction_uid}
        parameters["now"] = to_text(now)
        parameters["again_at"] = to_text(now + timedelta(seconds=again_after_s))
        parameters["given_up_before"] = to_text(now - timedelta(seconds=policy.give_up_after_s))
        with self._database.transaction() as connection:
            claimed = sorted(row["delivery_id"] for row in connection.execute(CLAIM, parameters).fetchall())
            rows = [connection.execute(ENTRY, (delivery_id,)).fetchone() for delivery_id in claimed]
            for row in rows:
                connection.execute(_NOTE_REQUEST, (transaction_uid, row["delivery_id"], to_text(now)))
                _record(connection, row, EventKind.COMMITMENT_REQUESTED, now, transaction_uid=transaction_uid)
        return tuple(_to_item(row) for row in rows)

    def not_requested(
        self, transaction_uid: str, cause: str, now: datetime, policy: RetryPolicy, randomness: float
    ) -> None:
        """Write down that a destination could not be asked; it is asked again by `policy`, until that gives up.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            for row in _entries(connection, transaction_uid):
                age_s = (now - to_time(row["begun_at"])).total_seconds()
                next_at = now + timedelta(seconds=policy.delay_s(row["requests"], randomness))
                given_up = policy.exhausted(age_s)
                parameters = {"delivery_id": row["delivery_id"], "cause": shortened(cause), "now": to_text(now)}
                parameters["next_at"] = None if given_up else to_text(next_at)
                if connection.execute(_POSTPONE, parameters).rowcount:
                    _record(connection, row, EventKind.COMMITMENT_DEFERRED, now, cause=cause, given_up=given_up)

    def destination_of(self, transaction_uid: str) -> str | None:
        """Return which destination was asked in a transaction, None when there was no such transaction.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            row = connection.execute(_DESTINATION_OF_TRANSACTION, (transaction_uid,)).fetchone()
        return str(row["destination"]) if row is not None else None

    def report(
        self, report: CommitmentReport, now: datetime, policy: RetryPolicy, randomness: float
    ) -> CommitmentChanges:
        """Write down a destination's report, however late it is; what is not committed is delivered again.

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
        """Return when a destination is to be asked next or a request becomes overdue next; None if never.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return to_optional_time(connection.execute(NEXT_DUE, {"destination": destination}).fetchone()[0])

    def postpone(self, destination: str, until: datetime) -> None:
        """Make no request due before its destination is tried again. Raises: StoreUnavailable."""
        with self._database.transaction() as connection:
            connection.execute(_POSTPONE_ALL, {"destination": destination, "until": to_text(until)})

    def bring_forward(self, destination: str, now: datetime) -> None:
        """Make requests due now that wait for a destination which has answered again. Raises: StoreUnavailable."""
        with self._database.transaction() as connection:
            connection.execute(_BRING_FORWARD, {"destination": destination, "now": to_text(now)})

    def retry_requested(self, destination: str, since: datetime) -> bool:
        """Tell whether an operator has had a destination asked again since then.

        Raises: StoreUnavailable.
        """
        parameters = {"destination": destination, "since": to_text(since)}
        with self._database.reading() as connection:
            return connection.execute(RETRY_REQUESTED, parameters).fetchone() is not None

    def _kept(self, connection: Connection, row: Row, now: datetime) -> bool:
        parameters = {"delivery_id": row["delivery_id"], "now": to_text(now)}
        if not connection.execute(_COMMITTED, parameters).rowcount:
            return False
        _record(connection, row, EventKind.COMMITTED, now)
        return True

    def _not_kept(
        self,
        connection: Connection,
        row: Row,
        failure: CommitmentFailure,
        now: datetime,
        policy: RetryPolicy,
        randomness: float,
    ) -> Remedy | None:
        """Write down one failure and return its remedy; None for a report that comes twice, or after a success."""
        cause = shortened(f"not committed, {failure.cause}")
        parameters = {"delivery_id": row["delivery_id"], "cause": cause, "now": to_text(now)}
        if failure.remedy is Remedy.ASK_AGAIN:
            if not connection.execute(_POSTPONE, parameters | {"next_at": to_text(now)}).rowcount:
                return None
            _record(connection, row, EventKind.COMMITMENT_DEFERRED, now, cause=cause, given_up=False)
            return Remedy.ASK_AGAIN
        counted = connection.execute(_FAILED, parameters | {"reason": failure.reason}).fetchone()
        if counted is None:
            return None
        age_s = (now - to_time(row["waiting_since"])).total_seconds()
        if failure.remedy is Remedy.GIVE_UP or policy.exhausted(age_s):
            connection.execute(_GIVE_UP, parameters)
            _record(connection, row, EventKind.COMMITMENT_FAILED, now, cause=cause, given_up=True)
            return Remedy.GIVE_UP
        delay_s = policy.delay_s(counted["failures"], randomness)
        next_attempt_at = to_text(now + timedelta(seconds=delay_s))
        connection.execute(_DELIVER_AGAIN, parameters | {"next_attempt_at": next_attempt_at})
        _record(connection, row, EventKind.COMMITMENT_FAILED, now, cause=cause, retry_in_s=round(delay_s))
        return Remedy.SEND_AGAIN


def _entries(connection: Connection, transaction_uid: str) -> list[Row]:
    requests = connection.execute(OF_TRANSACTION, (transaction_uid,)).fetchall()
    return [connection.execute(ENTRY, (row["delivery_id"],)).fetchone() for row in requests]


def _to_item(row: Row) -> CommitmentItem:
    return CommitmentItem(
        delivery_id=row["delivery_id"],
        study=row["study"],
        sop_class=row["sop_class"],
        sop_instance=row["sop_instance"],
    )


def _record(connection: Connection, row: Row, kind: EventKind, now: datetime, **facts: object) -> None:
    """Record an event of a commitment with its facts; `row` is one of `ENTRY`."""
    record(
        connection,
        now,
        row["study"],
        None,
        kind,
        result_kind=row["kind"],
        sop_instance=row["sop_instance"],
        destination=row["destination"],
        **facts,
    )
