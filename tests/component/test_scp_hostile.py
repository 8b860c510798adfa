"""A hostile peer, while a good one keeps being served."""

import random
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from pydicom.uid import ComputedRadiographyImageStorage
from pynetdicom.presentation import build_context

from dicomnode.domain.job import Accepted, Destination
from dicomnode.net.part10 import read_file_head
from dicomnode.net.scu import echo, send
from dicomnode.settings import DeliverySettings
from tests.component.dimse import EXPLICIT, QUICK, MemoryInbox, outgoing, requested, running_scp, store_request
from tests.make import build, encode
from tests.processes import wait_until
from tests.wire import (
    ABORT,
    COMMITMENT,
    REJECTED,
    REPORT,
    STORE,
    answer,
    associate_request,
    associated,
    command,
    fragment,
    p_data,
    push,
)
from tests.wire import item as pdu_item

ASSOCIATE_RQ, P_DATA = 1, 4


def connect(destination: Destination, *, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((destination.host, destination.port), timeout=5, source_address=(source, 0))


@contextmanager
def association(destination: Destination) -> Iterator[socket.socket]:
    """Establish a real association and yield its bare socket."""
    context = build_context(ComputedRadiographyImageStorage, [EXPLICIT])
    with requested(destination, context, calling_ae="HOSTILE") as established:
        yield established.dul.socket.socket


def flood(wire: socket.socket, data: bytes) -> None:
    for _ in range(200):
        wire.sendall(data)


def closed(wire: socket.socket) -> bool:
    """Tell whether the node has ended the connection."""
    try:
        wire.settimeout(0.05)
        return wire.recv(4096) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def serves(destination: Destination) -> bool:
    item = outgoing(encode(build("cr", rows=64, columns=64)))
    return send(destination, [item], calling_ae="GOOD", settings=QUICK) == [Accepted()]


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.parametrize("pdu_type", [ASSOCIATE_RQ, P_DATA])
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
        wire.sendall(struct.pack(">BBL", ASSOCIATE_RQ, 0, 4096))
        deadline = time.monotonic() + 8  # far below what the 4096 bytes announced would take at this pace
        while not closed(wire) and time.monotonic() < deadline:
            wire.sendall(b"\x00")
        assert closed(wire)


def test_idle_connections_hold_no_association_slot() -> None:
    with (
        running_scp(MemoryInbox(), maximum_associations=2, acse_timeout_s=30) as (_, destination),
        connect(destination),
        connect(destination, source="127.0.0.2"),
        connect(destination, source="127.0.0.2"),
    ):
        time.sleep(0.3)
        assert echo(destination, calling_ae="GOOD", settings=QUICK).succeeded


def test_one_address_cannot_pile_up_idle_connections() -> None:
    with running_scp(MemoryInbox(), maximum_associations=4, acse_timeout_s=3) as (_, destination):
        idle = []
        for _ in range(12):
            idle.append(connect(destination))
            time.sleep(0.05)
        refused = sum(closed(wire) for wire in idle)
        wait_until(lambda: all(closed(wire) for wire in idle), 60, "the end of the idle connections")
        assert echo(destination, calling_ae="GOOD", settings=QUICK).succeeded
        for wire in idle:
            wire.close()
    assert refused == 8


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


def test_a_flood_of_requests_within_one_association_is_held_back() -> None:
    inbox = MemoryInbox(delay_s=0.05)
    item = encode(build("cr", rows=64, columns=64))
    with running_scp(inbox) as (scp, destination):
        context = build_context(ComputedRadiographyImageStorage, [EXPLICIT])
        with requested(destination, context, calling_ae="HOSTILE") as established:
            for _ in range(30):
                established.dimse.send_msg(store_request(item), established.accepted_contexts[0].context_id)
            waiting = 0
            for _ in range(20):
                time.sleep(0.02)
                waiting = max([waiting, *(entry.dimse.msg_queue.qsize() for entry in scp._open)])
            wait_until(lambda: len(inbox.received) == 30, 10, "the last of the requests")
    assert waiting <= 2


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


def test_all_unfinished_objects_together_stay_within_the_bound() -> None:
    part = p_data(fragment(bytes(250_000), command=False, last=False))
    settings = {"maximum_associations": 4, "maximum_object_bytes": 4_000_000, "maximum_pending_bytes": 8_000_000}
    with running_scp(MemoryInbox(), **settings) as (scp, destination), ExitStack() as stack:
        for _ in range(3):
            wire = stack.enter_context(association(destination))
            push(wire, p_data(fragment(STORE, command=True, last=True)))
            push(wire, part, 12)
        wait_until(lambda: scp.refused, 60, "the refusal")
        assert set(scp.refused) == {("pdu-refused", "memory")}
        assert serves(destination)


def test_memory_is_given_back_when_an_object_is_stored_or_broken_off() -> None:
    item = encode(build("cr", rows=800, columns=800))
    # No share but for small objects: what is not given back is missing at once.
    settings = {"maximum_associations": 1000, "maximum_object_bytes": 1_300_000, "maximum_pending_bytes": 2_600_000}
    with running_scp(MemoryInbox(), **settings) as (scp, destination):
        for _ in range(3):
            with association(destination) as wire:
                push(wire, p_data(fragment(STORE, command=True, last=True)))
                push(wire, p_data(fragment(bytes(250_000), command=False, last=False)), 4)
            wait_until(lambda: scp.associations == 0, 60, "the end of the association")
            items = [outgoing(item)] * 3
            assert send(destination, items, calling_ae="GOOD", settings=QUICK) == [Accepted()] * 3


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
        (struct.pack(">BBL", ASSOCIATE_RQ, 0, 131_073), "request-length"),
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


def test_reports_are_served_two_at_a_time() -> None:
    at_work, most = [0], [0]

    def slow(event: object) -> tuple[int, None]:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        time.sleep(0.05)
        at_work[0] -= 1
        return 0x0110, None

    with running_scp(MemoryInbox(), reports=slow) as (_, destination):
        wire = associated(destination.port, abstract=COMMITMENT, role=True)
        assert wire is not None
        with wire:
            report = fragment(REPORT, command=True, last=True)
            push(wire, (p_data(report) + p_data(fragment(bytes(8), command=False, last=True))), 10)
            assert [answer(wire) for _ in range(10)] == [P_DATA] * 10
    assert 1 <= most[0] <= 2


def test_rejected_peers_that_stay_hold_no_association_slot() -> None:
    with (
        running_scp(MemoryInbox(), maximum_associations=2, acse_timeout_s=30) as (_, destination),
        ExitStack() as stack,
    ):
        for source in ("127.0.0.2", "127.0.0.3", "127.0.0.4"):
            wire = stack.enter_context(connect(destination, source=source))
            wire.sendall(associate_request(called="WRONG"))
            assert answer(wire) == REJECTED
        assert echo(destination, calling_ae="GOOD", settings=QUICK).succeeded


def test_one_peer_cannot_take_every_association() -> None:
    with running_scp(MemoryInbox(), maximum_associations_per_peer=2) as (scp, destination), ExitStack() as stack:
        wires = [associated(destination.port, calling=f"HOSTILE-{number}") for number in range(3)]
        for wire in wires[:2]:
            assert wire is not None
            stack.enter_context(wire)
        assert wires[2] is None
        assert scp.refused == {("association-rejected", "associations-per-address"): 1}
        assert serves(destination)


def test_a_newcomer_is_served_while_thousands_wait() -> None:
    with running_scp(MemoryInbox(), maximum_associations=2, acse_timeout_s=30) as (scp, destination):
        with ExitStack() as stack:
            for number in range(100):
                stack.enter_context(connect(destination, source=f"127.0.0.{2 + number % 20}"))
            assert serves(destination)
        assert scp.refused[("connection-refused", "connections")] >= 90


def test_a_stranger_to_the_networks_is_not_listened_to() -> None:
    with running_scp(MemoryInbox(), networks=("127.0.0.0/31",)) as (scp, destination):
        with connect(destination, source="127.0.0.2") as wire:
            assert closed(wire)
        assert scp.refused == {("connection-refused", "network"): 1}
        assert serves(destination)


@pytest.mark.parametrize(
    ("settings", "request_", "reject", "reason"),
    [
        ({}, {"called": "WRONG"}, (1, 1, 7), "called-ae"),
        ({"calling_ae_titles": ["GOOD"]}, {}, (1, 1, 3), "calling-ae"),
        ({"calling_ae_networks": {"HOSTILE": ["127.0.0.1/32"]}}, {}, (1, 1, 3), "calling-ae-network"),
        ({"maximum_associations_per_s": 0.01}, {}, (2, 3, 1), "rate"),
        ({"maximum_associations_per_peer": 1}, {}, (2, 3, 2), "associations-per-address"),
        ({"maximum_associations": 1}, {}, (2, 3, 2), "associations"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rejection_says_why_to_the_peer_and_in_the_log(
    settings: dict[str, object],
    request_: dict[str, str],
    reject: tuple[int, int, int],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running_scp(MemoryInbox(), **settings) as (scp, destination), ExitStack() as stack:
        for _ in range(2):
            wire = stack.enter_context(connect(destination, source="127.0.0.2"))
            wire.sendall(associate_request(**request_))
            header = wire.recv(10, socket.MSG_WAITALL)
        assert (header[0], tuple(header[7:10])) == (REJECTED, reject)
        assert scp.refused[("association-rejected", reason)] in (1, 2)
    told = [record for record in caplog.records if record.message == "association-rejected"]
    assert {(record.reason, record.peer, record.calling_ae) for record in told} == {(reason, "127.0.0.2", "HOSTILE")}


def test_objects_beyond_the_rate_are_answered_later() -> None:
    inbox, sent = MemoryInbox(), outgoing(encode(build("cr", rows=64, columns=64)))
    with running_scp(inbox, maximum_objects_per_s=4) as (_, destination):
        began = time.monotonic()
        assert send(destination, [sent] * 8, calling_ae="GOOD", settings=QUICK) == [Accepted()] * 8
    assert time.monotonic() - began > 0.9


def test_a_node_that_stops_lets_nobody_wait_for_a_rate() -> None:
    inbox, sent = MemoryInbox(), outgoing(encode(build("cr", rows=64, columns=64)))
    patient = DeliverySettings(connect_timeout_s=5, response_timeout_s=30)
    outcomes: list[object] = []
    with running_scp(inbox, maximum_objects_per_s=1) as (scp, destination):
        sender = threading.Thread(
            target=lambda: outcomes.extend(send(destination, [sent] * 3, calling_ae="GOOD", settings=patient))
        )
        sender.start()
        wait_until(lambda: len(inbox.received) == 2, 10, "two objects")
        scp.stop(drain_s=5)
        sender.join()
    assert len(outcomes) == 3


@pytest.mark.parametrize("title", [b"A\nB", b"\xff\xfe", b"\x1b[2J", b" " * 16, b"A\\B"])
def test_impossible_ae_titles_do_no_harm(title: bytes) -> None:
    request = associate_request().replace(b"HOSTILE".ljust(16), title.ljust(16))
    with running_scp(MemoryInbox()) as (_, destination):
        with connect(destination) as wire:
            wire.sendall(request)
            answer(wire)
        assert serves(destination)
