"""What peers really answer to the node's requests: associations, responses, and a batch with a bad object in it."""

import struct
import threading
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom import uid as uids
from pydicom.dataset import Dataset
from pynetdicom.acse import ACSE
from typer.testing import CliRunner

from dicomnode.cli.main import app
from dicomnode.domain.delivery import Accepted, Destination, NoAnswer, Refused, StoreOutcome
from dicomnode.net.contexts import COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, ENHANCED_SR
from dicomnode.net.scu.files import send_files
from dicomnode.net.scu.outgoing import AS_IT_IS, Form
from dicomnode.net.scu.storage import echo, send
from dicomnode.settings.delivery import DeliverySettings
from tests.support.acceptor import accepting, response
from tests.support.dimse import EXPLICIT, QUICK, Peer, outgoing, renamed, report_of
from tests.support.make import build, encode
from tests.support.processes import wait_until
from tests.support.wire import (
    ABORT,
    REJECTED,
    accepted_context,
    associate_accept,
    item,
)

CR = str(uids.ComputedRadiographyImageStorage)
# Whoever waits for the response timeout would not end within the test.
PATIENT = DeliverySettings(connect_timeout_s=5, response_timeout_s=120)


@pytest.fixture(scope="module")
def cr() -> bytes:
    return encode(build("cr", rows=32, columns=32))


@pytest.fixture(autouse=True)
def no_thread_dies(monkeypatch: pytest.MonkeyPatch) -> Any:
    died: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(str(args.exc_value)))
    yield
    assert died == []


def deliver(
    destination: Destination, *objects: bytes, settings: DeliverySettings = PATIENT, form: Form = AS_IT_IS
) -> list[StoreOutcome]:
    return send(destination, [outgoing(entry) for entry in objects], calling_ae="CXRNODE", settings=settings, form=form)


@pytest.mark.parametrize(
    "answer",
    [
        associate_accept(more=item(0x77, b"of some vendor")),
        associate_accept(user_more=item(0x7A, b"\1\2")),
        associate_accept(version=3),
        associate_accept(user_more=item(0x55, "Version 1.0 of an archïve".encode("latin-1"))),
        associate_accept(user_more=item(0x59, b"\0\0")),
        associate_accept(contexts=accepted_context(1) + accepted_context(2) + accepted_context(77)),
        associate_accept(contexts=accepted_context(1) + item(0x21, b"\3\0\3\0")),
        associate_accept(contexts=accepted_context(1) + accepted_context(3, "", result=4)),
        associate_accept(contexts=accepted_context(1) + accepted_context(3, result=9)),
    ],
    ids=[
        "an-unknown-item",
        "an-unknown-sub-item",
        "another-version-too",
        "a-long-version-name",
        "a-user-identity-response",
        "contexts-that-nobody-proposed",
        "a-refused-context-without-a-syntax",
        "a-refused-context-with-an-empty-syntax",
        "a-reserved-result",
    ],
)
def test_results_are_delivered_to_a_peer_whose_acceptance_has_more_than_is_known(cr: bytes, answer: bytes) -> None:
    with accepting(answer) as (destination, heard):
        assert deliver(destination, cr) == [Accepted()]
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (
            associate_accept(more=b"\x77\0\xff\xff"),
            "the answer to the association request is not valid: an item of type 77H is longer than what holds it",
        ),
        (
            struct.pack(">BBL", 2, 0, 4) + bytes(4),
            "the answer to the association request is not valid: it ends before its fixed fields do",
        ),
        (
            struct.pack(">BBL", REJECTED, 0, 1) + bytes(1),
            "the answer to the association request is not valid: the rejection is too short",
        ),
        (
            struct.pack(">BBLBBBB", ABORT, 0, 4, 0, 0, 9, 9),
            "the peer aborted the association instead of answering the association request",
        ),
    ],
    ids=["an-item-beyond-the-end", "no-fixed-fields", "half-a-rejection", "a-reserved-abort"],
)
def test_an_invalid_answer_is_a_cause_at_once(cr: bytes, answer: bytes, cause: str) -> None:
    with accepting(answer) as (destination, _):
        assert echo(destination, calling_ae="CXRNODE", settings=PATIENT).cause == cause
        assert deliver(destination, cr) == [NoAnswer(cause=cause)]


def rejection(result: int, source: int, reason: int) -> bytes:
    return struct.pack(">BBLBBBB", REJECTED, 0, 4, 0, result, source, reason)


@pytest.mark.parametrize(
    ("rejected", "cause", "permanent"),
    [
        ((1, 3, 1), "temporary congestion", False),
        ((1, 3, 2), "its limit of associations is reached", False),
        ((2, 3, 1), "temporary congestion", False),
        ((2, 3, 2), "its limit of associations is reached", False),
        ((2, 3, 5), "with reason 5 of source 3, which the standard does not know", False),
        ((2, 1, 1), "without a reason", False),
        ((1, 1, 3), "calling AE title CXRNODE is not known there", True),
        ((1, 1, 9), "with reason 9 of source 1, which the standard does not know", True),
        ((1, 9, 200), "with reason 200 of source 9, which the standard does not know", True),
        ((0, 1, 1), "without a reason", False),
    ],
)
def test_a_rejection_says_why_at_once_and_what_passes_is_tried_again(
    cr: bytes, rejected: tuple[int, int, int], cause: str, permanent: bool
) -> None:
    with accepting(rejection(*rejected)) as (destination, _):
        assert echo(destination, calling_ae="CXRNODE", settings=PATIENT).cause == f"association rejected: {cause}"
        expected = NoAnswer(cause=f"association rejected: {cause}", permanent=permanent)
        assert deliver(destination, cr) == [expected]


def test_a_response_to_another_message_is_not_believed(cr: bytes) -> None:
    def confuse(request: Dataset) -> bytes:
        return response(request, more={0x0120: struct.pack("<H", request.MessageID + 6)})

    with accepting(respond=confuse) as (destination, _):
        assert deliver(destination, cr) == [NoAnswer(cause="the response is to message 7 instead of 1")]


@pytest.mark.parametrize(
    "more", [{0x0100: b"\x30\x80"}, {0x0900: b"\0"}], ids=["of-another-service", "with-half-a-status"]
)
def test_a_message_that_is_no_response_to_storing_is_not_believed(cr: bytes, more: dict[int, bytes]) -> None:
    with accepting(respond=lambda request: response(request, more=more)) as (destination, _):
        assert deliver(destination, cr) == [NoAnswer(cause="the response is not valid")]


def test_a_response_with_an_instance_uid_that_is_none_still_tells_its_status(cr: bytes) -> None:
    with accepting(respond=lambda request: response(request, more={0x1000: b"1." * 50})) as (destination, _):
        assert deliver(destination, cr) == [Accepted()]


def test_the_error_comment_is_kept_for_who_sends_by_hand_and_stands_in_no_cause(cr: bytes) -> None:
    comment = {0x0902: b"CANARY\x1b[2J not in this archive"}
    with accepting(respond=lambda request: response(request, status=0xA700, more=comment)) as (destination, _):
        (outcome,) = deliver(destination, cr)
    assert outcome == Refused(status=0xA700, cause="A700: out of resources", permanent=False)
    assert outcome.comment == "CANARY [2J not in this archive"
    assert "CANARY" not in repr(outcome)


def reports(sop_classes: dict[str, int]) -> tuple[list[StoreOutcome], list[bytes]]:
    """Deliver a report to a peer that accepts these classes and answers with these statuses."""
    form = replace(AS_IT_IS, fallback=lambda _, classes: report_of(next(iter(classes)), "variant"))
    with Peer(
        {entry: [EXPLICIT] for entry in sop_classes},
        on_store=lambda event: sop_classes[str(event.request.AffectedSOPClassUID)],
    ) as peer:
        return deliver(peer.destination, report_of(COMPREHENSIVE_3D_SR.uid), form=form), peer.stored


def test_a_class_that_was_accepted_and_is_then_not_supported_has_the_next_one_tried() -> None:
    outcomes, stored = reports({COMPREHENSIVE_3D_SR.uid: 0x0122, COMPREHENSIVE_SR.uid: 0x0122, ENHANCED_SR.uid: 0})
    assert outcomes == [Accepted()]
    assert ENHANCED_SR.uid.encode() in stored[0]


def test_a_report_that_is_supported_in_no_class_is_refused() -> None:
    outcomes, _ = reports({COMPREHENSIVE_3D_SR.uid: 0x0122, ENHANCED_SR.uid: 0x0122})
    assert outcomes == [Refused(status=0x0122, cause="0122: SOP class not supported", permanent=True)]


def test_another_failure_has_no_other_class_tried() -> None:
    outcomes, stored = reports({COMPREHENSIVE_3D_SR.uid: 0xA700, ENHANCED_SR.uid: 0})
    assert outcomes == [Refused(status=0xA700, cause="A700: out of resources", permanent=False)]
    assert stored == []


def instance_of(part10: bytes) -> str:
    return str(dcmread(BytesIO(part10)).SOPInstanceUID)


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_an_object_that_the_peer_aborts_on_costs_only_itself(cr: bytes, bad: int) -> None:
    objects = [renamed(cr, str(number)) for number in range(5)]

    def abort_one(event: Any) -> int:
        if event.request.AffectedSOPInstanceUID == instance_of(objects[bad]):
            event.assoc.abort()
            return 0xA700
        return 0x0000

    with Peer({CR: [EXPLICIT]}, on_store=abort_one) as peer:
        outcomes = deliver(peer.destination, *objects)
    expected: list[StoreOutcome] = [Accepted()] * 5
    expected[bad] = NoAnswer(cause="the peer aborted the association")
    assert outcomes == expected
    assert len(peer.stored) == 4
    assert peer.associations == (3 if bad == 2 else 2)


def test_an_object_that_the_peer_is_silent_about_costs_only_itself(cr: bytes) -> None:
    objects = [renamed(cr, str(number)) for number in range(3)]
    let_go = threading.Event()

    def hang_on_one(event: Any) -> int:
        if event.request.AffectedSOPInstanceUID == instance_of(objects[0]):
            let_go.wait(60)
        return 0x0000

    with Peer({CR: [EXPLICIT]}, on_store=hang_on_one) as peer:
        outcomes = deliver(peer.destination, *objects, settings=replace_timeout(1.0))
        let_go.set()
    assert outcomes == [NoAnswer(cause="no response within 1 s"), Accepted(), Accepted()]


def replace_timeout(seconds: float) -> DeliverySettings:
    return PATIENT.model_copy(update={"response_timeout_s": seconds})


def test_a_peer_that_is_silent_about_everything_is_not_asked_about_all(cr: bytes) -> None:
    objects = [renamed(cr, str(number)) for number in range(6)]
    let_go = threading.Event()
    with Peer({CR: [EXPLICIT]}, on_store=lambda _: int(not let_go.wait(60))) as peer:
        outcomes = deliver(peer.destination, *objects, settings=replace_timeout(0.5))
        let_go.set()
    assert outcomes == [NoAnswer(cause="no response within 0.5 s")] * 6
    assert peer.associations == 2


def test_a_peer_that_takes_one_object_an_association_gets_them_all(cr: bytes) -> None:
    def store_and_hang_up(request: Dataset) -> bytes:
        return response(request) + struct.pack(">BBLL", ABORT, 0, 4, 0)

    with accepting(respond=store_and_hang_up) as (destination, heard):
        outcomes = deliver(destination, *(renamed(cr, str(number)) for number in range(4)))
    assert outcomes == [Accepted()] * 4
    assert len(heard) == 4


def odd(part10: bytes) -> bytes:
    """Return the object with Pixel Data of an odd length, as some exporters write it."""
    ds = dcmread(BytesIO(part10))
    position = part10.rindex(b"\xe0\x7f\x10\x00OW")
    length = len(ds.PixelData)
    return part10[: position + 8] + struct.pack("<L", length - 1) + part10[position + 12 : position + 12 + length - 1]


def strict(event: Any) -> int:
    """Abort for an object of odd length, as archives do."""
    if len(event.request.DataSet.getvalue()) % 2:
        event.assoc.abort()
        return 0xC000
    return 0x0000


def test_a_file_with_pixel_data_of_odd_length_is_padded(cr: bytes, tmp_path: Path) -> None:
    (tmp_path / "odd.dcm").write_bytes(odd(cr))
    with Peer({CR: [EXPLICIT]}, on_store=strict) as peer:
        (sent,) = send_files(peer.destination, [tmp_path], calling_ae="CXRNODE", settings=QUICK)
    assert sent.outcome == Accepted()
    assert len(peer.stored[0]) % 2 == 0


def test_a_file_that_the_peer_aborts_on_is_named_and_the_others_are_stored(cr: bytes, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.dcm").write_bytes(renamed(cr, str(number)))
    bad = instance_of(renamed(cr, "1"))

    def abort_one(event: Any) -> int:
        if event.request.AffectedSOPInstanceUID == bad:
            event.assoc.abort()
            return 0xA700
        return 0x0000

    with Peer({CR: [EXPLICIT]}, on_store=abort_one) as peer:
        report = send_files(peer.destination, [tmp_path], calling_ae="CXRNODE", settings=QUICK)
    assert [entry.path.name for entry in report if not entry.delivered] == ["1.dcm"]
    assert len(peer.stored) == 3


def test_send_prints_the_error_comment(cr: bytes, tmp_path: Path) -> None:
    (tmp_path / "one.dcm").write_bytes(cr)
    comment = {0x0902: b"Study is locked "}
    with accepting(respond=lambda request: response(request, status=0xA700, more=comment)) as (destination, _):
        peer = f"PEER@127.0.0.1:{destination.port}"
        result = CliRunner().invoke(app, ["send", peer, str(tmp_path / "one.dcm")])
    assert result.exit_code == 1
    printed = " ".join(result.output.split())
    assert "one.dcm: not stored, A700: out of resources (Study is locked)" in printed


def test_an_abort_that_ends_the_connection_before_the_library_looks_is_the_cause(
    cr: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_request = ACSE.send_request

    def send_and_wait_for_the_end(acse: ACSE) -> None:
        send_request(acse)
        wait_until(lambda: acse.socket._ready.is_set() and not acse.socket._is_connected, 30, "the peer's end")

    monkeypatch.setattr(ACSE, "send_request", send_and_wait_for_the_end)
    with accepting(struct.pack(">BBLBBBB", ABORT, 0, 4, 0, 0, 0, 0)) as (destination, _):
        cause = echo(destination, calling_ae="CXRNODE", settings=PATIENT).cause
    assert cause == "the peer aborted the association instead of answering the association request"
