"""Between rows and the domain's types: times as text, and rows as frozen values."""

import json
from datetime import UTC, datetime

from dicomnode.domain.answer import ResultKind
from dicomnode.domain.delivery import Delivery
from dicomnode.domain.instance import InstanceRef, StoredInstance
from dicomnode.domain.summary import StudySummary
from dicomnode.results.summary import read_summary
from dicomnode.store.engine import Row

_LONGEST_CAUSE = 500


def to_text(moment: datetime) -> str:
    """Return a time as UTC in the store's fixed-width form, in which text order is time order."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone cannot be stored")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def to_time(text: str) -> datetime:
    """Return the time that `to_text` wrote."""
    return datetime.fromisoformat(text)


def to_optional_time(text: str | None) -> datetime | None:
    """Return the time that `to_text` wrote, or None for an absent one."""
    return None if text is None else to_time(text)


def shortened(cause: str) -> str:
    """Return a cause with at most 500 characters."""
    return cause if len(cause) <= _LONGEST_CAUSE else cause[: _LONGEST_CAUSE - 1] + "…"


def to_ref(row: Row) -> InstanceRef:
    """Return the UIDs in a row."""
    return InstanceRef(
        study=row["study"], series=row["series"], sop_class=row["sop_class"], sop_instance=row["sop_instance"]
    )


def to_stored_instance(row: Row) -> StoredInstance:
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


def to_summary(row: Row) -> StudySummary:
    """Return the summary in a row of `job`; an empty one, if that version is not answered."""
    return read_summary(json.loads(row["summary"] or "{}"))


def to_delivery(row: Row) -> Delivery:
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
