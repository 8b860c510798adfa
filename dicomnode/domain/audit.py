"""What is worth an audit message (PS3.15 A.5.3): facts without a patient's name, which is read when one is made."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class AuditKind(StrEnum):
    """What happened. The values are stable: they stand in the store."""

    APPLICATION_START = "application-start"
    APPLICATION_STOP = "application-stop"
    RECEIVED = "received"
    SENT = "sent"
    ALERT = "alert"
    SHOWN = "shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceTransfer:
    """Instances of one study that passed between the node and one peer.

    `peer`: its AE title, or the name of a destination; `instances`: SOP Instance UIDs by SOP Class UID; `action`: C, R
    or U as of A.5.3.7; `failure`: why they did not pass.
    """

    study: str
    peer: str
    address: str
    action: str
    instances: dict[str, list[str]]
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that a peer tried and was not let do, so many times; `reason` is the node's own sentence."""

    address: str
    calling_ae: str
    reason: str
    times: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosure:
    """Somebody at `address` was shown on the page whom a study is of; `visitor` is who they signed in as."""

    study: str
    visitor: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One audit message to be made; numbers only ever grow."""

    number: int
    at: datetime
    kind: AuditKind
    about: InstanceTransfer | Alert | Disclosure | None
