"""Verification and Storage SCU: one association for a batch, one typed outcome for each instance."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dicomnode.dicom.part10 import FileHead, read_file_head
from dicomnode.domain.delivery import Destination, NoAnswer, Refused, StoreOutcome
from dicomnode.domain.errors import CxrNodeError, PeerRefused, PeerUnavailable, Permanent, Transient
from dicomnode.domain.instance import InstanceRef
from dicomnode.net.contexts import UNCOMPRESSED, Proposal, group_by_contexts, proposals_for, verification_proposal
from dicomnode.net.scu.association import (
    AcceptedContext,
    NoContextAccepted,
    NoResponse,
    RequestedAssociation,
    open_association,
)
from dicomnode.net.scu.outgoing import (
    AS_IT_IS,
    MOST_ABORTS,
    MOST_SILENCES,
    Form,
    Outgoing,
    Report,
    can_transcode,
    encoded_data_set,
)
from dicomnode.net.status import describe, is_class_not_supported, is_success, outcome_for
from dicomnode.settings.delivery import DeliverySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoResult:
    """What a C-ECHO found. `round_trip_ms` is of the echo alone, None when there was no answer.

    `answered`: the peer accepted an association, whatever became of the echo.
    """

    succeeded: bool
    cause: str
    round_trip_ms: float | None
    answered: bool = False


def echo(destination: Destination, *, calling_ae: str, settings: DeliverySettings) -> EchoResult:
    """Try the link to a destination, and say precisely what is wrong with it."""
    try:
        with open_association(
            destination, verification_proposal(), calling_ae=calling_ae, settings=settings
        ) as association:
            began = time.perf_counter()
            status = association.echo().status
            round_trip_ms = (time.perf_counter() - began) * 1000
    except NoContextAccepted:
        cause = "the peer does not accept Verification"
        return EchoResult(succeeded=False, cause=cause, round_trip_ms=None, answered=True)
    except CxrNodeError as error:
        return EchoResult(succeeded=False, cause=str(error), round_trip_ms=None)
    if not is_success(status):
        cause = f"the peer answered status {describe(status)}"
        return EchoResult(succeeded=False, cause=cause, round_trip_ms=round_trip_ms, answered=True)
    return EchoResult(succeeded=True, cause="", round_trip_ms=round_trip_ms, answered=True)


def send(
    destination: Destination,
    items: Sequence[Outgoing],
    *,
    calling_ae: str,
    settings: DeliverySettings,
    form: Form = AS_IT_IS,
    report: Report | None = None,
) -> list[StoreOutcome]:
    """Send a batch over one association (over several only when it needs more than 128 contexts).

    Each object goes in the best form that the peer accepts. Returns the outcomes in the order of the items. An object
    over which the peer ends the association is `NoAnswer`, and the others go over a new one. When there is none to be
    had, or the peer ends one after the other, what was not answered is `NoAnswer`, and nothing is lost.
    """
    outcomes: dict[int, StoreOutcome] = {}

    def settle(position: int, outcome: StoreOutcome, sent_as: InstanceRef | None = None) -> None:
        outcomes[position] = outcome
        if report is not None:
            report(position, outcome, sent_as)

    for positions, proposals in group_by_contexts(_needs(item, form) for item in items):
        group = {position: items[position] for position in positions}
        try:
            _send_group(destination, group, proposals, calling_ae, settings, form, settle)
        except CxrNodeError as error:
            outcome = _failed(error)
            for position in group.keys() - outcomes.keys():
                settle(position, outcome)
    return [outcomes[position] for position in range(len(items))]


def _needs(item: Outgoing, form: Form) -> tuple[Proposal, ...]:
    return proposals_for(
        item.sop_class,
        item.transfer_syntax,
        classes=form.classes(item.sop_class),
        preferred=form.syntax(item.sop_class),
    )


def _send_group(
    destination: Destination,
    group: dict[int, Outgoing],
    proposals: tuple[Proposal, ...],
    calling_ae: str,
    settings: DeliverySettings,
    form: Form,
    settle: Report,
) -> None:
    """Send objects that share an association, and associate anew where the peer ends it.

    An object is to blame over which the peer has ended an association that carried nothing before.

    Raises: CxrNodeError, whose cause is that of every object without an outcome.
    """
    waiting = deque(group)
    lost = 0
    while waiting:
        before = len(waiting)
        association = open_association(destination, proposals, calling_ae=calling_ae, settings=settings)
        try:
            with association:
                while waiting:
                    _send_one(association, waiting[0], group[waiting[0]], form, settle)
                    waiting.popleft()
        except PeerUnavailable as error:
            is_silent, has_answered = isinstance(error, NoResponse), len(waiting) < before
            lost = 0 if has_answered else lost
            # Some peers take so many objects an association and no more: then the object is not to blame.
            if has_answered and not is_silent:
                continue
            lost += 1
            if lost >= (MOST_SILENCES if is_silent else MOST_ABORTS):
                raise
            settle(waiting.popleft(), _failed(error), None)


def _send_one(association: RequestedAssociation, position: int, item: Outgoing, form: Form, settle: Report) -> None:
    """Send an object in the best form that the peer takes, and settle its outcome. Raises: PeerUnavailable."""
    outcome: StoreOutcome = Refused(status=None, cause="no presentation context for the SOP class", permanent=True)
    sent_as = None
    try:
        for prepared in _forms(association, item.read(), form):
            response = association.store(prepared.data_set, prepared.sop_instance, prepared.context)
            outcome, sent_as = outcome_for(response.status, response.comment), prepared.sent_as
            # A peer may accept the context of a class that its storage then refuses: the next class is tried.
            if not is_class_not_supported(response.status):
                break
    except PeerUnavailable:
        raise
    except Permanent as error:
        outcome, sent_as = Refused(status=None, cause=str(error), permanent=True), None
    except Transient as error:
        outcome, sent_as = NoAnswer(cause=str(error)), None
    settle(position, outcome, sent_as)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    data_set: bytes
    sop_instance: str
    context: AcceptedContext
    sent_as: InstanceRef | None


def _forms(association: RequestedAssociation, part10: bytes, form: Form) -> Iterator[_Prepared]:
    """Give an object as one of each SOP class that the peer accepted for it, the best first.

    Raises: Permanent when the object cannot be read or encoded, or the peer takes none of its transfer syntaxes.
    """
    accepted = {entry.abstract_syntax for entry in association.contexts}
    for entry in form.classes(read_file_head(part10).sop_class):
        found = form.under(part10, entry) if entry in accepted else None
        if found is None:
            continue
        own, sent_as = found
        head = read_file_head(own)
        context = _context_for(head, association.contexts, form.syntax(head.sop_class))
        if context is None:
            raise PeerRefused("no presentation context for the transfer syntax")
        data_set = _data_set(own, head, context)
        yield _Prepared(data_set=data_set, sop_instance=head.sop_instance, context=context, sent_as=sent_as)


def _context_for(
    head: FileHead, contexts: tuple[AcceptedContext, ...], preferred: str | None
) -> AcceptedContext | None:
    accepted = {entry.transfer_syntax: entry for entry in contexts if entry.abstract_syntax == head.sop_class}
    others = (*((preferred,) if preferred else ()), *UNCOMPRESSED) if can_transcode(head.transfer_syntax) else ()
    wanted = dict.fromkeys((*others[: 1 if preferred else 0], head.transfer_syntax, *others))
    return next((accepted[syntax] for syntax in wanted if syntax in accepted), None)


def _data_set(part10: bytes, head: FileHead, context: AcceptedContext) -> bytes:
    if context.transfer_syntax == head.transfer_syntax:
        return part10[head.offset :]
    return encoded_data_set(part10, context.transfer_syntax)


def _failed(error: CxrNodeError) -> StoreOutcome:
    if isinstance(error, NoContextAccepted):
        return Refused(status=None, cause=str(error), permanent=True)
    return NoAnswer(cause=str(error), permanent=isinstance(error, PeerRefused))
