"""The loops of a configured destination: a sender, a committer where commitment is requested, and a check."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from dicomnode.loop import Loop
from dicomnode.net.scu.circuit_breaker import CircuitBreaker
from dicomnode.net.scu.commitment import CommitmentLedger, Committer, ReportDesk
from dicomnode.net.scu.outgoing import BatchSender, Fallback, Form
from dicomnode.net.scu.sender import DeliveryQueue, Sender
from dicomnode.net.scu.storage import EchoResult, echo, send
from dicomnode.net.scu.stow import StowTransfer, probe
from dicomnode.settings.delivery import DeliverySettings, DestinationSettings, DimseDestination


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every destination shares; `transactions` returns a new Transaction UID each time."""

    outbox: DeliveryQueue
    commitments: CommitmentLedger
    settings: DeliverySettings
    calling_ae: str
    clock: Callable[[], datetime]
    randomness: Callable[[], float]
    transactions: Callable[[], str]
    fallback: Fallback


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliveries:
    """The loops of all destinations, which run independently, and the receiver of their reports.

    `breakers`: which destinations are left alone at present, by name.
    """

    loops: tuple[Loop, ...]
    desk: ReportDesk
    breakers: Mapping[str, CircuitBreaker] = field(default_factory=dict)

    def start(self) -> None:
        """Begin to deliver and to ask."""
        for loop in self.loops:
            loop.start()

    def wake(self) -> None:
        """Look at the outbox now."""
        for loop in self.loops:
            loop.wake()

    def stop(self) -> None:
        """Finish the batches at hand."""
        for loop in self.loops:
            loop.stop()


def deliveries(destinations: Sequence[DestinationSettings], shared: Surroundings) -> Deliveries:
    """Wire the loops of these destinations."""
    loops: list[Loop] = []
    breakers: dict[str, CircuitBreaker] = {}

    def wake_all() -> None:
        for loop in loops:
            loop.wake()

    desk = ReportDesk(
        shared.commitments,
        shared.settings.retry.policy(),
        destinations={entry.label: entry for entry in destinations if isinstance(entry, DimseDestination)},
        clock=shared.clock,
        randomness=shared.randomness,
        resend=wake_all,
    )
    for entry in destinations:
        committer = _committer(entry, shared, desk)
        sender = Sender(
            entry.label,
            transfer_to(entry, shared),
            shared.outbox,
            shared.settings,
            clock=shared.clock,
            randomness=shared.randomness,
            commit_within_s=entry.commitment_timeout_s if isinstance(entry, DimseDestination) and committer else None,
            delivered=committer.loop.wake if committer else None,
            is_there=partial(is_there, entry, shared.settings, shared.calling_ae),
        )
        loops.extend([sender.loop, committer.loop] if committer else [sender.loop])
        breakers[entry.label] = sender.breaker
    return Deliveries(loops=tuple(loops), desk=desk, breakers=breakers)


def transfer_to(entry: DestinationSettings, shared: Surroundings) -> BatchSender:
    """Return the way to a destination, in the form that it prefers."""
    form = Form(sr_class=entry.sr_class, encoding=entry.transfer_syntax, fallback=shared.fallback)
    if isinstance(entry, DimseDestination):
        settings = shared.settings
        return partial(send, entry.destination(), calling_ae=shared.calling_ae, settings=settings, form=form)
    return StowTransfer(entry, shared.settings, form)


def check_destination(entry: DestinationSettings, settings: DeliverySettings, calling_ae: str) -> EchoResult:
    """Try the way to a destination without sending anything: C-ECHO, or the capabilities of a DICOMweb service."""
    if isinstance(entry, DimseDestination):
        return echo(entry.destination(), calling_ae=calling_ae, settings=settings)
    return probe(entry, settings)


def is_there(entry: DestinationSettings, settings: DeliverySettings, calling_ae: str) -> bool:
    """Tell whether a destination answers at all, though perhaps no C-ECHO."""
    result = check_destination(entry, settings, calling_ae)
    return result.succeeded or result.answered


def _committer(entry: DestinationSettings, shared: Surroundings, desk: ReportDesk) -> Committer | None:
    if not isinstance(entry, DimseDestination) or not entry.commitment:
        return None
    return Committer(
        entry,
        shared.commitments,
        desk,
        shared.settings,
        calling_ae=shared.calling_ae,
        clock=shared.clock,
        randomness=shared.randomness,
        identifiers=shared.transactions,
        is_there=partial(is_there, entry, shared.settings, shared.calling_ae),
    )
