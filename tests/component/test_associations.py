"""Association requests as peers send them: what is to be ignored is ignored, what is invalid is told so at once."""

import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dicomnode.domain.delivery import Destination
from dicomnode.net.scp.server import StorageScp
from tests.support.dimse import MemoryInbox, running_scp
from tests.support.hostile import serves
from tests.support.processes import wait_until
from tests.support.wire import (
    ABORT,
    ACCEPTED,
    COMMITMENT,
    CR,
    EXPLICIT,
    REJECTED,
    STORE,
    answered,
    associate_request,
    connected,
    fragment,
    item,
    p_data,
    proposed,
    push,
)

SYNTAXES = item(0x30, CR.encode()) + item(0x40, EXPLICIT.encode())
# Shorter than any timeout of the node's: who waits for one has not been answered at once.
AT_ONCE_S = 3.0
PATIENT = {"acse_timeout_s": 60.0, "network_timeout_s": 60.0}


@contextmanager
def asked(request: bytes, **settings: Any) -> Iterator[tuple[StorageScp, Destination, MemoryInbox, bytes]]:
    """Run the SCP, send it a request, and yield the PDU that it answers with at once."""
    inbox = MemoryInbox()
    with running_scp(inbox, **{**PATIENT, **settings}) as (scp, destination):
        with connected(destination.port) as wire:
            wire.settimeout(AT_ONCE_S)
            wire.sendall(request)
            yield scp, destination, inbox, answered(wire)
        assert serves(destination)


def identity(kind: int, primary: bytes = b"someone") -> bytes:
    """Return a User Identity sub-item. Source: PS3.7 D.3.3.7.1."""
    return item(0x58, bytes([kind, 0]) + struct.pack(">H", len(primary)) + primary + struct.pack(">H", 0))


TOLERATED = {
    "an-unknown-item": associate_request(more=item(0x77, b"of some vendor")),
    "an-unknown-sub-item": associate_request(user_more=item(0x7A, b"\x01\x02")),
    "an-unknown-sub-item-of-a-context": associate_request(contexts=proposed(1, item(0x31, b"x") + SYNTAXES)),
    "another-version-too": associate_request(version=0x0003),
    "a-reserved-version-bit": associate_request(version=0x8001),
    "titles-padded-with-null": associate_request(calling=b"MODALITY".ljust(16, b"\0"), called=b"CXRNODE\0\0\0junk\0"),
    "a-long-version-name": associate_request(user_more=item(0x55, b"A VERSION NAME OF MORE THAN SIXTEEN BYTES")),
    "a-version-name-not-ascii": associate_request(user_more=item(0x55, "GERÄT_1.0".encode("latin-1"))),
    "an-empty-version-name": associate_request(user_more=item(0x55, b"")),
    "no-implementation-class": associate_request(user=item(0x51, struct.pack(">L", 16_384))),
    "no-maximum-length": associate_request(user=item(0x52, b"1.2.3.4")),
    "uids-padded-with-blanks": associate_request(contexts=proposed(1, item(0x30, f"{CR} ".encode()) + SYNTAXES[-23:])),
    "a-user-identity": associate_request(user_more=identity(1)),
    "a-user-identity-of-type-0": associate_request(user_more=identity(0)),
    "a-user-identity-of-type-9": associate_request(user_more=identity(9)),
    "an-asynchronous-window": associate_request(user_more=item(0x53, b"\0\0\0\0")),
    "extended-negotiation": associate_request(user_more=item(0x56, struct.pack(">H", len(CR)) + CR.encode() + b"\2")),
    "a-role-of-neither": associate_request(
        user_more=item(0x54, struct.pack(">H", len(COMMITMENT)) + COMMITMENT.encode() + b"\0\0"),
        contexts=proposed(1, SYNTAXES) + proposed(3, item(0x30, COMMITMENT.encode()) + item(0x40, EXPLICIT.encode())),
    ),
    "a-role-that-is-cut-off": associate_request(user_more=item(0x54, b"\0\x40" + CR.encode())),
    "another-context-of-a-class-of-100-characters": associate_request(
        contexts=proposed(1, SYNTAXES) + proposed(3, item(0x30, b"1." * 50) + item(0x40, EXPLICIT.encode()))
    ),
    "no-application-context": associate_request(application=b""),
}


@pytest.mark.parametrize("request_pdu", TOLERATED.values(), ids=TOLERATED.keys())
def test_what_the_standard_tells_to_ignore_costs_no_association(request_pdu: bytes) -> None:
    with asked(request_pdu) as (scp, _, inbox, answer):
        assert answer[0] == ACCEPTED
        wait_until(lambda: inbox.opened, 60, "the association")
        assert scp.refused == {}


CALLING_NAMES = {
    "RÖNTGEN".encode("latin-1"): "RÖNTGEN",
    "RÖNTGEN".encode(): "RÖNTGEN",
    b"MODALITY\0\0": "MODALITY",
    b"  MODALITY": "MODALITY",
    b"A\x85B": "A?B",
}


@pytest.mark.parametrize(("calling", "name"), CALLING_NAMES.items(), ids=CALLING_NAMES.values())
def test_a_calling_title_that_is_no_ascii_is_known_by_what_it_says(
    calling: bytes, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with asked(associate_request(calling=calling)) as (_, _, inbox, answer):
        assert answer[0] == ACCEPTED
        wait_until(lambda: inbox.opened, 60, "the association")
    told = next(record for record in caplog.records if record.message == "association-opened")
    assert told.calling_ae == name


def test_a_calling_title_in_latin_1_is_compared_as_it_is() -> None:
    with asked(
        associate_request(calling="R\xd6NTGEN".encode("latin-1")), calling_ae_titles=["R?NTGEN", "GOOD"]
    ) as found:
        scp, _, _, answer = found
        assert (answer[0], answer[7:10]) == (REJECTED, bytes([1, 1, 3]))
        assert scp.refused == {("association-rejected", "calling-ae"): 1}


def test_a_calling_title_in_latin_1_can_be_admitted() -> None:
    request = associate_request(calling="R\xd6NTGEN".encode("latin-1"))
    with asked(request, calling_ae_titles=["R\xd6NTGEN", "GOOD"]) as (_, _, _, answer):
        assert answer[0] == ACCEPTED


INVALID = {
    "context-0": (associate_request(contexts=proposed(0, SYNTAXES)), "presentation context 0: identifiers are odd"),
    "an-even-context": (
        associate_request(contexts=proposed(2, SYNTAXES)),
        "presentation context 2: identifiers are odd",
    ),
    "a-context-twice": (associate_request(contexts=proposed(1, SYNTAXES) * 2), "presentation context 1 is there twice"),
    "no-contexts": (associate_request(contexts=b""), "it proposes no presentation context"),
    "no-syntaxes": (
        associate_request(contexts=proposed(1, b"")),
        "presentation context 1 has 0 abstract syntaxes instead of one",
    ),
    "no-transfer-syntax": (
        associate_request(contexts=proposed(1, item(0x30, CR.encode()))),
        "presentation context 1 has no transfer syntax",
    ),
    "two-abstract-syntaxes": (
        associate_request(contexts=proposed(1, item(0x30, COMMITMENT.encode()) + SYNTAXES)),
        "presentation context 1 has 2 abstract syntaxes instead of one",
    ),
    "an-item-beyond-the-end": (
        associate_request(more=b"\x77\x00\xff\xff"),
        "an item of type 77H is longer than what holds it",
    ),
    "a-sub-item-beyond-its-item": (
        associate_request(user_more=b"\x52\x00\x40\x00"),
        "an item of type 52H is longer than what holds it",
    ),
    "a-length-of-two-bytes": (
        associate_request(user=item(0x51, b"\x40\x00")),
        "the maximum length received is not a number of 32 bits",
    ),
    "pdus-of-eight-bytes": (
        associate_request(user=item(0x51, struct.pack(">L", 8))),
        "the peer takes PDUs of 8 bytes only",
    ),
    "a-blank-calling-title": (associate_request(calling=" " * 16), "the calling AE title is blank"),
    "a-called-title-of-null": (associate_request(called=bytes(16)), "the called AE title is blank"),
    "a-control-character": (
        associate_request(calling=b"A\x1bB"),
        "the calling AE title has control characters or a backslash",
    ),
    "no-fixed-fields": (struct.pack(">BBL", 1, 0, 20) + bytes(20), "it ends before its fixed fields do"),
}


@pytest.mark.parametrize(("request_pdu", "cause"), INVALID.values(), ids=INVALID.keys())
def test_an_invalid_request_is_aborted_at_once_and_the_log_says_whose_it_was_and_why(
    request_pdu: bytes, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    with asked(request_pdu) as (scp, _, inbox, answer):
        assert (answer[0], answer[8:10]) == (ABORT, bytes([2, 6]))
        assert scp.refused == {("connection-refused", "request-invalid"): 1}
        assert inbox.opened == []
    (told,) = [record for record in caplog.records if record.message == "connection-refused"]
    assert (told.peer, told.cause) == ("127.0.0.2", cause)


@pytest.mark.parametrize(
    ("request_pdu", "rejection", "reason"),
    [
        (associate_request(version=0x0002), (1, 2, 2), "protocol-version"),
        (associate_request(application=b"1.2.3"), (1, 1, 2), "application-context"),
    ],
    ids=["version-2-alone", "another-application"],
)
def test_what_speaks_of_another_protocol_is_rejected_for_good(
    request_pdu: bytes, rejection: tuple[int, int, int], reason: str
) -> None:
    with asked(request_pdu) as (scp, _, _, answer):
        assert (answer[0], tuple(answer[7:10])) == (REJECTED, rejection)
        assert scp.refused == {("association-rejected", reason): 1}


def test_a_context_of_an_unreadable_class_is_refused_and_the_other_accepted() -> None:
    unreadable = proposed(3, item(0x30, b"1." * 50) + item(0x40, EXPLICIT.encode()))
    with asked(associate_request(contexts=proposed(1, SYNTAXES) + unreadable)) as (_, _, _, answer):
        assert item(0x21, bytes([1, 0, 0, 0]) + item(0x40, EXPLICIT.encode())) in answer
        assert bytes([3, 0, 3, 0]) in answer


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">BBLBBBB", ABORT, 0, 4, 0, 0, 1, 9),
        struct.pack(">BBLBBBB", ABORT, 0, 4, 0, 0, 2, 77),
        struct.pack(">BBL", ABORT, 0, 0),
        struct.pack(">BBLBBBB", REJECTED, 0, 4, 0, 9, 9, 9),
        associate_request(contexts=b"\x20\0\xff"),
        p_data(struct.pack(">LB", 1, 1)),
        p_data(fragment(b"no command at all", command=True, last=True)),
        p_data(fragment(STORE[:-20], command=True, last=True)),
        p_data(struct.pack(">LBB", 200, 1, 3)),
    ],
    ids=[
        "abort-reserved-source",
        "abort-reserved-reason",
        "abort-empty",
        "reserved-rejection",
        "another-request",
        "no-control-header",
        "no-command",
        "half-a-command",
        "beyond-the-pdu",
    ],
)
def test_nothing_sent_over_an_association_makes_a_thread_of_the_library_die(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(str(args.exc_value)))
    inbox = MemoryInbox()
    with running_scp(inbox, **PATIENT) as (_, destination):
        with connected(destination.port) as wire:
            wire.settimeout(AT_ONCE_S)
            push(wire, associate_request())
            assert answered(wire)[0] == ACCEPTED
            push(wire, sent)
            assert answered(wire)[:1] in (b"", bytes([ABORT]))
            wait_until(lambda: inbox.released, 60, "the end of the association")
        assert serves(destination)
    assert died == []
