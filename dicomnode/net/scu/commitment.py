"""Storage Commitment Push Model as SCU: the request to a destination, and its report over either association.

A report comes over the association of the request, or over one that the destination opens to the node's listener, or
never. Source: PS3.4 Annex J.
"""

import logging
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from io import BytesIO
from ipaddress import ip_network
from typing import Any, Protocol

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.dsutils import decode, encode

from dicomnode.domain.commitment import CommitmentChanges, CommitmentFailure, CommitmentItem, CommitmentReport
from dicomnode.domain.delivery import RetryPolicy
from dicomnode.domain.errors import CxrNodeError, PeerUnavailable, UnreadableObject
from dicomnode.domain.identifiers import is_valid_uid
from dicomnode.loop import Loop
from dicomnode.net.contexts import STORAGE_COMMITMENT, commitment_proposal
from dicomnode.net.dimse.addresses import is_in
from dicomnode.net.scu.association import open_association
from dicomnode.net.scu.circuit_breaker import CircuitBreaker
from dicomnode.net.scu.outgoing import BYTES_RAISE
from dicomnode.net.status import EventStatus, commitment_failure, describe, is_success
from dicomnode.settings.delivery import DeliverySettings, DimseDestination

log = logging.getLogger(__name__)

_LARGEST_REPORT_BYTES = 4_194_304
# PS3.4 Table J.3-2: request successful; request complete, failures exist.
_EVENT_TYPES = (1, 2)


class CommitmentLedger(Protocol):
    """The record of what destinations are asked to commit. Every method raises StoreUnavailable."""

    def expire(self, destination: str, now: datetime) -> tuple[CommitmentItem, ...]:
        """Return what has become overdue since the last call."""

    def claim(
        self,
        destination: str,
        limit: int,
        transaction_uid: str,
        again_after_s: float,
        now: datetime,
        policy: RetryPolicy,
    ) -> tuple[CommitmentItem, ...]:
        """Take what is to be asked now, in one transaction."""

    def not_requested(
        self, transaction_uid: str, cause: str, now: datetime, policy: RetryPolicy, randomness: float
    ) -> None:
        """Write down that the destination could not be asked."""

    def destination_of(self, transaction_uid: str) -> str | None:
        """Return which destination was asked in a transaction, None when there was no such transaction."""

    def report(
        self, report: CommitmentReport, now: datetime, policy: RetryPolicy, randomness: float
    ) -> CommitmentChanges:
        """Write down what the destination answered."""

    def next_due(self, destination: str) -> datetime | None:
        """Return when there is something to ask, or something becomes overdue."""

    def postpone(self, destination: str, until: datetime) -> None:
        """Make no request due before the destination is tried again."""

    def bring_forward(self, destination: str, now: datetime) -> None:
        """Make requests due now that wait for a destination which could not be reached."""

    def retry_requested(self, destination: str, since: datetime) -> bool:
        """Tell whether an operator has asked for another try since then."""


class ReportDesk:
    """Receives the reports of every association, and records them before it answers. Used by many threads.

    `destinations`: those that may be asked, by name. A transaction's report is believed from its destination alone.
    """

    def __init__(
        self,
        commitments: CommitmentLedger,
        policy: RetryPolicy,
        *,
        destinations: Mapping[str, DimseDestination],
        clock: Callable[[], datetime],
        randomness: Callable[[], float],
        resend: Callable[[], None],
    ) -> None:
        """`resend` is called when results have to be delivered again."""
        self._commitments, self._policy, self._destinations = commitments, policy, destinations
        self._clock, self._randomness, self._resend = clock, randomness, resend

    def receive(self, event: Any, asked: str | None = None) -> tuple[int, None]:
        """Serve an N-EVENT-REPORT request and return its status.

        `asked`: the destination to which the node has opened the association, if it was the node.
        """
        calling_ae = event.assoc.asked.calling_ae if asked is None else ""
        reporter = _ReportingPeer(destination=asked, calling_ae=calling_ae, address=event.assoc.remote["address"])
        peer = {"peer": reporter.address}
        try:
            status = self._take(event.request, str(event.context.transfer_syntax), reporter)
        except UnreadableObject as error:
            log.warning("commitment-report-refused", extra={**peer, "cause": str(error)})
            status = EventStatus.INVALID_ARGUMENT_VALUE
        except CxrNodeError as error:
            log.warning("commitment-report-refused", extra={**peer, "cause": str(error)})
            status = EventStatus.PROCESSING_FAILURE
        return int(status), None

    def _take(self, request: Any, transfer_syntax: str, reporter: "_ReportingPeer") -> EventStatus:
        if str(request.AffectedSOPClassUID) != STORAGE_COMMITMENT.uid:
            raise UnreadableObject("a report of another SOP class")
        if request.EventTypeID not in _EVENT_TYPES:
            return EventStatus.NO_SUCH_EVENT_TYPE
        information = request.EventInformation.getvalue() if request.EventInformation else b""
        report = read_report(information, transfer_syntax)
        about = {"peer": reporter.address, "transaction": report.transaction_uid}
        destination = self._commitments.destination_of(report.transaction_uid)
        if destination is None:
            log.warning("commitment-unknown", extra=about)
            return EventStatus.INVALID_ARGUMENT_VALUE
        if not reporter.is_of(destination, self._destinations.get(destination)):
            about |= {"calling_ae": reporter.calling_ae, "destination": destination}
            log.warning("commitment-report-refused", extra={**about, "cause": "it is not of the destination"})
            return EventStatus.NOT_AUTHORISED
        changes = self._commitments.report(report, self._clock(), self._policy, self._randomness())
        self._tell(report, changes, about)
        return EventStatus.SUCCESS

    def _tell(self, report: CommitmentReport, changes: CommitmentChanges, about: dict[str, str]) -> None:
        if changes.committed:
            log.info("instances-committed", extra={**about, "instances": changes.committed})
        for uid in changes.failed:
            log.warning("commitment-failed", extra={**about, "instance": uid, "cause": report.failed[uid].cause})
        for uid in changes.dead:
            cause = f"not committed, {report.failed[uid].cause}"
            log.error("delivery-dead", extra={**about, "instance": uid, "cause": cause})
        if changes.failed:
            self._resend()


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReportingPeer:
    """Who reports: the destination to which the node has opened the association, or a peer that has opened one."""

    destination: str | None
    calling_ae: str
    address: str

    def is_of(self, name: str, entry: DimseDestination | None) -> bool:
        """Tell whether it may speak for a destination, of which `entry` is the configuration."""
        if self.destination is not None or entry is None:
            return self.destination == name
        titles = entry.commitment_ae_titles or (entry.ae_title,)
        networks = [ip_network(text) for text in entry.commitment_networks]
        return self.calling_ae in titles and (not networks or is_in(self.address, networks))


class CommitmentRefused(PeerUnavailable):
    """The destination answered a request for Storage Commitment with a failure status."""


class Committer:
    """Requests Storage Commitment of one destination, on a thread of its own.

    `identifiers` returns a new Transaction UID for every request. `is_there` finds out whether a destination that could
    not be reached is back, without sending anything.
    """

    def __init__(
        self,
        destination: DimseDestination,
        commitments: CommitmentLedger,
        desk: ReportDesk,
        settings: DeliverySettings,
        *,
        calling_ae: str,
        clock: Callable[[], datetime],
        randomness: Callable[[], float],
        identifiers: Callable[[], str],
        is_there: Callable[[], bool] | None = None,
    ) -> None:
        self._destination, self._commitments, self._desk = destination, commitments, desk
        self._settings, self._policy = settings, settings.retry.policy()
        self._calling_ae, self._clock, self._randomness = calling_ae, clock, randomness
        self._identifiers, self._is_there = identifiers, is_there
        name = destination.label
        self.breaker = CircuitBreaker(
            name,
            "commitment",
            self._policy,
            retry_requested=lambda since: commitments.retry_requested(name, since),
            clock=clock,
            randomness=randomness,
        )
        self.loop = Loop(
            f"committer-{name}",
            self.ask_due,
            lambda: self.breaker.not_before(commitments.next_due(name)),
            clock=clock,
            about={"destination": name},
        )

    def ask_due(self) -> int:
        """Log what is overdue, then request commitment for one batch; return how many results it holds.

        Raises: StoreUnavailable.
        """
        name = self._destination.label
        for item in self._commitments.expire(name, self._clock()):
            about = {"destination": name, "study": item.study, "instance": item.sop_instance}
            log.warning("commitment-overdue", extra={**about, "within_s": self._destination.commitment_timeout_s})
        allowed = self.breaker.allows(self._settings.batch) or self._allowed_by_probe()
        if not allowed:
            self._postpone()
            return 0
        transaction = self._identifiers()
        items = self._commitments.claim(
            name,
            allowed,
            transaction,
            self._destination.commitment_timeout_s,
            self._clock(),
            self._policy,
        )
        if items:
            self._ask_or_record(transaction, items)
        return len(items)

    def _allowed_by_probe(self) -> int:
        name = self._destination.label
        if self._is_there is None or not self.breaker.is_probe_due() or self._commitments.next_due(name) is None:
            return 0
        is_back = self._is_there()
        self.breaker.probed(is_back=is_back)
        if is_back:
            self._commitments.bring_forward(name, self._clock())
        return self.breaker.allows(self._settings.batch)

    def _postpone(self) -> None:
        """While the destination is left alone, have the store say when it is really asked next."""
        name, retry_at = self._destination.label, self.breaker.state.retry_at
        due = self._commitments.next_due(name)
        if retry_at is not None and due is not None and due < retry_at:
            self._commitments.postpone(name, retry_at)

    def _ask_or_record(self, transaction: str, items: Sequence[CommitmentItem]) -> None:
        about = {"destination": self._destination.label, "transaction": transaction, "instances": len(items)}
        try:
            self._ask(transaction, items)
        except CxrNodeError as error:
            log.warning("commitment-not-requested", extra={**about, "cause": str(error)})
            now, randomness = self._clock(), self._randomness()
            self._commitments.not_requested(transaction, str(error), now, self._policy, randomness)
            is_unreachable = isinstance(error, PeerUnavailable) and not isinstance(error, CommitmentRefused)
            self.breaker.failed(str(error), is_unreachable=is_unreachable)
        else:
            if self.breaker.answered():
                self._commitments.bring_forward(self._destination.label, self._clock())
            log.info("commitment-requested", extra=about)

    def _ask(self, transaction: str, items: Sequence[CommitmentItem]) -> None:
        """Send the request, and wait a while for the report. Raises: PeerUnavailable, PeerRefused."""
        reported = threading.Event()
        with open_association(
            self._destination.destination(),
            commitment_proposal(),
            calling_ae=self._calling_ae,
            settings=self._settings,
            handlers=[(evt.EVT_N_EVENT_REPORT, partial(self._hear, reported))],
        ) as association:
            (context, *_) = association.contexts
            information = write_request(transaction, items, context.transfer_syntax)
            status = association.request_commitment(information, context).status
            if not is_success(status):
                raise CommitmentRefused(f"the destination refused to commit itself: {describe(status)}")
            association.linger(self._destination.commitment_linger_s, reported)

    def _hear(self, reported: threading.Event, event: Any) -> tuple[int, None]:
        try:
            return self._desk.receive(event, self._destination.label)
        finally:
            reported.set()


def write_request(transaction_uid: str, items: Sequence[CommitmentItem], transfer_syntax: str) -> bytes:
    """Return the encoded Action Information that asks about these instances. Source: PS3.4 Table J.3-1."""
    request = Dataset()
    request.TransactionUID = transaction_uid
    request.ReferencedSOPSequence = []
    for item in items:
        reference = Dataset()
        reference.ReferencedSOPClassUID = item.sop_class
        reference.ReferencedSOPInstanceUID = item.sop_instance
        request.ReferencedSOPSequence.append(reference)
    encoded = encode(request, *_encoding(transfer_syntax))
    if encoded is None:
        raise UnreadableObject("the request for commitment cannot be encoded")
    return bytes(encoded)


def read_report(information: bytes, transfer_syntax: str) -> CommitmentReport:
    """Read the Event Information of a report. Source: PS3.4 Table J.3-2.

    Raises: UnreadableObject.
    """
    if len(information) > _LARGEST_REPORT_BYTES:
        raise UnreadableObject(f"a report of {len(information)} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom quotes what breaks the standard
            transaction, committed, failed = _read(information, transfer_syntax)
    except BYTES_RAISE as error:
        raise UnreadableObject("a report that cannot be read") from error
    if not is_valid_uid(transaction):
        raise UnreadableObject("a report without a valid Transaction UID")
    return CommitmentReport(transaction_uid=transaction, committed=committed - failed.keys(), failed=failed)


def _read(information: bytes, transfer_syntax: str) -> tuple[str, frozenset[str], dict[str, CommitmentFailure]]:
    data_set = decode(BytesIO(information), *_encoding(transfer_syntax))
    kept = (str(item.ReferencedSOPInstanceUID) for item in data_set.get("ReferencedSOPSequence") or ())
    failed = {
        str(item.ReferencedSOPInstanceUID): commitment_failure(int(item.get("FailureReason") or 0))
        for item in data_set.get("FailedSOPSequence") or ()
    }
    return str(data_set.TransactionUID), frozenset(kept), failed


def _encoding(transfer_syntax: str) -> tuple[bool, bool]:
    """Return whether a negotiated transfer syntax is implicit and little endian; only uncompressed ones are."""
    return transfer_syntax == ImplicitVRLittleEndian, True
