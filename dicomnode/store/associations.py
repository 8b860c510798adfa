"""Whether a peer that sends a study is still connected.

The table `association` alone answers this: an association is open while its row has no `released_at`. A row is written
with the first image of the association; an association without an image has no row, and nothing waits for it. Whoever
asks (when a version is complete, what the worker prepares, which audit messages wait) uses the conditions below.
"""

from datetime import datetime

from dicomnode.domain.instance import AssociationInfo
from dicomnode.store.engine import Connection
from dicomnode.store.row_mapping import to_text

JOB_HAS_OPEN_SENDER = """EXISTS (
    SELECT 1 FROM instance JOIN association USING (association_id)
    WHERE instance.job_id = job.job_id AND association.released_at IS NULL
)"""
"""Condition on a row of `job`: an association that sent an image of this version is open."""

STUDY_HAS_OPEN_SENDER = """EXISTS (
    SELECT 1 FROM instance JOIN association USING (association_id)
    WHERE instance.study = {study} AND association.released_at IS NULL
)"""
"""Condition on the study in the column `{study}`: an association that sent an image of it is open."""

_NOTE = """
INSERT INTO association (association_id, calling_ae, called_ae, peer_address, opened_at, released_at)
VALUES (:association_id, :calling_ae, :called_ae, :peer_address, :opened_at, :released_at)
ON CONFLICT (association_id) DO NOTHING
"""

RELEASE = "UPDATE association SET released_at = :now WHERE association_id = :association_id AND released_at IS NULL"

_RELEASE_ALL = "UPDATE association SET released_at = :now WHERE released_at IS NULL"


def note_association(
    connection: Connection, association: AssociationInfo, opened_at: datetime | None, now: datetime
) -> None:
    """Write down who sends an image; `opened_at` is None for a sender that is not connected any more."""
    parameters = {
        "association_id": association.association_id,
        "calling_ae": association.calling_ae,
        "called_ae": association.called_ae,
        "peer_address": association.peer_address,
        "opened_at": to_text(opened_at or now),
        "released_at": None if opened_at is not None else to_text(now),
    }
    connection.execute(_NOTE, parameters)


def release_association(connection: Connection, association_id: str, now: datetime) -> None:
    """Write down that an association has ended, in whatever way."""
    connection.execute(RELEASE, {"association_id": association_id, "now": to_text(now)})


def release_every_association(connection: Connection, now: datetime) -> None:
    """Write down at a start that no association of a former run is open."""
    connection.execute(_RELEASE_ALL, {"now": to_text(now)})
