"""An image arrives: its bytes and its row become durable, and it joins its study.

What `accept` promises: when it returns, the bytes and their row survive a loss of power.

The same SOP Instance UID again:

- with the same bytes, it is a duplicate: nothing is done twice;
- with other bytes, the newest content is current and makes a new version of the answer; the former row stays;
- under another study, it is refused: a SOP instance belongs to one study (PS3.3 A.1.2);
- after its bytes were purged, it is received anew: the same images make the same results, which nobody gets twice;
- as one of this node's own results, it is a duplicate: the node has it, and must not answer itself;
- from a peer that had sent nothing of the study before, the study is answered once more, since its results may have to
  go elsewhere too: they are the same instances, so nobody gets them twice.
"""

import sqlite3
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dicomnode.domain.errors import UidMismatch
from dicomnode.domain.instance import AssociationInfo, InstanceRef
from dicomnode.settings.node import AssemblySettings
from dicomnode.store.blobs.local import Blobs
from dicomnode.store.blobs.streamed import Arriving
from dicomnode.store.engine.group_commit import GroupCommit
from dicomnode.store.engine.sqlite import Database
from dicomnode.store.jobs import join_open_version, note_arrival, note_sender, reschedule
from dicomnode.store.row_mapping import EventKind, record, to_text, whence

HELD = "SELECT instance_id, study, blob, job_id, purged_at FROM instance WHERE sop_instance = ? AND current = 1"

OWN_RESULT = """
SELECT 1 FROM result WHERE sop_instance = :sop_instance
UNION ALL
SELECT 1 FROM delivery WHERE sent_sop_instance = :sop_instance
LIMIT 1
"""

NOTE_ASSOCIATION = """
INSERT INTO association (association_id, calling_ae, called_ae, peer_address, opened_at)
VALUES (:association_id, :calling_ae, :called_ae, :peer_address, :opened_at)
ON CONFLICT (association_id) DO NOTHING
"""

REPLACE = "UPDATE instance SET current = 0 WHERE instance_id = ?"

ADD_INSTANCE = """
INSERT INTO instance (job_id, study, series, sop_class, sop_instance, transfer_syntax, blob, size_bytes,
    association_id, received_at)
VALUES (:job_id, :study, :series, :sop_class, :sop_instance, :transfer_syntax, :blob, :size_bytes,
    :association_id, :received_at)
"""

RELEASE = "UPDATE association SET released_at = :now WHERE association_id = :association_id AND released_at IS NULL"

HELD_BY = """
SELECT DISTINCT instance.job_id FROM instance JOIN job USING (job_id)
WHERE instance.association_id = ? AND job.state = 'collecting'
"""


class ReceiptKind(StrEnum):
    """What accepting an image meant."""

    NEW = "new"
    DUPLICATE = "duplicate"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The promise that an instance is durable; `version` of the study's answer will speak of it (None: a duplicate)."""

    kind: ReceiptKind
    study: str
    version: int | None


class Reception:
    """Takes images in; called from many associations at once, whose rows are committed together."""

    def __init__(self, database: Database, blobs: Blobs, settings: AssemblySettings) -> None:
        self._database, self._blobs, self._settings = database, blobs, settings
        self._commits = GroupCommit(database)
        # Which associations are open is a fact about this process: none of them survives it.
        self._opened_at: dict[str, datetime] = {}

    def association_opened(self, association_id: str, now: datetime) -> None:
        """Hold the studies to which this association contributes until it is released."""
        self._opened_at[association_id] = now

    def association_released(self, association_id: str, now: datetime) -> None:
        """Let the studies to which this association contributed become complete; it may have ended in any way.

        Raises: StoreUnavailable; the studies then become complete after their maximum wait.
        """
        self._opened_at.pop(association_id, None)
        with self._database.transaction() as connection:
            connection.execute(RELEASE, {"association_id": association_id, "now": to_text(now)})
            for row in connection.execute(HELD_BY, (association_id,)).fetchall():
                reschedule(connection, row["job_id"], self._settings, self._opened_at)

    def arriving(self) -> Arriving:
        """Begin an instance whose bytes come piece by piece, for `accept`."""
        return self._blobs.arriving()

    def accept(
        self,
        ref: InstanceRef,
        transfer_syntax: str,
        part10: bytes | Arriving,
        association: AssociationInfo,
        now: datetime,
    ) -> Receipt:
        """Make an instance durable and add it to its study; success may be answered once this returns.

        What is `arriving` is whole by now, and stays the caller's to discard.

        Raises: UidMismatch (the SOP instance is held under another study), DiskFull, StoreUnavailable.
        """
        if (known := self._known(ref, association, now)) is not None:
            return known
        blob = self._blobs.write(part10)
        facts = {
            "study": ref.study,
            "series": ref.series,
            "sop_class": ref.sop_class,
            "sop_instance": ref.sop_instance,
            "transfer_syntax": transfer_syntax,
            "blob": blob,
            "size_bytes": len(part10),
            "association_id": association.association_id,
            "received_at": to_text(now),
        }

        def add(connection: sqlite3.Connection) -> Receipt:
            receipt = self._add(connection, ref, facts, association, now)
            # The same bytes may have been removed from a study that was settled, since they were written above.
            self._blobs.ensure(blob, part10)
            return receipt

        return self._commits.commit(add)

    def _known(self, ref: InstanceRef, association: AssociationInfo, now: datetime) -> Receipt | None:
        """Deal with an instance that needs no bytes written: this node's own result, or one of another study."""
        with self._database.reading() as connection:
            held = connection.execute(HELD, (ref.sop_instance,)).fetchone()
            own = connection.execute(OWN_RESULT, {"sop_instance": ref.sop_instance}).fetchone()
        if own is not None:
            with self._database.transaction() as connection:
                detail = f"{ref.sop_instance}, a result of this node, came {whence(association)}"
                record(connection, now, ref.study, None, EventKind.OWN_RESULT_RETURNED, detail)
            return Receipt(kind=ReceiptKind.DUPLICATE, study=ref.study, version=None)
        if held is not None and held["study"] != ref.study:
            with self._database.transaction() as connection:
                detail = f"{ref.sop_instance} is already held in study {held['study']}"
                record(connection, now, ref.study, None, EventKind.REFUSED, detail)
            raise UidMismatch(f"{ref.sop_instance} is already held in study {held['study']}")
        return None

    def _add(
        self,
        connection: sqlite3.Connection,
        ref: InstanceRef,
        facts: dict[str, object],
        association: AssociationInfo,
        now: datetime,
    ) -> Receipt:
        held = connection.execute(HELD, (ref.sop_instance,)).fetchone()
        if held is not None and held["study"] != ref.study:  # it came over another association in between
            raise UidMismatch(f"{ref.sop_instance} is already held in study {held['study']}")
        is_new_sender = note_sender(connection, ref.study, association, now)
        if held is not None and held["blob"] == facts["blob"] and held["purged_at"] is None:
            detail = f"{ref.sop_instance} came again, unchanged, {whence(association)}"
            record(connection, now, ref.study, None, EventKind.DUPLICATE, detail)
            if is_new_sender:
                self._answer_again(connection, ref.study, now)
            return Receipt(kind=ReceiptKind.DUPLICATE, study=ref.study, version=None)
        self._note_association(connection, association, now)
        if held is not None:
            connection.execute(REPLACE, (held["instance_id"],))
        joined = join_open_version(connection, ref.study, now)
        connection.execute(ADD_INSTANCE, facts | {"job_id": joined.job_id})
        note_arrival(connection, joined.job_id, now)
        reschedule(connection, joined.job_id, self._settings, self._opened_at)
        arrival = _arrival(held)
        detail = f"{ref.sop_instance} {arrival} {whence(association)}"
        event, kind = _ARRIVALS[arrival]
        record(connection, now, ref.study, joined.version, event, detail)
        return Receipt(kind=kind, study=ref.study, version=joined.version)

    def _answer_again(self, connection: sqlite3.Connection, study: str, now: datetime) -> None:
        """Have a study answered for a peer that sent nothing new: the same results, to where its routes lead."""
        joined = join_open_version(connection, study, now, why="another peer sent the study")
        note_arrival(connection, joined.job_id, now)
        reschedule(connection, joined.job_id, self._settings, self._opened_at)

    def _note_association(self, connection: sqlite3.Connection, association: AssociationInfo, now: datetime) -> None:
        facts = {
            "association_id": association.association_id,
            "calling_ae": association.calling_ae,
            "called_ae": association.called_ae,
            "peer_address": association.peer_address,
            "opened_at": to_text(self._opened_at.get(association.association_id, now)),
        }
        connection.execute(NOTE_ASSOCIATION, facts)


def _arrival(held: sqlite3.Row | None) -> str:
    """Return how an instance came that is to be analysed; `held` is the row it had before."""
    if held is None:
        return "came"
    return "came again with other content" if held["purged_at"] is None else "came again after it was purged"


_ARRIVALS = {
    "came": (EventKind.RECEIVED, ReceiptKind.NEW),
    "came again after it was purged": (EventKind.RECEIVED, ReceiptKind.NEW),
    "came again with other content": (EventKind.REPLACED, ReceiptKind.REPLACED),
}
