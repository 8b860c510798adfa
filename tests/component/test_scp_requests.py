"""Requests with a bad value: a failure is answered, and the images that follow over the association are taken."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.dimse import MemoryInbox, data_set_of, running_scp
from tests.support.hostile import serves
from tests.support.make import build, encode
from tests.support.requesting import exchange, store
from tests.support.wire import (
    COMMITMENT,
    CR,
    answered,
    associate_request,
    command,
    connected,
    p_data,
    push,
)

MESSAGE_ID, CLASS, INSTANCE = 0x0110, 0x0002, 0x1000
LONG_UID = b"1." * 40 + b"12"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"


@pytest.fixture(scope="module")
def cr() -> bytes:
    return encode(build("cr", rows=64, columns=64))


@contextmanager
def association(**request: object) -> Iterator[tuple[MemoryInbox, socket.socket]]:
    inbox = MemoryInbox()
    with running_scp(inbox) as (_, destination):
        with connected(destination.port) as wire:
            push(wire, associate_request(**request))  # type: ignore[arg-type]
            answered(wire)
            yield inbox, wire
        assert serves(destination)


REFUSED = {
    "an-instance-uid-of-82-characters": ({"x1000": LONG_UID}, (), 0x0117),
    "a-class-uid-of-82-characters": ({"x0002": LONG_UID}, (), 0x0122),
    "priority-3": ({"x0700": b"\3\0"}, (), 0x0115),
    "a-priority-of-three-bytes": ({"x0700": b"\0\0\0"}, (), 0x0115),
    "no-message-id": ({}, (MESSAGE_ID,), 0x0212),
    "no-instance-uid": ({}, (INSTANCE,), 0x0117),
    "an-empty-instance-uid": ({"x1000": b""}, (), 0x0117),
    "no-class-uid": ({}, (CLASS,), 0x0122),
    "a-class-that-nobody-knows": ({"x0002": b"1.2.3.4\0"}, (), 0xA900),
    "a-class-of-another-service": ({"x0002": STUDY_ROOT_FIND.encode() + b"\0"}, (), 0xA900),
}


@pytest.mark.parametrize(("values", "without", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_value_is_answered_with_a_failure_and_the_next_image_is_taken(
    cr: bytes, values: dict[str, bytes], without: tuple[int, ...], status: int
) -> None:
    with association() as (inbox, wire):
        refusal = exchange(wire, store(cr, without=without, **values), data_set_of(cr))
        taken = exchange(wire, store(cr), data_set_of(cr))
        assert (refusal.Status, taken.Status) == (status, 0x0000)
        assert refusal.MessageIDBeingRespondedTo == (0 if MESSAGE_ID in without else 1)
        assert refusal.CommandField == 0x8001
    assert len(inbox.received) == 1 + 1  # of this peer and of the one that shows that the node still serves


@pytest.mark.parametrize(
    "values",
    [
        {"x1031": b"\1\0\0"},
        {"x1030": b"TITLE OF MORE THAN SIXTEEN"},
        {"x0700": b"\2\0\0\0"},
        {"x5555": b"what is this"},
    ],
    ids=["originator-id-of-three-bytes", "long-originator", "two-priorities", "an-unknown-element"],
)
def test_what_storing_does_not_need_may_have_any_value(cr: bytes, values: dict[str, bytes]) -> None:
    with association() as (_, wire):
        assert exchange(wire, store(cr, **values), data_set_of(cr)).Status == 0x0000


def test_a_large_image_with_a_bad_value_leaves_nothing_behind(tmp_path: object) -> None:
    large = encode(build("cr", rows=1024, columns=1024))
    discarded: list[bool] = []

    class Part:
        def write(self, piece: bytes | memoryview) -> None:
            pass

        def abandon(self) -> None:
            pass

        def discard(self) -> None:
            discarded.append(True)

    class Inbox(MemoryInbox):
        arriving = staticmethod(Part)

    inbox = Inbox()
    with running_scp(inbox) as (_, destination), connected(destination.port) as wire:
        push(wire, associate_request())
        answered(wire)
        refusal = exchange(wire, store(large, x0700=b"\3\0"), data_set_of(large))
    assert refusal.Status == 0x0115
    assert discarded == [True]
    assert inbox.received == []


@pytest.mark.parametrize(
    ("sop_class", "field"),
    [(STUDY_ROOT_FIND, 0x0020), (CR, 0x0030), (CR, 0x0110), (COMMITMENT, 0x0130)],
    ids=["c-find", "c-echo-of-an-image-class", "n-get-without-its-uids", "n-action-without-its-uids"],
)
def test_a_request_for_another_service_is_refused_and_the_next_image_is_taken(
    cr: bytes, sop_class: str, field: int
) -> None:
    with association() as (_, wire):
        refusal = exchange(wire, command(sop_class, field), b"\x08\0\x18\0\0\0\0\0")
        taken = exchange(wire, store(cr), data_set_of(cr))
    assert (refusal.Status in (0x0122, 0x0211, 0x0212), taken.Status) == (True, 0x0000)
    assert refusal.CommandField == field | 0x8000


def test_a_report_without_its_event_type_is_refused_and_not_left_without_an_answer() -> None:
    with association(abstract=COMMITMENT, role=True) as (_, wire):
        refusal = exchange(wire, command(COMMITMENT, 0x0100, sop_instance="1.2.840.10008.1.20.1.1"), b"\0" * 8)
    assert (refusal.Status, refusal.CommandField) == (0x0212, 0x8100)


def test_an_image_over_a_context_that_was_not_accepted_ends_the_association_at_once(cr: bytes) -> None:
    inbox = MemoryInbox()
    with running_scp(inbox, network_timeout_s=60) as (_, destination), connected(destination.port) as wire:
        push(wire, associate_request())
        answered(wire)
        command_set = store(cr)
        pdv = struct.pack(">LBB", len(command_set) + 2, 77, 3) + command_set
        push(wire, p_data(pdv, struct.pack(">LBB", 10, 77, 2) + bytes(8)))
        wire.settimeout(3)
        assert answered(wire)[0] == 7
    assert inbox.received == []
