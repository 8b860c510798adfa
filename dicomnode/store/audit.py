"""What an audit repository is to be told, made of the ledger and kept until it is told.

A cursor stands in the ledger, and moves in the transaction that writes the records made of what it passed. So whatever
crashes, nothing is left out and nothing is recorded twice. What passed between the node and one peer of one study is
one record as far as it happened together: events wait for the end of the association that brings the study, for up to
a minute.
"""

import dataclasses
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from dicomnode.domain.audit import Alert, AuditKind, AuditRecord, Disclosure, Transfer
from dicomnode.store.engine.sqlite import Database
from dicomnode.store.row_mapping import EventKind, to_text, to_time

_SETTLED_AFTER = timedelta(seconds=2)
_LONGEST_WAIT = timedelta(seconds=60)
_EVENTS_AT_ONCE = 200

BEGIN = "INSERT INTO audit_cursor SELECT 1, COALESCE(MAX(event_id), 0) FROM event WHERE true ON CONFLICT DO NOTHING"

NEXT_EVENTS = """
SELECT event.*, EXISTS (
    SELECT 1 FROM instance JOIN association USING (association_id)
    WHERE instance.study = event.study AND association.released_at IS NULL
) AS arriving FROM event WHERE event_id > (SELECT event_id FROM audit_cursor) ORDER BY event_id LIMIT ?
"""

MOVE = "UPDATE audit_cursor SET event_id = ?"

ADD = "INSERT INTO audit_record (at, kind, facts) VALUES (?, ?, ?)"

PENDING = "SELECT * FROM audit_record ORDER BY record_id LIMIT ?"

WAITING = "SELECT COUNT(*) FROM audit_record"

DONE = "DELETE FROM audit_record WHERE record_id <= ?"

SOP_CLASS = """
SELECT sop_class FROM instance WHERE sop_instance = :uid
UNION ALL SELECT sop_class FROM result WHERE sop_instance = :uid
UNION ALL SELECT sent_sop_class FROM delivery WHERE sent_sop_instance = :uid
LIMIT 1
"""

KEPT_BLOBS = """
SELECT blob FROM instance WHERE study = :study AND purged_at IS NULL
UNION ALL SELECT blob FROM result WHERE study = :study AND purged_at IS NULL
LIMIT 3
"""

# PS3.15 A.5.3.7, Event Action Code: created there, altered there, or it is not known, or nothing changed.
_RECEIVED = {
    EventKind.RECEIVED: "C",
    EventKind.REPLACED: "U",
    EventKind.DUPLICATE: "R",
    EventKind.OWN_RESULT_RETURNED: "R",
}
_SENT = (EventKind.DELIVERED, EventKind.DELIVERY_DEAD)
TRANSFERS = (*_RECEIVED, *_SENT)
"""What is told of a study, in a message that names its patient."""
_TOLD_OF_SENT = re.compile(r"\S+ (?P<uid>\S+) to (?P<peer>.*?): (?P<told>.*)")
_SENT_AS = re.compile(r"stored.*, as \S+ (?P<uid>\S+)")

_Group = tuple[AuditKind, str, str, str, str, str]


class AuditOutbox:
    """Audit records of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self) -> None:
        """Tell from now on, if nothing was told before: what is older was nobody's to audit.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            connection.execute(BEGIN)

    def note(self, kind: AuditKind, about: Alert | Disclosure | None, now: datetime) -> None:
        """Record what does not stand in the ledger.

        Raises: StoreUnavailable.
        """
        self.note_each(kind, [about], now)

    def note_each(self, kind: AuditKind, abouts: Sequence[Alert | Disclosure | None], now: datetime) -> None:
        """Record several things of a kind that do not stand in the ledger, all or none.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            for about in abouts:
                _add(connection, to_text(now), kind, about)

    def gather(self, now: datetime, *, everything: bool = False) -> int:
        """Make records of what happened since, and return of how many events; `everything`: wait for nothing more.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            rows = connection.execute(NEXT_EVENTS, (_EVENTS_AT_ONCE,)).fetchall()
        settled = rows if everything else list(_settled(rows, now))
        if not settled:
            return 0
        with self._database.transaction() as connection:
            for (kind, *_), (at, transfer) in _transfers(connection, settled).items():
                _add(connection, at, kind, transfer)
            connection.execute(MOVE, (settled[-1]["event_id"],))
        return len(settled)

    def pending(self, limit: int) -> tuple[AuditRecord, ...]:
        """Return the oldest records that are not told yet.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return tuple(_to_record(row) for row in connection.execute(PENDING, (limit,)).fetchall())

    def waiting(self) -> int:
        """Return how many records are not told yet.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return int(connection.execute(WAITING).fetchone()[0])

    def done(self, number: int) -> None:
        """Forget the records up to this one, which are told.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            connection.execute(DONE, (number,))

    def blobs_of(self, study: str) -> tuple[str, ...]:
        """Return a few blobs that belong to a study, and so name its patient.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return tuple(row["blob"] for row in connection.execute(KEPT_BLOBS, {"study": study}).fetchall())


def _settled(rows: list[sqlite3.Row], now: datetime) -> Iterator[sqlite3.Row]:
    """Yield the events, in order, up to the first that more may come to."""
    for row in rows:
        age = now - to_time(row["at"])
        # An age below 0: the clock was set back, and waiting for it to catch up would be no use.
        if timedelta(0) <= age < (_LONGEST_WAIT if row["arriving"] else _SETTLED_AFTER):
            return
        yield row


def _transfers(connection: sqlite3.Connection, rows: list[sqlite3.Row]) -> dict[_Group, tuple[str, Transfer]]:
    """Return the transfers that events tell of, each with the time of its last event."""
    found: dict[_Group, tuple[str, Transfer]] = {}
    for row in rows:
        read = _read(row)
        if read is None:
            continue
        uid, group = read
        _, study, peer, address, action, failure = group
        before = found.get(group)
        transfer = (
            before[1]
            if before
            else Transfer(study=study, peer=peer, address=address, action=action, instances={}, failure=failure)
        )
        known = connection.execute(SOP_CLASS, {"uid": uid}).fetchone()
        transfer.instances.setdefault(known["sop_class"] if known else "", []).append(uid)
        found[group] = (row["at"], transfer)
    return found


def _read(row: sqlite3.Row) -> tuple[str, _Group] | None:
    """Return which instance passed, and with what it belongs together; None, when the event tells of nothing passed."""
    kind, study, detail = EventKind(row["kind"]), row["study"], row["detail"]
    if kind in _RECEIVED:
        calling_ae, _, address = detail.partition(" from ")[2].rpartition(" at ")
        return detail.partition(" ")[0].rstrip(","), (
            AuditKind.RECEIVED,
            study,
            calling_ae,
            address,
            _RECEIVED[kind],
            "",
        )
    match = _TOLD_OF_SENT.fullmatch(detail) if kind in _SENT else None
    if match is None:
        return None
    failure = match["told"] if kind is EventKind.DELIVERY_DEAD else ""
    instead = _SENT_AS.fullmatch(match["told"]) if not failure else None
    return (instead or match)["uid"], (AuditKind.SENT, study, match["peer"], "", "R", failure)


def _add(connection: sqlite3.Connection, at: str, kind: AuditKind, about: Transfer | Alert | Disclosure | None) -> None:
    facts = {} if about is None else dataclasses.asdict(about)
    connection.execute(ADD, (at, kind, json.dumps(facts)))


def _to_record(row: sqlite3.Row) -> AuditRecord:
    kind, facts = AuditKind(row["kind"]), json.loads(row["facts"])
    about: Transfer | Alert | Disclosure | None = None
    if kind in (AuditKind.RECEIVED, AuditKind.SENT):
        about = Transfer(**facts)
    elif kind is AuditKind.ALERT:
        about = Alert(**facts)
    elif kind is AuditKind.SHOWN:
        about = Disclosure(**facts)
    return AuditRecord(number=row["record_id"], at=to_time(row["at"]), kind=kind, about=about)
