"""Peers that want too much of the node together: connections, associations, memory, objects a second."""

import socket
import threading
import time
from contextlib import ExitStack

import pytest
from pydicom.uid import ComputedRadiographyImageStorage
from pynetdicom.presentation import build_context

from dicomnode.domain.delivery import Accepted
from dicomnode.net.scu.storage import echo, send
from dicomnode.settings.node import DeliverySettings
from tests.support.dimse import EXPLICIT, QUICK, MemoryInbox, outgoing, requested, running_scp, store_request
from tests.support.hostile import association, closed, connect, serves
from tests.support.make import build, encode
from tests.support.processes import wait_until
from tests.support.wire import (
    COMMITMENT,
    P_DATA,
    REJECTED,
    REPORT,
    STORE,
    answer,
    associate_request,
    associated,
    fragment,
    p_data,
    push,
)


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
