"""What arrived, from whom, and where its bytes are."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRef:
    """One SOP instance and the study and series it belongs to, as UIDs."""

    study: str
    series: str
    sop_class: str
    sop_instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationInfo:
    """The association over which an instance arrived."""

    association_id: str
    calling_ae: str
    called_ae: str
    peer_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySender:
    """Who sent something of a study, and under which name it called the node."""

    calling_ae: str
    called_ae: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInstance:
    """A received instance whose Part 10 bytes and row are durable.

    `blob` names the bytes in the store's blob folder (it is the node's own name, never a peer's string);
    `sha256` is over those bytes.
    """

    ref: InstanceRef
    transfer_syntax: str
    blob: str
    sha256: str
    size_bytes: int
    calling_ae: str
    received_at: datetime
