"""Storage Commitment as the node sees it: what it asked, and what a destination answered."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class CommitmentState(StrEnum):
    """Whether a destination has answered for keeping a delivered result.

    Overdue: it has not in time, and is asked again.
    """

    DUE = "due"
    REQUESTED = "requested"
    OVERDUE = "overdue"
    COMMITTED = "committed"
    FAILED = "failed"


class Remedy(StrEnum):
    """What the node does about a result that a destination does not answer for."""

    SEND_AGAIN = "send-again"
    ASK_AGAIN = "ask-again"
    GIVE_UP = "give-up"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentItem:
    """A delivered result that a destination is asked about, by the UIDs under which it is really stored there."""

    delivery_id: int
    study: str
    sop_class: str
    sop_instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentFailure:
    """Why a destination does not answer for an instance: its code, what that means, and what is done about it."""

    reason: int
    cause: str
    remedy: Remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentReport:
    """A destination's answer to one transaction, by SOP Instance UID."""

    transaction_uid: str
    committed: frozenset[str]
    failed: Mapping[str, CommitmentFailure]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentChanges:
    """What a report changed, by SOP Instance UID; `unknown`: the node has asked for no such transaction."""

    committed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    unknown: bool = False
