"""A destination with Storage Commitment that reports as it is told to, and a node's side of the conversation."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from dicomnode.domain.commitment import CommitmentState
from dicomnode.domain.delivery import Accepted, Delivery, Destination
from dicomnode.domain.identifiers import derive_uid
from dicomnode.net.scu.commitment import Committer, ReportDesk
from dicomnode.settings.delivery import DeliverySettings, DimseDestination, RetrySettings
from dicomnode.store import Store
from tests.support.dimse import EXPLICIT, Peer, running_scp
from tests.support.stores import QUIET_S, accept, answer, claim, open_store, to

CR = "1.2.840.10008.5.1.4.1.1.1"
WITHIN_S = 20.0
COMMITMENT = str(StorageCommitmentPushModel)
Decide = Callable[[list[str]], dict[str, int] | None]
"""Given the SOP Instance UIDs asked about: the failure reasons of those that are not kept, or None for silence."""


def now() -> datetime:
    return datetime.now(UTC)


def event_information(asked: Dataset, failed: dict[str, int]) -> Dataset:
    """Return the report on a request."""
    told = Dataset()
    told.TransactionUID = asked.TransactionUID
    for item in asked.ReferencedSOPSequence:
        if (reason := failed.get(str(item.ReferencedSOPInstanceUID))) is not None:
            item.FailureReason = reason
    kept = [item for item in asked.ReferencedSOPSequence if "FailureReason" not in item]
    lost = [item for item in asked.ReferencedSOPSequence if "FailureReason" in item]
    if kept:
        told.ReferencedSOPSequence = kept
    if lost:
        told.FailedSOPSequence = lost
    return told


def report_to(listener: Destination, information: Dataset, *, role: bool = True, calling_ae: str = "PEER") -> int:
    """Open an association to the node as a destination does, report, and return the status of the answer."""
    context = build_context(StorageCommitmentPushModel, [EXPLICIT])
    entity = AE(calling_ae)
    association = entity.associate(
        listener.host,
        listener.port,
        contexts=[context],
        ae_title=listener.ae_title,
        ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)] if role else [],
    )
    assert association.is_established
    wire = association.dul.socket.socket
    try:
        event_type = 2 if "FailedSOPSequence" in information else 1
        status, _ = association.send_n_event_report(
            information, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        association.release()
    finally:
        wire.close()
    return int(status.Status)


@dataclass
class Archive:
    """A destination's Storage Commitment SCP. `over`: where it reports; `overtakes`: even before it responds."""

    decide: Decide = lambda uids: {}
    over: str = "same"
    status: int = 0x0000
    overtakes: bool = False
    listener: Destination | None = None
    asked: list[list[str]] = field(default_factory=list)
    transactions: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    reporting: list[threading.Thread] = field(default_factory=list)
    peer: Peer | None = None

    @contextmanager
    def running(self) -> Iterator["Archive"]:
        handlers = [(evt.EVT_N_ACTION, self._on_action)]
        with Peer({COMMITMENT: [EXPLICIT]}, handlers=handlers) as peer:
            self.peer = peer
            yield self

    def _on_action(self, event: Any) -> tuple[int, None]:
        asked = event.action_information
        uids = [str(item.ReferencedSOPInstanceUID) for item in asked.ReferencedSOPSequence]
        self.asked.append(uids)
        self.transactions.append(str(asked.TransactionUID))
        failed = self.decide(uids) if self.status == 0x0000 else None
        if failed is not None:
            told = event_information(asked, failed)
            if self.overtakes:
                self._report(event.assoc, told)
            else:
                reporting = threading.Thread(target=self._later, args=(event.assoc, told), daemon=True)
                self.reporting.append(reporting)
                reporting.start()
        return self.status, None

    def settle(self) -> None:
        """Wait until every report was made, while there is still a listener."""
        for reporting in self.reporting:
            reporting.join(WITHIN_S)

    def _later(self, association: Any, told: Dataset) -> None:
        time.sleep(0.1)
        self._report(association, told)

    def _report(self, association: Any, told: Dataset) -> None:
        if self.over == "another":
            assert self.listener is not None
            self.answers.append(report_to(self.listener, told))
            return
        event_type = 2 if "FailedSOPSequence" in told else 1
        status, _ = association.send_n_event_report(
            told, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        self.answers.append(int(status.Status))


@dataclass
class Bench:
    """A node's store with two results for one destination, its committer, its desk and its listener."""

    store: Store
    committer: Committer
    desk: ReportDesk
    settings: DeliverySettings
    entry: DimseDestination

    def deliver(self) -> list[str]:
        """Say that whatever is due was delivered."""
        taken: tuple[Delivery, ...] = self.store.outbox.claim(self.entry.label, 10, now())
        for delivery in taken:
            self.store.outbox.record(
                delivery,
                Accepted(),
                now(),
                self.settings.retry.policy(),
                0.5,
                commit_within_s=self.entry.commitment_timeout_s,
            )
        return [delivery.ref.sop_instance for delivery in taken]

    def states(self) -> set[CommitmentState | None]:
        return {entry.commitment for entry in self.store.ledger.deliveries_of("1.1")}

    def all_are(self, state: CommitmentState) -> bool:
        return self.states() == {state}


@contextmanager
def bench(
    path: Path,
    archive: Archive,
    clock: Callable[[], datetime] = now,
    is_there: Callable[[], bool] | None = None,
    **destination: Any,
) -> Iterator[Bench]:
    assert archive.peer is not None
    peer = archive.peer.destination
    entry = DimseDestination(
        name="pacs", ae_title=peer.ae_title, host=peer.host, port=peer.port, commitment=True, **destination
    )
    settings = DeliverySettings(
        connect_timeout_s=5, response_timeout_s=5, retry=RetrySettings(first_delay_s=0.2, max_delay_s=0.2)
    )
    numbers = iter(range(1000))
    with open_store(path / "store") as store:
        accept(store)
        job = claim(store, QUIET_S)
        store.inbox.finish(job, answer(job), to("pacs"), now())
        desk = ReportDesk(
            store.commitments,
            settings.retry.policy(),
            destinations={entry.label: entry},
            clock=now,
            randomness=lambda: 0.5,
            resend=lambda: None,
        )
        committer = Committer(
            entry,
            store.commitments,
            desk,
            settings,
            calling_ae="CXRNODE",
            clock=clock,
            randomness=lambda: 0.5,
            identifiers=lambda: derive_uid("tests", "transaction", str(path), str(next(numbers))),
            is_there=is_there,
        )
        with running_scp(store.reception, reports=desk.receive) as (_, listener):
            archive.listener = listener
            yield Bench(store, committer, desk, settings, entry)


@contextmanager
def looping(found: Bench) -> Iterator[None]:
    found.committer.loop.start()
    try:
        yield
    finally:
        assert found.committer.loop.stop(20)


def information(transaction: str, uids: list[str]) -> Dataset:
    told = Dataset()
    told.TransactionUID = transaction
    told.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CR, uid
        told.ReferencedSOPSequence.append(item)
    return told
