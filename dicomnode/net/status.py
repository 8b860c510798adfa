"""DIMSE status codes: which one the node answers, and what a peer's answer means. Hexadecimal lives only here.

Source: PS3.4 B.2.3 (Storage Service Class, Table B.2-1) and PS3.7 Annex C (general statuses).
"""

from enum import IntEnum

from dicomnode.domain.commitment import CommitmentFailure, Remedy
from dicomnode.domain.delivery import Accepted, Refused, StoreOutcome
from dicomnode.domain.errors import CxrNodeError, DiskFull, Transient, UidMismatch


class StoreStatus(IntEnum):
    """The statuses that the node's Storage SCP answers with."""

    SUCCESS = 0x0000
    """The object is durable. Source: PS3.7 C.1.1."""

    OUT_OF_RESOURCES = 0xA700
    """Refused: free space is below the configured bound. Source: PS3.4 B.2.3, A7xx."""

    STORE_UNAVAILABLE = 0xA701
    """Refused: the store cannot write at present; the sender is to try again. Source: PS3.4 B.2.3, A7xx."""

    DATA_SET_DOES_NOT_MATCH = 0xA900
    """Error: command and data set name different SOP classes or instances. Source: PS3.4 B.2.3, A9xx."""

    CANNOT_UNDERSTAND = 0xC000
    """Error: the data set cannot be read, or its UIDs are not valid. Source: PS3.4 B.2.3, Cxxx."""

    INTERNAL_ERROR = 0xC0FF
    """Error: the node failed in a way it does not know; its log has the traceback. Source: PS3.4 B.2.3, Cxxx."""


class CommandStatus(IntEnum):
    """The failures that the node answers to a request whose command it cannot serve. Source: PS3.7 Annex C."""

    INVALID_ARGUMENT_VALUE = 0x0115
    """A value is out of its range, such as a Priority of 3."""

    INVALID_SOP_INSTANCE = 0x0117
    """The SOP Instance UID is absent or is no UID."""

    SOP_CLASS_NOT_SUPPORTED = 0x0122
    """The SOP Class UID is absent or is no UID."""

    UNRECOGNISED_OPERATION = 0x0211
    """The node has no such service in this presentation context."""

    MISTYPED_ARGUMENT = 0x0212
    """An argument that has to be there is absent, such as the Message ID."""


class _General(IntEnum):
    """Statuses of PS3.7 Annex C that a peer may answer to C-STORE."""

    OPTIONAL_ATTRIBUTES_NOT_SUPPORTED = 0x0001
    ATTRIBUTE_LIST_ERROR = 0x0107
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    ATTRIBUTE_VALUE_OUT_OF_RANGE = 0x0116
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NOT_AUTHORISED = 0x0124
    DUPLICATE_INVOCATION = 0x0210
    RESOURCE_LIMITATION = 0x0213
    CANCEL = 0xFE00


# PS3.7 C.3: warnings; the operation took place. A duplicate means the peer already holds the object.
_DELIVERED = frozenset(
    {
        _General.OPTIONAL_ATTRIBUTES_NOT_SUPPORTED,
        _General.ATTRIBUTE_LIST_ERROR,
        _General.DUPLICATE_SOP_INSTANCE,
        _General.ATTRIBUTE_VALUE_OUT_OF_RANGE,
    }
)

_TRANSIENT: dict[int, str] = {
    _General.PROCESSING_FAILURE: "processing failure",
    _General.DUPLICATE_INVOCATION: "duplicate invocation",
    _General.RESOURCE_LIMITATION: "resource limitation",
    _General.CANCEL: "cancelled",
}

_PERMANENT: dict[int, str] = {
    _General.SOP_CLASS_NOT_SUPPORTED: "SOP class not supported",
    _General.NOT_AUTHORISED: "not authorised",
}

# PS3.4 Table B.2-1 by the high byte (A7xx, A9xx) or the high digit (Bxxx, Cxxx) of the status.
_OUT_OF_RESOURCES_BYTE = 0xA7
_DOES_NOT_MATCH_BYTE = 0xA9
_WARNING_DIGIT = 0xB
_CANNOT_UNDERSTAND_DIGIT = 0xC
_TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122


class EventStatus(IntEnum):
    """The statuses that the node answers a Storage Commitment report with. Source: PS3.7 C.4 and 10.1.1.1.8."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    """The report could not be written down; the peer is to report again."""

    NO_SUCH_EVENT_TYPE = 0x0113
    INVALID_ARGUMENT_VALUE = 0x0115
    """The report cannot be read, or speaks of a transaction that the node has not asked for."""

    NOT_AUTHORISED = 0x0124
    """The report comes from somebody else than the destination that was asked."""

    UNRECOGNISED_OPERATION = 0x0211
    """The node is no SCP of Storage Commitment: it was asked to commit itself."""


# PS3.3 C.14.1.1: what a failure means and what is done about it.
_COMMITMENT_FAILURES: dict[int, tuple[str, Remedy]] = {
    0x0110: ("processing failure", Remedy.SEND_AGAIN),
    0x0112: ("no such object instance", Remedy.SEND_AGAIN),
    0x0119: ("class-instance conflict", Remedy.GIVE_UP),
    0x0122: ("SOP class not supported", Remedy.GIVE_UP),
    0x0131: ("duplicate transaction UID", Remedy.ASK_AGAIN),
    0x0213: ("resource limitation", Remedy.SEND_AGAIN),
}


def commitment_failure(reason: int) -> CommitmentFailure:
    """Say what a peer's Failure Reason in a Storage Commitment report means for the result."""
    cause, remedy = _COMMITMENT_FAILURES.get(reason, ("without a known reason", Remedy.SEND_AGAIN))
    return CommitmentFailure(reason=reason, cause=f"{describe(reason)}: {cause}", remedy=remedy)


def status_for(error: CxrNodeError) -> StoreStatus:
    """Return the status that tells the sender the cause of `error`."""
    if isinstance(error, UidMismatch):
        return StoreStatus.DATA_SET_DOES_NOT_MATCH
    if isinstance(error, DiskFull):
        return StoreStatus.OUT_OF_RESOURCES
    if isinstance(error, Transient):
        return StoreStatus.STORE_UNAVAILABLE
    return StoreStatus.CANNOT_UNDERSTAND


def outcome_for(status: int, comment: str = "") -> StoreOutcome:
    """Say what a peer's C-STORE status means for the delivery: delivered, to be tried again, or refused for good.

    `comment`: the peer's Error Comment.
    """
    if status == StoreStatus.SUCCESS:
        return Accepted()
    if status in _DELIVERED or status >> 12 == _WARNING_DIGIT:
        return Accepted(warning=status)
    transient = _TRANSIENT.get(status)
    if status >> 8 == _OUT_OF_RESOURCES_BYTE:
        transient = "out of resources"
    if transient is not None:
        return Refused(status=status, cause=f"{describe(status)}: {transient}", permanent=False, comment=comment)
    return Refused(
        status=status, cause=f"{describe(status)}: {_permanent_cause(status)}", permanent=True, comment=comment
    )


def outcome_of_failure(reason: int) -> StoreOutcome:
    """Say what the Failure Reason of an instance in a Failed SOP Sequence means for the delivery.

    The instance was not stored, unless the peer has it already: what is a warning in a C-STORE response is a failure
    here. Source: PS3.18 10.5.3.
    """
    outcome = outcome_for(reason)
    if isinstance(outcome, Refused) or reason == _General.DUPLICATE_SOP_INSTANCE:
        return outcome
    return Refused(status=reason, cause=f"{describe(reason)}: not stored", permanent=True)


def is_unsupported_form(status: int | None) -> bool:
    """Tell whether a peer refused the form of an object only: its SOP class or its transfer syntax.

    Source: PS3.18 10.5.3.2 (Failure Reason).
    """
    return status in (_General.SOP_CLASS_NOT_SUPPORTED, _TRANSFER_SYNTAX_NOT_SUPPORTED)


def is_class_not_supported(status: int) -> bool:
    """Tell whether a peer refused the SOP class of an object, and may take it as one of another."""
    return status == _General.SOP_CLASS_NOT_SUPPORTED


def is_success(status: int) -> bool:
    """Tell whether a DIMSE status is Success."""
    return status == StoreStatus.SUCCESS


def describe(status: int) -> str:
    """Return a status as people write it, such as `A700`."""
    return f"{status:04X}"


def _permanent_cause(status: int) -> str:
    if status >> 8 == _DOES_NOT_MATCH_BYTE:
        return "data set does not match SOP class"
    if status >> 12 == _CANNOT_UNDERSTAND_DIGIT:
        return "cannot understand"
    return _PERMANENT.get(status, "refused")
