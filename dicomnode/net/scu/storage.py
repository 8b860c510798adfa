"""Verification and Storage SCU: one association for a batch, one typed outcome for each instance."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dicomnode.dicom.part10 import FileHead, read_file_head
from dicomnode.domain.delivery import Destination, NoAnswer, Refused, StoreOutcome
from dicomnode.domain.errors import CxrNodeError, PeerRefused, Permanent, Transient
from dicomnode.domain.instance import InstanceRef
from dicomnode.net.contexts import UNCOMPRESSED, Proposal, group_by_contexts, proposals_for, verification_proposal
from dicomnode.net.scu.association import AcceptedContext, NoContextAccepted, RequestedAssociation, open_association
from dicomnode.net.scu.outgoing import AS_IT_IS, Form, Outgoing, Report, can_transcode, encoded_data_set
from dicomnode.net.status import describe, is_success, outcome_for
from dicomnode.settings.delivery import DeliverySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoResult:
    """What a C-ECHO found. `round_trip_ms` is of the echo alone, None when there was no answer."""

    succeeded: bool
    cause: str
    round_trip_ms: float | None


def echo(destination: Destination, *, calling_ae: str, settings: DeliverySettings) -> EchoResult:
    """Try the link to a destination, and say precisely what is wrong with it."""
    try:
        with open_association(
            destination, verification_proposal(), calling_ae=calling_ae, settings=settings
        ) as association:
            began = time.perf_counter()
            status = association.echo()
            round_trip_ms = (time.perf_counter() - began) * 1000
    except NoContextAccepted:
        return EchoResult(succeeded=False, cause="the peer does not accept Verification", round_trip_ms=None)
    except CxrNodeError as error:
        return EchoResult(succeeded=False, cause=str(error), round_trip_ms=None)
    if not is_success(status):
        return EchoResult(
            succeeded=False, cause=f"the peer answered status {describe(status)}", round_trip_ms=round_trip_ms
        )
    return EchoResult(succeeded=True, cause="", round_trip_ms=round_trip_ms)


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

    Each object goes in the best form that the peer accepts. Returns the outcomes in the order of the items. When the
    association ends early, what was not answered is `NoAnswer`, and nothing is lost.
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
    with open_association(destination, proposals, calling_ae=calling_ae, settings=settings) as association:
        for position, item in group.items():
            prepared = _prepare(association, item, form)
            if isinstance(prepared, _Prepared):
                status = association.store(prepared.data_set, prepared.sop_instance, prepared.context)
                settle(position, outcome_for(status), prepared.sent_as)
            else:
                settle(position, prepared, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    data_set: bytes
    sop_instance: str
    context: AcceptedContext
    sent_as: InstanceRef | None


def _prepare(association: RequestedAssociation, item: Outgoing, form: Form) -> _Prepared | StoreOutcome:
    """Read an object and bring it into the best form that the peer accepted, or say why that cannot be."""
    try:
        part10 = item.read()
        sop_class = read_file_head(part10).sop_class
        accepted = {entry.abstract_syntax for entry in association.contexts}
        forms = (form.under(part10, entry) for entry in form.classes(sop_class) if entry in accepted)
        chosen = next((entry for entry in forms if entry is not None), None)
        if chosen is None:
            return Refused(status=None, cause="no presentation context for the SOP class", permanent=True)
        part10, sent_as = chosen
        head = read_file_head(part10)
        context = _context_for(head, association.contexts, form.syntax(head.sop_class))
        if context is None:
            return Refused(status=None, cause="no presentation context for the transfer syntax", permanent=True)
        data_set = _data_set(part10, head, context)
        return _Prepared(data_set=data_set, sop_instance=head.sop_instance, context=context, sent_as=sent_as)
    except Permanent as error:
        return Refused(status=None, cause=str(error), permanent=True)
    except Transient as error:
        return NoAnswer(cause=str(error))


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
