"""Between rows and the domain's types: times as text, and an event for everything that happens."""

import json
import sqlite3
from datetime import UTC, datetime
from enum import StrEnum

from dicomnode.domain.answer import ResultKind
from dicomnode.domain.delivery import Delivery
from dicomnode.domain.instance import AssociationInfo, InstanceRef, StoredInstance
from dicomnode.domain.summary import StudySummary
from dicomnode.results.summary import read_summary

_LONGEST_DETAIL = 500


class EventKind(StrEnum):
    """What can happen to a study. The values are stable: they stand in the ledger."""

    RECEIVED = "received"
    DUPLICATE = "duplicate"
    OWN_RESULT_RETURNED = "own-result-returned"
    REPLACED = "replaced"
    REFUSED = "refused"
    VERSION_OPENED = "version-opened"
    CLAIMED = "claimed"
    INTERRUPTED = "interrupted"
    SUPERSEDED = "superseded"
    DEFERRED = "deferred"
    DEAD = "dead"
    IMAGE_REJECTED = "image-rejected"
    IMAGE_UNMENTIONED = "image-unmentioned"
    ANSWERED = "answered"
    REJECTED = "rejected"
    KEPT = "kept"
    QUEUED = "queued"
    DELIVERED = "delivered"
    DELIVERY_DEFERRED = "delivery-deferred"
    DELIVERY_INTERRUPTED = "delivery-interrupted"
    DELIVERY_DEAD = "delivery-dead"
    UNROUTED = "unrouted"
    COMMITMENT_REQUESTED = "commitment-requested"
    COMMITMENT_DEFERRED = "commitment-deferred"
    COMMITMENT_OVERDUE = "commitment-overdue"
    COMMITMENT_FAILED = "commitment-failed"
    COMMITTED = "committed"
    RETRIED = "retried"
    DROPPED = "dropped"
    PURGED = "purged"


def to_text(moment: datetime) -> str:
    """Return a time as UTC in the store's fixed-width form, in which text order is time order."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone cannot be stored")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def to_time(text: str) -> datetime:
    """Return the time that `to_text` wrote."""
    return datetime.fromisoformat(text)


def to_optional_time(text: str | None) -> datetime | None:
    """Return the time that `to_text` wrote, if there is one."""
    return None if text is None else to_time(text)


def shortened(cause: str) -> str:
    """Return a cause that fits a ledger column."""
    return cause if len(cause) <= _LONGEST_DETAIL else cause[: _LONGEST_DETAIL - 1] + "…"


def whence(association: AssociationInfo) -> str:
    """Return from whom something came, at the end of an event's detail, where the audit trail looks for it."""
    return f"from {association.calling_ae} at {association.peer_address}"


RECORD = "INSERT INTO event (at, study, version, kind, detail) VALUES (?, ?, ?, ?, ?)"


def record(
    connection: sqlite3.Connection, now: datetime, study: str, version: int | None, kind: EventKind, detail: str
) -> None:
    """Add an event to the ledger, in the caller's transaction."""
    connection.execute(RECORD, (to_text(now), study, version, kind, shortened(detail)))


def to_ref(row: sqlite3.Row) -> InstanceRef:
    """Return the UIDs in a row."""
    return InstanceRef(
        study=row["study"], series=row["series"], sop_class=row["sop_class"], sop_instance=row["sop_instance"]
    )


def to_stored_instance(row: sqlite3.Row) -> StoredInstance:
    """Return the received instance in a row of `instance` joined with `association`."""
    return StoredInstance(
        ref=to_ref(row),
        transfer_syntax=row["transfer_syntax"],
        blob=row["blob"],
        sha256=row["blob"],
        size_bytes=row["size_bytes"],
        calling_ae=row["calling_ae"],
        received_at=to_time(row["received_at"]),
    )


def to_summary(row: sqlite3.Row) -> StudySummary:
    """Return what the version of an answer in a row of `job` said; nothing, if it was not answered."""
    return read_summary(json.loads(row["summary"] or "{}"))


def to_delivery(row: sqlite3.Row) -> Delivery:
    """Return the delivery in a row of `delivery` joined with `result`."""
    return Delivery(
        delivery_id=row["delivery_id"],
        destination=row["destination"],
        ref=to_ref(row),
        kind=ResultKind(row["kind"]),
        transfer_syntax=row["transfer_syntax"],
        blob=row["blob"],
        attempts=row["attempts"],
        created_at=to_time(row["created_at"]),
    )
