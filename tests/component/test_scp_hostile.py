"""A hostile peer's bytes, while a good peer keeps being served."""

import random
import resource
import socket
import struct
import time
from pathlib import Path

import pytest

from dicomnode.dicom.part10 import read_file_head
from tests.support.dimse import MemoryInbox, running_scp
from tests.support.hostile import association, closed, connect, serves
from tests.support.make import build, encode
from tests.support.processes import wait_until
from tests.support.wire import ABORT, P_DATA, REQUEST, STORE, answer, associate_request, command, fragment, p_data, push
from tests.support.wire import item as pdu_item


def flood(wire: socket.socket, data: bytes) -> None:
    for _ in range(200):
        wire.sendall(data)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.parametrize("pdu_type", [REQUEST, P_DATA])
def test_a_pdu_that_announces_four_gigabytes_is_cut_off_at_once(pdu_type: int) -> None:
    with running_scp(MemoryInbox()) as (_, destination), connect(destination) as wire:
        before = resident_bytes()
        wire.sendall(struct.pack(">BBL", pdu_type, 0, 0xFFFFFFFF))
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            flood(wire, bytes(1_048_576))
        grown = resident_bytes() - before
        assert serves(destination)
    assert grown < 40_000_000


def test_an_oversized_pdu_within_an_association_ends_it() -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (_, destination):
        with association(destination) as wire:
            wire.sendall(struct.pack(">BBL", P_DATA, 0, 300_000))
            wait_until(lambda: inbox.released, 60, "the end of the association")
        assert serves(destination)


def test_an_object_without_end_is_cut_off_at_the_limit() -> None:
    inbox = MemoryInbox()
    with running_scp(inbox, maximum_object_bytes=1_048_576) as (_, destination):
        with association(destination) as wire:
            fragment = bytes(60_000)
            pdu = struct.pack(">BBLLBB", P_DATA, 0, len(fragment) + 6, len(fragment) + 2, 1, 0) + fragment
            # Cut off by the node, or closed by the peer's own library once it has noticed.
            with pytest.raises(OSError, match=r"reset|Broken pipe|Bad file descriptor"):
                flood(wire, pdu)
            wait_until(lambda: inbox.released, 60, "the end of the association")
        assert serves(destination)
    assert len(inbox.received) == 1


@pytest.mark.parametrize("head", [b"", b"\x01\x00\x00", b"\x01\x00\x00\x00\x10\x00\x00\x01"])
def test_a_connection_that_asks_for_nothing_ends_with_the_acse_timeout(head: bytes) -> None:
    with running_scp(MemoryInbox(), acse_timeout_s=0.5) as (_, destination), connect(destination) as wire:
        wire.sendall(head)
        wait_until(lambda: closed(wire), 60, "the end of the connection")


def test_a_request_dripping_in_byte_by_byte_ends_with_the_acse_timeout() -> None:
    with running_scp(MemoryInbox(), acse_timeout_s=0.5) as (_, destination), connect(destination) as wire:
        wire.sendall(struct.pack(">BBL", REQUEST, 0, 4096))
        deadline = time.monotonic() + 8  # far below what the 4096 bytes announced would take at this pace
        while not closed(wire) and time.monotonic() < deadline:
            wire.sendall(b"\x00")
        assert closed(wire)


def test_a_peer_that_stalls_within_a_pdu_is_cut_off() -> None:
    inbox = MemoryInbox()
    with running_scp(inbox, network_timeout_s=0.6) as (_, destination), association(destination) as wire:
        wire.sendall(struct.pack(">BBL", P_DATA, 0, 5000) + bytes(100))
        wait_until(lambda: inbox.released, 60, "the end of the association")


def test_an_association_at_rest_ends_with_the_network_timeout() -> None:
    inbox = MemoryInbox()
    with running_scp(inbox, network_timeout_s=0.6) as (_, destination), association(destination):
        wait_until(lambda: inbox.released, 60, "the end of the association")


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_never_take_the_listener_down(seed: int) -> None:
    source = random.Random(seed)
    with running_scp(MemoryInbox(), acse_timeout_s=0.5) as (_, destination):
        for _ in range(8):
            body = source.randbytes(source.randrange(0, 400))
            with connect(destination) as wire:
                wire.sendall(struct.pack(">BBL", source.randrange(0, 9), 0, len(body)) + body)
        assert serves(destination)


def test_a_p_data_longer_than_negotiated_ends_the_association() -> None:
    inbox = MemoryInbox()
    with running_scp(inbox, maximum_pdu_bytes=16_384) as (scp, destination):
        with association(destination) as wire:
            wire.sendall(struct.pack(">BBL", P_DATA, 0, 16_385))
            wait_until(lambda: inbox.released, 60, "the end of the association")
        assert scp.refused == {("pdu-refused", "length"): 1}
        assert serves(destination)


def test_an_object_that_drips_is_cut_off_though_no_timeout_is_reached() -> None:
    inbox = MemoryInbox()
    with running_scp(inbox, network_timeout_s=0.8) as (scp, destination), association(destination) as wire:
        push(wire, p_data(fragment(STORE, command=True, last=True)))
        deadline = time.monotonic() + 10
        while not inbox.released and time.monotonic() < deadline:
            push(wire, p_data(fragment(b"x", command=False, last=False)))
            time.sleep(0.1)
        assert inbox.released
        assert scp.refused == {("pdu-refused", "too-slow"): 1}


def test_an_object_that_comes_in_slowly_but_steadily_is_not() -> None:
    inbox, sent = MemoryInbox(), encode(build("cr", rows=64, columns=64))
    data = sent[read_file_head(sent).offset :]
    parts = [data[start : start + 1000] for start in range(0, len(data), 1000)]
    slow = {"network_timeout_s": 0.5, "minimum_bytes_per_s": 2000}
    with running_scp(inbox, **slow) as (_, destination), association(destination) as wire:
        push(wire, p_data(fragment(command_for(sent), command=True, last=True)))
        for part in parts:
            push(wire, p_data(fragment(part, command=False, last=part is parts[-1])))
            time.sleep(0.1)
        wait_until(lambda: inbox.received, 60, "the object")


def command_for(sent: bytes) -> bytes:
    head = read_file_head(sent)
    return command(head.sop_class, 0x0001, sop_instance=head.sop_instance, more={0x0700: b"\0\0"})


def test_a_command_set_without_end_ends_the_association() -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (scp, destination), association(destination) as wire:
        push(wire, p_data(fragment(bytes(60_000), command=True, last=False)), 4)
        wait_until(lambda: inbox.released, 60, "the end of the association")
        assert scp.refused == {("pdu-refused", "object-size"): 1}


def test_a_pdu_of_thousands_of_fragments_ends_the_association() -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (scp, destination), association(destination) as wire:
        push(wire, p_data(fragment(b"", command=False, last=False) * 40_000))
        wait_until(lambda: inbox.released, 60, "the end of the association")
        assert scp.refused == {("pdu-refused", "parts"): 1}


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (struct.pack(">BBL", REQUEST, 0, 131_073), "request-length"),
        (associate_request(more=pdu_item(0x10, b"") * 9000), "request-parts"),
        (struct.pack(">BBL", P_DATA, 0, 4) + bytes(4), "not-a-request"),
        (b"GET / HTTP/1.1\r\n\r\n", "not-dicom"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_request_is_aborted_and_costs_no_association(sent: bytes, reason: str) -> None:
    inbox = MemoryInbox()
    with running_scp(inbox) as (scp, destination), connect(destination) as wire:
        wire.sendall(sent)
        assert answer(wire) == ABORT
        assert scp.refused == {("connection-refused", reason): 1}
    assert inbox.opened == []


def test_a_probe_that_connects_and_leaves_is_no_refusal() -> None:
    with running_scp(MemoryInbox()) as (scp, destination):
        connect(destination).close()
        assert serves(destination)
        assert scp.refused == {}


@pytest.mark.parametrize("title", [b"A\nB", b"\xff\xfe", b"\x1b[2J", b" " * 16, b"A\\B"])
def test_impossible_ae_titles_do_no_harm(title: bytes) -> None:
    request = associate_request().replace(b"HOSTILE".ljust(16), title.ljust(16))
    with running_scp(MemoryInbox()) as (_, destination):
        with connect(destination) as wire:
            wire.sendall(request)
            answer(wire)
        assert serves(destination)
