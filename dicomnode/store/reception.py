"""The reception of an image: its bytes and its row become durable, and it joins its study.

What `accept` promises: when it returns, the bytes and their row survive a loss of power.

The same SOP Instance UID again:

- with the same bytes, it is a duplicate: nothing is done twice;
- with other bytes, the newest content is current and makes a new version of the answer; the former row stays;
- under another study, it is refused: a SOP instance belongs to one study (PS3.3 A.1.2);
- after its bytes were purged, it is received as if it were new: the same images make the same results, which no
  destination gets twice;
- as one of this node's own results, it is a duplicate: the node has it, and must not analyse it;
- from a peer that had sent nothing of the study before, the study is answered once more, since its results may have
  further destinations now: they are the same instances, so no destination gets them twice;
- of a study that has lost a result before it was delivered, the study is answered once more, which makes it again.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dicomnode.domain.errors import UidMismatch
from dicomnode.domain.instance import AssociationInfo, InstanceRef
from dicomnode.settings.node import AssemblySettings
from dicomnode.store.associations import note_association, release_association
from dicomnode.store.blob_references import remove_unnamed
from dicomnode.store.blobs.local import Blobs
from dicomnode.store.blobs.streamed import Arriving
from dicomnode.store.engine import Connection, Database, Row
from dicomnode.store.engine.group_commit import GroupCommit
from dicomnode.store.events import EventKind, OpenedFor, record
from dicomnode.store.jobs import join_open_version, note_arrival, note_sender, reschedule
from dicomnode.store.row_mapping import to_text

CURRENT = "SELECT instance_id, study, blob, job_id, purged_at FROM instance WHERE sop_instance = ? AND current = 1"

OWN_RESULT = """
SELECT 1 FROM result WHERE sop_instance = :sop_instance
UNION ALL
SELECT 1 FROM delivery WHERE sent_sop_instance = :sop_instance
LIMIT 1
"""

_REPLACE = "UPDATE instance SET current = 0 WHERE instance_id = ?"

_ADD_INSTANCE = """
INSERT INTO instance (job_id, study, series, sop_class, sop_instance, transfer_syntax, blob, size_bytes,
    association_id, received_at)
VALUES (:job_id, :study, :series, :sop_class, :sop_instance, :transfer_syntax, :blob, :size_bytes,
    :association_id, :received_at)
"""

LOST_RESULT = "SELECT 1 FROM result WHERE study = ? AND lost_at IS NOT NULL LIMIT 1"

COLLECTING_FROM = """
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
    """The promise that an instance is durable.

    `version` of the study's answer will include the image; None for a duplicate.
    """

    kind: ReceiptKind
    study: str
    version: int | None


class Reception:
    """Receives images from many associations at once; their rows are committed together."""

    def __init__(self, database: Database, blobs: Blobs, settings: AssemblySettings) -> None:
        self._database, self._blobs, self._settings = database, blobs, settings
        self._commits = GroupCommit(database)
        # When associations began that have sent no image yet: their rows are written with their first image.
        self._opened_at: dict[str, datetime] = {}
        # Associations whose end could not be written down when they ended.
        self._ended: set[str] = set()

    def association_opened(self, association_id: str, now: datetime) -> None:
        """Take note that an association has begun; the studies it contributes to wait until it is released."""
        self._opened_at[association_id] = now

    def association_released(self, association_id: str, now: datetime) -> None:
        """Let the studies to which this association contributed become complete; it may have ended in any way.

        Raises: StoreUnavailable; the end is then written down with that of the next association, and until then the
        studies wait for their maximum time at most.
        """
        self._opened_at.pop(association_id, None)
        self._ended.add(association_id)
        ended = tuple(self._ended)
        with self._database.transaction() as connection:
            for name in ended:
                release_association(connection, name, now)
                for row in connection.execute(COLLECTING_FROM, (name,)).fetchall():
                    reschedule(connection, row["job_id"], self._settings)
        self._ended.difference_update(ended)

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

        `part10`: its bytes, or all of what `arriving` began, which the caller discards afterwards.

        Raises: UidMismatch (the SOP instance is held under another study), DiskFull, StoreUnavailable. After an error
        nothing of the instance is kept.
        """
        if (known := self._known(ref, association, now)) is not None:
            return known
        blob = self._blobs.write(part10)
        parameters = {
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

        def add(connection: Connection) -> Receipt:
            receipt = self._add(connection, ref, parameters, association, now)
            # The same bytes may have been purged with another study since they were written above.
            self._blobs.ensure(blob, part10)
            return receipt

        try:
            receipt = self._commits.commit(add)
            self._blobs.acknowledge(blob)
        except BaseException:
            remove_unnamed(self._database, self._blobs, [blob])
            raise
        return receipt

    def _known(self, ref: InstanceRef, association: AssociationInfo, now: datetime) -> Receipt | None:
        """Answer for an instance whose bytes need not be written: the node's own result, or one of another study."""
        with self._database.reading() as connection:
            current = connection.execute(CURRENT, (ref.sop_instance,)).fetchone()
            own = connection.execute(OWN_RESULT, {"sop_instance": ref.sop_instance}).fetchone()
        if own is not None:
            with self._database.transaction() as connection:
                _record_arrival(connection, now, ref, None, EventKind.OWN_RESULT_RETURNED, association)
            return Receipt(kind=ReceiptKind.DUPLICATE, study=ref.study, version=None)
        if current is not None and current["study"] != ref.study:
            facts = {"sop_instance": ref.sop_instance, "held_in_study": current["study"]}
            with self._database.transaction() as connection:
                record(connection, now, ref.study, None, EventKind.REFUSED, **facts)
            raise UidMismatch(f"{ref.sop_instance} is already held in study {current['study']}")
        return None

    def _add(
        self,
        connection: Connection,
        ref: InstanceRef,
        parameters: dict[str, object],
        association: AssociationInfo,
        now: datetime,
    ) -> Receipt:
        """Add an instance to its study, in a transaction; `parameters` are those of its row."""
        current = connection.execute(CURRENT, (ref.sop_instance,)).fetchone()
        if current is not None and current["study"] != ref.study:  # received over another association in the meantime
            raise UidMismatch(f"{ref.sop_instance} is already held in study {current['study']}")
        is_new_sender = note_sender(connection, ref.study, association, now)
        if current is not None and current["blob"] == parameters["blob"] and current["purged_at"] is None:
            _record_arrival(connection, now, ref, None, EventKind.DUPLICATE, association)
            self._answer_again(connection, ref.study, now, is_new_sender=is_new_sender)
            return Receipt(kind=ReceiptKind.DUPLICATE, study=ref.study, version=None)
        opened_at = self._opened_at.get(association.association_id)
        note_association(connection, association, opened_at, now)
        if current is not None:
            connection.execute(_REPLACE, (current["instance_id"],))
        joined = join_open_version(connection, ref.study, now)
        connection.execute(_ADD_INSTANCE, parameters | {"job_id": joined.job_id})
        note_arrival(connection, joined.job_id, now)
        reschedule(connection, joined.job_id, self._settings)
        return self._receive(connection, ref, current, joined.version, association, now)

    def _receive(
        self,
        connection: Connection,
        ref: InstanceRef,
        former: Row | None,
        version: int,
        association: AssociationInfo,
        now: datetime,
    ) -> Receipt:
        """Record how an instance came that a version will include; `former` is the row it had before."""
        if former is not None and former["purged_at"] is None:
            _record_arrival(connection, now, ref, version, EventKind.REPLACED, association)
            return Receipt(kind=ReceiptKind.REPLACED, study=ref.study, version=version)
        after_purge = True if former is not None else None
        _record_arrival(connection, now, ref, version, EventKind.RECEIVED, association, after_purge=after_purge)
        return Receipt(kind=ReceiptKind.NEW, study=ref.study, version=version)

    def _answer_again(self, connection: Connection, study: str, now: datetime, *, is_new_sender: bool) -> None:
        """Have a study answered once more although nothing new came, if there is a reason to."""
        if is_new_sender:
            opened_for = OpenedFor.NEW_SENDER
        elif connection.execute(LOST_RESULT, (study,)).fetchone() is not None:
            opened_for = OpenedFor.LOST_RESULT
        else:
            return
        joined = join_open_version(connection, study, now, opened_for=opened_for)
        note_arrival(connection, joined.job_id, now)
        reschedule(connection, joined.job_id, self._settings)


def _record_arrival(
    connection: Connection,
    now: datetime,
    ref: InstanceRef,
    version: int | None,
    kind: EventKind,
    association: AssociationInfo,
    **facts: bool | None,
) -> None:
    """Record that an instance came, and from whom."""
    record(
        connection,
        now,
        ref.study,
        version,
        kind,
        sop_instance=ref.sop_instance,
        calling_ae=association.calling_ae,
        peer_address=association.peer_address,
        **facts,
    )
