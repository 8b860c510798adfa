"""What the node negotiates and answers, from the tables of `net`."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from pydicom.uid import UID, ExplicitVRLittleEndian

from dicomnode.conformance.markdown import code, table
from dicomnode.domain.delivery import Accepted, NoAnswer, StoreOutcome
from dicomnode.domain.errors import CxrNodeError, DiskFull, StoreUnavailable, UidMismatch, UnreadableObject
from dicomnode.net.contexts import (
    COMPRESSED_RESULTS,
    ENCODINGS,
    REPORT_PREFERENCES,
    RESULT_CLASSES,
    SCU_ROLE_CLASSES,
    accepted_contexts,
    commitment_proposal,
    proposals_for,
    verification_proposal,
)
from dicomnode.net.status import CommandStatus, StoreStatus, describe, outcome_for, status_for
from dicomnode.settings.node import ScpSettings

_LAST_STATUS = 0xFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextRow:
    """A presentation context as the statement has it."""

    abstract_syntax: str
    transfer_syntax: str
    role: str


_ANSWERS: dict[StoreStatus, tuple[str, str, CxrNodeError | None]] = {
    StoreStatus.SUCCESS: ("Success", "The object and its record are synced to disk.", None),
    StoreStatus.OUT_OF_RESOURCES: (
        "Refused: out of resources",
        "Free disk is below `store.minimum_free_bytes`; nothing is kept. Try again later.",
        DiskFull(""),
    ),
    StoreStatus.STORE_UNAVAILABLE: (
        "Refused: out of resources",
        "The store cannot write at present; nothing is kept. Try again later.",
        StoreUnavailable(""),
    ),
    StoreStatus.DATA_SET_DOES_NOT_MATCH: (
        "Error: data set does not match SOP class",
        "Command, presentation context and data set do not name the same SOP class and instance; nothing is kept.",
        UidMismatch(""),
    ),
    StoreStatus.CANNOT_UNDERSTAND: (
        "Error: cannot understand",
        "The data set cannot be read as far as its UIDs, or they are not valid; nothing is kept.",
        UnreadableObject(""),
    ),
    StoreStatus.INTERNAL_ERROR: (
        "Error: cannot understand",
        "A fault of the node; nothing is promised, and its log says where it was. Try again later.",
        None,
    ),
}


def acceptor_contexts() -> list[ContextRow]:
    """Return what the listener accepts when nothing is configured, one row for each pair of syntaxes."""
    return [
        ContextRow(
            abstract_syntax=context.abstract_syntax,
            transfer_syntax=syntax,
            role="SCU (the peer is SCP)" if context.abstract_syntax in SCU_ROLE_CLASSES else "SCP",
        )
        for context in accepted_contexts(ScpSettings().also_accept)
        for syntax in context.transfer_syntaxes
    ]


def requestor_contexts() -> list[ContextRow]:
    """Return what the node proposes of itself: for a C-ECHO, for its results, for Storage Commitment."""
    proposals = [
        *verification_proposal(),
        *(entry for result in RESULT_CLASSES for entry in proposals_for(result.uid, str(ExplicitVRLittleEndian))),
        *commitment_proposal(),
    ]
    rows = [
        ContextRow(abstract_syntax=entry.abstract_syntax, transfer_syntax=syntax, role="SCU")
        for entry in proposals
        for syntax in entry.transfer_syntaxes
    ]
    return list(dict.fromkeys(rows))


def preference_rows() -> list[tuple[str, str]]:
    """Return under which SOP classes a report may go, best first, by what the destination prefers."""
    return [
        (code(preference.value), ", then ".join(_titled(entry) for entry in classes))
        for preference, classes in REPORT_PREFERENCES.items()
    ]


def encoding_rows() -> list[tuple[str, str, str]]:
    """Return the transfer syntaxes that a destination may prefer, and for which objects."""
    images = ", ".join(sorted(UID(entry).name for entry in COMPRESSED_RESULTS))
    return [
        (code(encoding.value), _titled(syntax), images if UID(syntax).is_compressed else "all")
        for encoding, syntax in ENCODINGS.items()
    ]


def contexts_table(rows: list[ContextRow]) -> str:
    """Return presentation contexts as a table, grouped by abstract syntax."""
    lines = []
    for (abstract, role), group in groupby(rows, key=lambda row: (row.abstract_syntax, row.role)):
        syntaxes = ", ".join(f"{UID(row.transfer_syntax).name} {code(row.transfer_syntax)}" for row in group)
        lines.append((UID(abstract).name, code(abstract), syntaxes, role, "None"))
    return table(("Abstract syntax", "UID", "Transfer syntaxes, by preference", "Role", "Extended negotiation"), lines)


def acceptor_statuses() -> list[tuple[str, str, str]]:
    """Return every status that the Storage SCP answers: code, meaning, behaviour.

    Raises: KeyError, when a status has no entry; AssertionError, when the node gives another status for its cause.
    """
    rows = []
    for status in StoreStatus:
        meaning, behaviour, cause = _ANSWERS[status]
        if cause is not None and status_for(cause) is not status:
            raise AssertionError(f"{type(cause).__name__} is no longer answered with {describe(status)}")
        rows.append((code(describe(status)), meaning, behaviour))
    return rows


def command_statuses() -> list[tuple[str, str]]:
    """Return every failure that a request with a command that cannot be served is answered with: code, cause."""
    causes = {
        CommandStatus.INVALID_ARGUMENT_VALUE: "a value is out of its range, such as a Priority of 3",
        CommandStatus.INVALID_SOP_INSTANCE: "the SOP Instance UID is absent or has more than 64 characters",
        CommandStatus.SOP_CLASS_NOT_SUPPORTED: "the SOP Class UID is absent or has more than 64 characters",
        CommandStatus.UNRECOGNISED_OPERATION: "there is no such service in the presentation context",
        CommandStatus.MISTYPED_ARGUMENT: "an argument is absent, such as the Message ID",
    }
    return [(code(describe(status)), causes[status]) for status in CommandStatus]


def requestor_statuses() -> list[tuple[str, str, str]]:
    """Return how the Storage SCU takes every status there is, in ranges: codes, cause, behaviour.

    The meaning that most statuses share is said of "any other".
    """
    meanings = [_taken(status) for status in range(_LAST_STATUS + 1)]
    usual = Counter(meanings).most_common(1)[0][0]
    rows = []
    for meaning, group in groupby(enumerate(meanings), key=lambda pair: pair[1]):
        statuses = [status for status, _ in group]
        first, last = describe(statuses[0]), describe(statuses[-1])
        if meaning != usual:
            rows.append((code(first) if first == last else f"{code(first)} to {code(last)}", *meaning))
    return [*rows, ("any other", *usual)]


def _taken(status: int) -> tuple[str, str]:
    outcome: StoreOutcome = outcome_for(status)
    if isinstance(outcome, Accepted):
        return ("success", "delivered") if outcome.warning is None else ("warning", "delivered; the warning is kept")
    if isinstance(outcome, NoAnswer):
        return "no answer", "tried again"
    cause = outcome.cause.removeprefix(describe(status)).lstrip(": ")
    return cause, "dead letter; not tried again by itself" if outcome.permanent else "tried again with growing delays"


def _titled(sop_class: str) -> str:
    return f"{UID(sop_class).name} {code(sop_class)}"


def sop_class_rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield the SOP classes of the overview: name, UID, as SCU, as SCP."""
    received = {row.abstract_syntax for row in acceptor_contexts() if row.role == "SCP"}
    sent = {row.abstract_syntax for row in requestor_contexts()}
    for uid in sorted(received | sent, key=lambda entry: (UID(entry).name, entry)):
        yield UID(uid).name, code(uid), "Yes" if uid in sent else "No", "Yes" if uid in received else "No"
