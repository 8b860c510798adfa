"""The events of the ledger: what can happen to a study, and the facts that an event carries.

An event has a kind and facts: a JSON object of plain values. `FACTS` lists their names for each kind. Sentences are
made of the facts when an event is shown (`ledger.describe`); nothing reads a sentence. Facts carry no patient data.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from dicomnode.store.engine import Connection, Row
from dicomnode.store.row_mapping import shortened, to_text, to_time

_LONG_FACTS = ("cause", "detail")
"""Facts that hold a text of the node's own of any length; it is shortened before it is stored."""


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
    RESULT_REPLACED = "result-replaced"
    UNROUTED = "unrouted"
    COMMITMENT_REQUESTED = "commitment-requested"
    COMMITMENT_DEFERRED = "commitment-deferred"
    COMMITMENT_OVERDUE = "commitment-overdue"
    COMMITMENT_FAILED = "commitment-failed"
    COMMITTED = "committed"
    RETRIED = "retried"
    DROPPED = "dropped"
    PURGED = "purged"
    WRITTEN_OFF = "written-off"


class OpenedFor(StrEnum):
    """Why a version of a study's answer was opened. The values are stable: they stand in the ledger."""

    NEW_STUDY = "new-study"
    LATE_IMAGE = "late-image"
    NEW_SENDER = "new-sender"
    OPERATOR = "operator"
    LOST_RESULT = "lost-result"


_IMAGE = frozenset({"sop_instance"})
_ARRIVAL = frozenset({"sop_instance", "calling_ae", "peer_address"})
_DELIVERY = frozenset({"result_kind", "sop_instance", "destination"})

FACTS: Mapping[EventKind, frozenset[str]] = {
    EventKind.RECEIVED: _ARRIVAL | {"after_purge"},
    EventKind.DUPLICATE: _ARRIVAL,
    EventKind.OWN_RESULT_RETURNED: _ARRIVAL,
    EventKind.REPLACED: _ARRIVAL,
    EventKind.REFUSED: _IMAGE | {"held_in_study"},
    EventKind.VERSION_OPENED: frozenset({"opened_for", "asked_by"}),
    EventKind.CLAIMED: frozenset({"attempt", "instances"}),
    EventKind.INTERRUPTED: frozenset({"attempt"}),
    EventKind.SUPERSEDED: frozenset({"by_version"}),
    EventKind.DEFERRED: frozenset({"cause", "retry_in_s"}),
    EventKind.DEAD: frozenset({"cause"}),
    EventKind.IMAGE_REJECTED: _IMAGE | {"reason", "detail"},
    EventKind.IMAGE_UNMENTIONED: _IMAGE,
    EventKind.ANSWERED: frozenset({"results", "rejected_images", "known_results"}),
    EventKind.REJECTED: frozenset({"rejected_images"}),
    EventKind.KEPT: frozenset({"results"}),
    EventKind.QUEUED: _DELIVERY,
    EventKind.DELIVERED: _DELIVERY | {"warning", "sent_sop_class", "sent_sop_instance"},
    EventKind.DELIVERY_DEFERRED: _DELIVERY | {"attempt", "cause", "retry_in_s"},
    EventKind.DELIVERY_INTERRUPTED: _DELIVERY | {"attempt"},
    EventKind.DELIVERY_DEAD: _DELIVERY | {"cause", "given_up_after"},
    EventKind.RESULT_REPLACED: frozenset({"result_kind", "sop_instance"}),
    EventKind.UNROUTED: frozenset({"results", "calling_aes"}),
    EventKind.COMMITMENT_REQUESTED: _DELIVERY | {"transaction_uid"},
    EventKind.COMMITMENT_DEFERRED: _DELIVERY | {"cause", "given_up"},
    EventKind.COMMITMENT_OVERDUE: _DELIVERY,
    EventKind.COMMITMENT_FAILED: _DELIVERY | {"cause", "retry_in_s", "given_up"},
    EventKind.COMMITTED: _DELIVERY,
    EventKind.RETRIED: frozenset({"former_state", "sop_instance", "destination"}),
    EventKind.DROPPED: frozenset({"former_state", "sop_instance", "destination"}),
    EventKind.PURGED: frozenset({"what", "files", "days", "audit_pending"}),
    EventKind.WRITTEN_OFF: frozenset({"blob"}),
}
"""The facts that an event of a kind may carry; a fact that does not apply is absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEvent:
    """Something that happened to a study.

    `former_text`: the text that a former version of the node wrote; None in an event that was written with its facts.
    """

    at: datetime
    study: str
    version: int | None
    kind: EventKind
    facts: Mapping[str, Any]
    former_text: str | None = None


_ADD = """
INSERT INTO event (at, study, version, kind, facts) VALUES (:at, :study, :version, :kind, :facts)
"""


def record(
    connection: Connection, now: datetime, study: str, version: int | None, kind: EventKind, **facts: Any
) -> None:
    """Add an event to the ledger, in the caller's transaction; a fact that is None is left out."""
    if unknown := facts.keys() - FACTS[kind]:
        raise ValueError(f"an event of kind {kind} has no fact {', '.join(sorted(unknown))}")
    kept = {name: value for name, value in facts.items() if value is not None}
    kept |= {name: shortened(kept[name]) for name in _LONG_FACTS if name in kept}
    parameters = {"at": to_text(now), "study": study, "version": version, "kind": kind}
    connection.execute(_ADD, parameters | {"facts": json.dumps(kept, sort_keys=True)})


def to_event(row: Row) -> LedgerEvent:
    """Return the event in a row of `event`."""
    return LedgerEvent(
        at=to_time(row["at"]),
        study=row["study"],
        version=row["version"],
        kind=EventKind(row["kind"]),
        facts=json.loads(row["facts"]),
        former_text=row["former_text"],
    )
