"""Storage Commitment against a destination that reports over the same association, over another, partly, or never."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.dsutils import decode, encode
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from dicomnode.delivery_settings import DeliverySettings, DimseDestination, RetrySettings
from dicomnode.domain.commitment import CommitmentItem, CommitmentState, Remedy
from dicomnode.domain.errors import StoreUnavailable, UnreadableObject
from dicomnode.domain.identifiers import derive_uid
from dicomnode.domain.job import Accepted, Delivery, DeliveryState, Destination
from dicomnode.net.commitment import Committer, ReportDesk, read_report, write_request
from dicomnode.store import Store
from tests.component.dimse import Peer, requested, running_scp
from tests.processes import wait_until
from tests.stores import QUIET_S, accept, answer, claim, open_store, to

CR, EXPLICIT, IMPLICIT = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
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


def report_to(listener: Destination, information: Dataset, *, role: bool = True) -> int:
    """Open an association to the node as a destination does, report, and return the status of the answer."""
    context = build_context(StorageCommitmentPushModel, [EXPLICIT])
    entity = AE("PEER")
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
def bench(path: Path, archive: Archive, **destination: Any) -> Iterator[Bench]:
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
            store.commitments, settings.retry.policy(), clock=now, randomness=lambda: 0.5, resend=lambda: None
        )
        committer = Committer(
            entry,
            store.commitments,
            desk,
            settings,
            calling_ae="CXRNODE",
            clock=now,
            randomness=lambda: 0.5,
            identifiers=lambda: derive_uid("tests", "transaction", str(path), str(next(numbers))),
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


@pytest.mark.parametrize("over", ["same", "another"])
def test_a_report_counts_over_whichever_association_it_comes(tmp_path: Path, over: str) -> None:
    with Archive(over=over).running() as archive, bench(tmp_path, archive, commitment_linger_s=5) as found:
        uids = found.deliver()
        assert found.committer.ask_due() == 2
        wait_until(lambda: found.all_are(CommitmentState.COMMITTED), WITHIN_S, "the commitment")
        wait_until(lambda: archive.answers == [0x0000], WITHIN_S, "the answer to the report")
    assert sorted(archive.asked[0]) == sorted(uids)


@pytest.mark.parametrize("over", ["same", "another"])
def test_a_report_that_overtakes_the_response_counts(tmp_path: Path, over: str) -> None:
    with Archive(over=over, overtakes=True).running() as archive, bench(tmp_path, archive) as found:
        found.deliver()
        found.committer.ask_due()
        assert found.all_are(CommitmentState.COMMITTED)


def test_the_association_is_left_as_soon_as_the_report_is_there(tmp_path: Path) -> None:
    with Archive().running() as archive, bench(tmp_path, archive, commitment_linger_s=60) as found:
        found.deliver()
        began = time.monotonic()
        found.committer.ask_due()
        assert time.monotonic() - began < 30
        assert found.all_are(CommitmentState.COMMITTED)


def test_what_is_not_kept_is_delivered_again_as_the_same_instance(tmp_path: Path) -> None:
    lost: list[str] = []

    def lose_one_once(uids: list[str]) -> dict[str, int]:
        if lost:
            return {}
        lost.append(uids[1])
        return {uids[1]: 0x0112}

    with (
        Archive(decide=lose_one_once).running() as archive,
        bench(tmp_path, archive, commitment_linger_s=5) as found,
        looping(found),
    ):
        uids = found.deliver()
        found.committer.loop.wake()
        wait_until(lambda: CommitmentState.FAILED in found.states(), WITHIN_S, "the failure")
        again = wait_until(found.deliver, WITHIN_S, "the second delivery")
        found.committer.loop.wake()
        wait_until(lambda: found.all_are(CommitmentState.COMMITTED), WITHIN_S, "the commitment")
    assert again == lost
    assert set(again) < set(uids)
    assert archive.asked[1] == lost
    assert len(set(archive.transactions)) == 2


def test_silence_is_an_alert_and_is_asked_again_with_another_transaction(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = [True]
    with (
        Archive(decide=lambda uids: None if silent[0] else {}).running() as archive,
        bench(tmp_path, archive, commitment_timeout_s=0.5, commitment_linger_s=0) as found,
        looping(found),
    ):
        uids = found.deliver()
        found.committer.loop.wake()
        wait_until(lambda: len(found.store.ledger.uncommitted()) == 2, WITHIN_S, "the alert")
        alerts = [record for record in caplog.records if record.message == "commitment-overdue"]
        assert {record.levelname for record in alerts} == {"WARNING"}
        assert sorted(record.instance for record in alerts) == sorted(uids)
        silent[0] = False
        archive.over = "another"
        wait_until(lambda: found.all_are(CommitmentState.COMMITTED), WITHIN_S, "the commitment")
        assert found.committer.loop.stop(WITHIN_S)
        archive.settle()
    assert len(archive.transactions) == len(set(archive.transactions)) >= 2
    assert {entry.state for entry in found_deliveries(tmp_path)} == {DeliveryState.DELIVERED}


def found_deliveries(path: Path) -> list[Any]:
    with open_store(path / "store") as store:
        return list(store.ledger.deliveries_of("1.1"))


def test_a_destination_that_refuses_is_asked_again_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Archive(status=0x0124).running() as archive, bench(tmp_path, archive) as found:
        found.deliver()
        found.committer.ask_due()
        assert found.states() == {CommitmentState.DUE}
        (record,) = [record for record in caplog.records if record.message == "commitment-not-requested"]
        assert record.cause == "the destination refused to commit itself: 0124"
        archive.status = 0x0000
        wait_until(found.committer.ask_due, WITHIN_S, "the second request")
        wait_until(lambda: found.all_are(CommitmentState.COMMITTED), WITHIN_S, "the commitment")


def test_a_destination_that_cannot_be_asked_is_left_alone_after_two_requests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Archive(status=0x0110).running() as archive, bench(tmp_path, archive) as found:
        found.deliver()
        wait_until(found.committer.ask_due, WITHIN_S, "the first request")
        wait_until(found.committer.ask_due, WITHIN_S, "the second request")
        assert found.committer.breaker.circuit.is_open
        assert found.committer.ask_due() == 0
        assert len(archive.asked) == 2
        (told,) = [record for record in caplog.records if record.message == "destination-unavailable"]
        assert (told.destination, told.service) == ("pacs", "commitment")
        archive.status = 0x0000
        wait_until(
            lambda: found.committer.ask_due() or not found.committer.breaker.circuit.is_open, WITHIN_S, "a trial"
        )
        assert len(archive.asked[2]) == 1
        wait_until(
            lambda: found.committer.ask_due() or found.all_are(CommitmentState.COMMITTED), WITHIN_S, "the second trial"
        )
        wait_until(lambda: found.all_are(CommitmentState.COMMITTED), WITHIN_S, "the commitment")


def test_a_destination_without_the_service_is_asked_again_later(tmp_path: Path) -> None:
    archive = Archive()
    with Peer({CR: [EXPLICIT]}) as peer:
        archive.peer = peer
        with bench(tmp_path, archive) as found:
            found.deliver()
            found.committer.ask_due()
            assert found.states() == {CommitmentState.DUE}
            assert "no presentation context" in str(found.store.ledger.deliveries_of("1.1")[0].commitment_error)


@pytest.mark.parametrize("role", [True, False])
def test_the_listener_takes_reports_with_and_without_role_selection(tmp_path: Path, role: bool) -> None:
    with Archive(decide=lambda uids: None).running() as archive, bench(tmp_path, archive) as found:
        uids = found.deliver()
        found.committer.ask_due()
        assert archive.listener is not None
        told = information(archive.transactions[0], uids)
        assert report_to(archive.listener, told, role=role) == 0x0000
        assert found.all_are(CommitmentState.COMMITTED)


def information(transaction: str, uids: list[str]) -> Dataset:
    told = Dataset()
    told.TransactionUID = transaction
    told.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CR, uid
        told.ReferencedSOPSequence.append(item)
    return told


def test_a_report_of_a_transaction_that_nobody_asked_for_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Archive(decide=lambda uids: None).running() as archive, bench(tmp_path, archive) as found:
        uids = found.deliver()
        found.committer.ask_due()
        assert archive.listener is not None
        assert report_to(archive.listener, information("1.2.3.4", uids)) == 0x0115
        assert found.all_are(CommitmentState.REQUESTED)
        assert [record.levelname for record in caplog.records if record.message == "commitment-unknown"] == ["WARNING"]


def test_a_report_that_cannot_be_written_down_is_to_be_repeated(tmp_path: Path) -> None:
    class Locked:
        def report(self, *_: object) -> None:
            raise StoreUnavailable("the database is locked")

    policy = RetrySettings().policy()
    desk = ReportDesk(Locked(), policy, clock=now, randomness=lambda: 0.5, resend=lambda: None)  # type: ignore[arg-type]
    with open_store(tmp_path) as store, running_scp(store.reception, reports=desk.receive) as (_, listener):
        assert report_to(listener, information("1.2.3.4", ["1.2"])) == 0x0110


def test_the_node_does_not_commit_itself(tmp_path: Path) -> None:
    context = build_context(StorageCommitmentPushModel, [EXPLICIT])
    told = information("1.2.3.4", ["1.2"])
    with (
        open_store(tmp_path) as store,
        running_scp(store.reception) as (_, listener),
        requested(listener, context) as association,
    ):
        status, _ = association.send_n_action(told, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
    assert status.Status == 0x0211


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\x08\x00\x95\x11UI\x40\x00", b"\x00" * 64, b"not a data set at all, and longer than a tag"],
)
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_report_that_makes_no_sense_is_unreadable(garbage: bytes, syntax: str) -> None:
    with pytest.raises(UnreadableObject):
        read_report(garbage, syntax)


def test_a_report_that_is_too_long_is_not_read() -> None:
    with pytest.raises(UnreadableObject, match="bytes"):
        read_report(bytes(5_000_000), EXPLICIT)


def test_failure_reasons_have_their_remedies() -> None:
    reasons = {0x0110: "send-again", 0x0112: "send-again", 0x0213: "send-again", 0x0119: "give-up", 0x0122: "give-up"}
    reasons |= {0x0131: "ask-again", 0x9999: "send-again"}
    asked = information("1.2.3", [f"1.2.{reason}" for reason in reasons])
    told = event_information(asked, {f"1.2.{reason}": reason for reason in reasons})
    read = read_report(bytes(encode(told, False, True) or b""), EXPLICIT)
    assert {uid: failure.remedy for uid, failure in read.failed.items()} == {
        f"1.2.{reason}": Remedy(remedy) for reason, remedy in reasons.items()
    }


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_request_names_the_transaction_and_each_instance(syntax: str) -> None:
    items = [CommitmentItem(delivery_id=n, study="1", sop_class=CR, sop_instance=f"1.2.{n}") for n in range(3)]
    told = decode(BytesIO(write_request("1.9", items, syntax)), syntax == IMPLICIT, True)
    assert told.TransactionUID == "1.9"
    assert [str(item.ReferencedSOPInstanceUID) for item in told.ReferencedSOPSequence] == ["1.2.0", "1.2.1", "1.2.2"]
    assert {str(item.ReferencedSOPClassUID) for item in told.ReferencedSOPSequence} == {CR}


def test_logs_name_no_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Archive().running() as archive, bench(tmp_path, archive) as found:
        found.deliver()
        found.committer.ask_due()
        assert archive.listener is not None
        told = information("1.2.3.4", ["1.2"])
        told.PatientName = "CANARY^NAMEZQX"
        report_to(archive.listener, told)
    assert "CANARY" not in "".join(str(record.__dict__) for record in caplog.records)
