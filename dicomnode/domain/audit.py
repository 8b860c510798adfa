"""Audit records (PS3.15 A.5.3): facts without the patient, who is read from stored objects when a message is made."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class AuditKind(StrEnum):
    """What an audit record is about. The values are stable: they stand in the store."""

    APPLICATION_START = "application-start"
    APPLICATION_STOP = "application-stop"
    RECEIVED = "received"
    SENT = "sent"
    ALERT = "alert"
    SHOWN = "shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceTransfer:
    """A transfer of instances of one study between the node and one peer (PS3.15 A.5.3.7).

    `peer`: its AE title, or the name of a destination; `instances`: SOP Instance UIDs by SOP Class UID; `action`: C, R
    or U as of A.5.3.7; `failure`: why the transfer failed.
    """

    study: str
    peer: str
    address: str
    action: str
    instances: dict[str, list[str]]
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """What a peer was refused, and how many times; `reason` is one of the node's own words (PS3.15 A.5.3.11)."""

    address: str
    calling_ae: str
    reason: str
    times: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosure:
    """A visitor of the page at `address` saw the patient of a study; `visitor` names their token or account."""

    study: str
    visitor: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One audit message to be sent; numbers are never used twice."""

    number: int
    at: datetime
    kind: AuditKind
    about: InstanceTransfer | Alert | Disclosure | None
