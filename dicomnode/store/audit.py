"""Audit records: made of the ledger's events, and kept until the audit repository has them.

A cursor marks the last event that was read. It moves in the transaction that writes the records made of the events it
passed, so whatever crashes, no event is left out and none is recorded twice. What passed between the node and one peer
of one study is one record if it happened together: events wait until the association that brings the study has ended,
for up to a minute.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dicomnode.domain.audit import Alert, AuditKind, AuditRecord, Disclosure, InstanceTransfer
from dicomnode.store.associations import STUDY_HAS_OPEN_SENDER
from dicomnode.store.engine import Connection, Database, Row
from dicomnode.store.events import EventKind, LedgerEvent, to_event
from dicomnode.store.row_mapping import to_text, to_time

_SETTLED_AFTER = timedelta(seconds=2)
_LONGEST_WAIT = timedelta(seconds=60)
_EVENTS_AT_ONCE = 200

BEGIN = "INSERT INTO audit_cursor SELECT 1, COALESCE(MAX(event_id), 0) FROM event WHERE true ON CONFLICT DO NOTHING"

NEXT_EVENTS = f"""
SELECT event.*, {STUDY_HAS_OPEN_SENDER.format(study="event.study")} AS arriving
FROM event WHERE event_id > (SELECT event_id FROM audit_cursor) ORDER BY event_id LIMIT ?
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

# PS3.15 A.5.3.7, Event Action Code: C, created there; U, altered there; R, nothing changed or it is not known.
_RECEIVED = {
    EventKind.RECEIVED: "C",
    EventKind.REPLACED: "U",
    EventKind.DUPLICATE: "R",
    EventKind.OWN_RESULT_RETURNED: "R",
}
_SENT = (EventKind.DELIVERED, EventKind.DELIVERY_DEAD)
TRANSFERS = (*_RECEIVED, *_SENT)
"""The events that become audit messages, which name the patient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passage:
    """What the instances of one audit record have in common."""

    kind: AuditKind
    study: str
    peer: str
    address: str = ""
    action: str
    failure: str = ""


class AuditOutbox:
    """Audit records of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self) -> None:
        """Begin the trail with the next event, unless it has begun: earlier events were not to be audited.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            connection.execute(BEGIN)

    def note(self, kind: AuditKind, about: Alert | Disclosure | None, now: datetime) -> None:
        """Record something that is not in the ledger.

        Raises: StoreUnavailable.
        """
        self.note_each(kind, [about], now)

    def note_each(self, kind: AuditKind, abouts: Sequence[Alert | Disclosure | None], now: datetime) -> None:
        """Record several things of one kind that are not in the ledger, all or none.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            for about in abouts:
                _add(connection, to_text(now), kind, about)

    def gather(self, now: datetime, *, everything: bool = False) -> int:
        """Make records of new events and return how many events were read; `everything`: do not wait for more of them.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            rows = connection.execute(NEXT_EVENTS, (_EVENTS_AT_ONCE,)).fetchall()
        settled = rows if everything else list(_settled(rows, now))
        if not settled:
            return 0
        with self._database.transaction() as connection:
            for passage, (at, transfer) in _transfers(connection, settled).items():
                _add(connection, at, passage.kind, transfer)
            connection.execute(MOVE, (settled[-1]["event_id"],))
        return len(settled)

    def pending(self, limit: int) -> tuple[AuditRecord, ...]:
        """Return the oldest records that the repository does not have yet.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return tuple(_to_record(row) for row in connection.execute(PENDING, (limit,)).fetchall())

    def waiting(self) -> int:
        """Return how many records the repository does not have yet.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return int(connection.execute(WAITING).fetchone()[0])

    def done(self, number: int) -> None:
        """Remove the records up to this one, which the repository has.

        Raises: StoreUnavailable.
        """
        with self._database.transaction() as connection:
            connection.execute(DONE, (number,))

    def blobs_of(self, study: str) -> tuple[str, ...]:
        """Return a few blobs of a study, from which its patient can be read.

        Raises: StoreUnavailable.
        """
        with self._database.reading() as connection:
            return tuple(row["blob"] for row in connection.execute(KEPT_BLOBS, {"study": study}).fetchall())


def _settled(rows: list[Row], now: datetime) -> Iterator[Row]:
    """Yield events in order, up to the first one to whose record more events may still belong."""
    for row in rows:
        age = now - to_time(row["at"])
        # An age below 0: the clock was set back, and waiting for it to catch up would be no use.
        if timedelta(0) <= age < (_LONGEST_WAIT if row["arriving"] else _SETTLED_AFTER):
            return
        yield row


def _transfers(connection: Connection, rows: list[Row]) -> dict[_Passage, tuple[str, InstanceTransfer]]:
    """Return the transfers that events tell of, each with the time of its last event."""
    found: dict[_Passage, tuple[str, InstanceTransfer]] = {}
    for row in rows:
        read = _read(to_event(row))
        if read is None:
            continue
        uid, passage = read
        _, transfer = found.get(passage) or ("", _transfer(passage))
        known = connection.execute(SOP_CLASS, {"uid": uid}).fetchone()
        transfer.instances.setdefault(known["sop_class"] if known else "", []).append(uid)
        found[passage] = (row["at"], transfer)
    return found


def _transfer(passage: _Passage) -> InstanceTransfer:
    return InstanceTransfer(
        study=passage.study,
        peer=passage.peer,
        address=passage.address,
        action=passage.action,
        instances={},
        failure=passage.failure,
    )


def _read(event: LedgerEvent) -> tuple[str, _Passage] | None:
    """Return the SOP Instance UID that passed, and its passage; None for an event that tells of no transfer.

    An event of a former version may lack its facts, when its text could not be taken apart.
    """
    facts = event.facts
    if event.kind not in TRANSFERS or "sop_instance" not in facts:
        return None
    if event.kind in _RECEIVED:
        return facts["sop_instance"], _Passage(
            kind=AuditKind.RECEIVED,
            study=event.study,
            peer=facts["calling_ae"],
            address=facts["peer_address"],
            action=_RECEIVED[event.kind],
        )
    sent = facts.get("sent_sop_instance") or facts["sop_instance"]
    failure = str(facts["cause"]) if event.kind is EventKind.DELIVERY_DEAD else ""
    passage = _Passage(kind=AuditKind.SENT, study=event.study, peer=facts["destination"], action="R", failure=failure)
    return sent, passage


def _add(connection: Connection, at: str, kind: AuditKind, about: InstanceTransfer | Alert | Disclosure | None) -> None:
    facts = {} if about is None else dataclasses.asdict(about)
    connection.execute(ADD, (at, kind, json.dumps(facts)))


def _to_record(row: Row) -> AuditRecord:
    kind, facts = AuditKind(row["kind"]), json.loads(row["facts"])
    about: InstanceTransfer | Alert | Disclosure | None = None
    if kind in (AuditKind.RECEIVED, AuditKind.SENT):
        about = InstanceTransfer(**facts)
    elif kind is AuditKind.ALERT:
        about = Alert(**facts)
    elif kind is AuditKind.SHOWN:
        about = Disclosure(**facts)
    return AuditRecord(number=row["record_id"], at=to_time(row["at"]), kind=kind, about=about)
