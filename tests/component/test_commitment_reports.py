"""What the node reads of reports on Storage Commitment, and what it answers."""

import logging
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from pynetdicom.dsutils import decode, encode
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from dicomnode.domain.commitment import CommitmentItem, CommitmentState, Remedy
from dicomnode.domain.errors import StoreUnavailable, UnreadableObject
from dicomnode.net.scu.commitment import ReportDesk, read_report, write_request
from dicomnode.settings.delivery import RetrySettings
from tests.support.committing import CR, Archive, bench, event_information, information, now, report_to
from tests.support.dimse import EXPLICIT, IMPLICIT, requested, running_scp
from tests.support.stores import open_store


@pytest.mark.parametrize("role", [True, False])
def test_the_listener_takes_reports_with_and_without_role_selection(tmp_path: Path, role: bool) -> None:
    with Archive(decide=lambda uids: None).running() as archive, bench(tmp_path, archive) as found:
        uids = found.deliver()
        found.committer.ask_due()
        assert archive.listener is not None
        told = information(archive.transactions[0], uids)
        assert report_to(archive.listener, told, role=role) == 0x0000
        assert found.all_are(CommitmentState.COMMITTED)


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


@pytest.mark.parametrize(
    ("calling_ae", "settings", "status"),
    [
        ("STRANGER", {}, 0x0124),
        ("PEER", {}, 0x0000),
        ("PEER", {"commitment_ae_titles": ["REPORTER"]}, 0x0124),
        ("REPORTER", {"commitment_ae_titles": ["REPORTER"]}, 0x0000),
        ("PEER", {"commitment_networks": ["10.0.0.0/8"]}, 0x0124),
        ("PEER", {"commitment_networks": ["10.0.0.0/8", "127.0.0.1"]}, 0x0000),
        ("STRANGER", {"commitment_networks": ["127.0.0.1"]}, 0x0124),
    ],
)
def test_a_report_is_believed_from_the_destination_alone(
    tmp_path: Path, calling_ae: str, settings: dict[str, list[str]], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    silent = Archive(decide=lambda uids: None)
    with silent.running() as archive, bench(tmp_path, archive, **settings) as found:
        uids = found.deliver()
        found.committer.ask_due()
        assert archive.listener is not None
        told = information(archive.transactions[0], uids)
        assert report_to(archive.listener, told, calling_ae=calling_ae) == status
        assert found.all_are(CommitmentState.COMMITTED if status == 0 else CommitmentState.REQUESTED)
    refused = [record for record in caplog.records if record.message == "commitment-report-refused"]
    assert [(record.peer, record.calling_ae, record.destination) for record in refused] == (
        [("127.0.0.1", calling_ae, "pacs")] if status else []
    )


def test_a_destination_does_not_answer_for_another_over_the_association_of_its_own_request(tmp_path: Path) -> None:
    with Archive().running() as archive, bench(tmp_path, archive) as found:
        uids = found.deliver()
        store = found.store.commitments
        store.claim("pacs", 10, "1.2.3.4", 60, now(), found.settings.retry.policy())
        told = SimpleNamespace(
            assoc=SimpleNamespace(remote={"address": "127.0.0.1"}),
            context=SimpleNamespace(transfer_syntax=EXPLICIT),
            request=SimpleNamespace(
                AffectedSOPClassUID=StorageCommitmentPushModel,
                EventTypeID=1,
                EventInformation=BytesIO(bytes(encode(information("1.2.3.4", uids), False, True) or b"")),
            ),
        )
        assert found.desk.receive(told, "another") == (0x0124, None)
        assert found.all_are(CommitmentState.REQUESTED)
        assert found.desk.receive(told, "pacs") == (0x0000, None)
        assert found.all_are(CommitmentState.COMMITTED)


def test_a_report_that_cannot_be_written_down_is_to_be_repeated(tmp_path: Path) -> None:
    class Locked:
        def destination_of(self, *_: object) -> None:
            raise StoreUnavailable("the database is locked")

    policy = RetrySettings().policy()
    desk = ReportDesk(Locked(), policy, destinations={}, clock=now, randomness=lambda: 0.5, resend=lambda: None)  # type: ignore[arg-type]
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
