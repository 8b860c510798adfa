"""Who may connect and associate, how much is held for whom, and what is said of those who may not."""

import logging
import socket
from collections.abc import Iterator

import pytest

from dicomnode.net.dimse.memory_budget import MemoryBudget
from dicomnode.net.dimse.refusals import Refusals
from dicomnode.net.scp.admission import Admission, AssociateRejection, PeerConnection
from dicomnode.net.scp.rate_limit import RateLimit
from dicomnode.settings.node import ScpSettings


@pytest.fixture
def wire() -> Iterator[socket.socket]:
    with socket.socket() as unused:
        yield unused


def admission(**settings: object) -> Admission:
    return Admission(ScpSettings.model_validate(settings))


def come_in(door: Admission, wire: socket.socket, address: str, calling: str) -> str | None:
    connection, _ = door.connect(address, wire)
    refusal = door.associate(connection, calling_ae=calling, called_ae="CXRNODE")
    return refusal.reason if refusal else None


def test_the_oldest_of_the_address_with_the_most_makes_room(wire: socket.socket) -> None:
    door = admission(maximum_associations=2)
    connections = [door.connect(address, wire)[0] for address in ("a", "a", "b", "b", "c", "c", "d", "e")]
    connection, eviction = door.connect("f", wire)
    assert eviction is not None
    assert (eviction.connection, eviction.reason) == (connections[0], "connections")
    assert door.waiting() == [*connections[1:], connection]


def test_an_address_with_too_many_loses_its_own_oldest(wire: socket.socket) -> None:
    door = admission(maximum_associations=2)
    other, first = door.connect("b", wire)[0], door.connect("a", wire)[0]
    door.connect("a", wire)
    _, eviction = door.connect("a", wire)
    assert eviction is not None
    assert (eviction.connection, eviction.reason) == (first, "connections-per-address")
    assert other in door.waiting()


def test_an_association_never_makes_room(wire: socket.socket) -> None:
    door = admission(maximum_associations=1)
    assert come_in(door, wire, "a", "ONE") is None
    evicted = [door.connect(address, wire)[1] for address in ("b", "c", "d", "e", "f")]
    assert [entry.connection.address for entry in evicted if entry] == ["b"]


@pytest.mark.parametrize(
    ("settings", "titles", "rejection"),
    [
        ({}, ("ANY", "OTHER"), AssociateRejection.CALLED_AE),
        ({"calling_ae_titles": ["FRIEND"]}, ("STRANGER", "CXRNODE"), AssociateRejection.CALLING_AE),
        ({"require_called_ae": False}, ("ANY", "OTHER"), None),
        ({"calling_ae_titles": ["FRIEND"]}, ("FRIEND", "CXRNODE"), None),
    ],
)
def test_ae_titles_decide(
    wire: socket.socket, settings: dict[str, object], titles: tuple[str, str], rejection: AssociateRejection | None
) -> None:
    door = admission(**settings)
    connection, _ = door.connect("a", wire)
    refusal = door.associate(connection, calling_ae=titles[0], called_ae=titles[1])
    assert (refusal.rejection if refusal else None) is rejection
    assert (connection in door.waiting()) is (rejection is not None)


def test_limits_count_addresses_and_ae_titles_apart(wire: socket.socket) -> None:
    door = admission(maximum_associations=4, maximum_associations_per_peer=2)
    came = [come_in(door, wire, *peer) for peer in (("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("c", "1"))]
    assert came == [None, None, "associations-per-address", None, "associations-per-ae"]
    assert [come_in(door, wire, *peer) for peer in (("d", "4"), ("e", "5"))] == [None, "associations"]


def test_whoever_leaves_makes_room(wire: socket.socket) -> None:
    door = admission(maximum_associations=1)
    connection, _ = door.connect("a", wire)
    assert door.associate(connection, calling_ae="ONE", called_ae="CXRNODE") is None
    assert come_in(door, wire, "b", "TWO") == "associations"
    door.leave(connection)
    door.leave(connection)
    assert come_in(door, wire, "b", "TWO") is None


def test_a_closed_wire_can_be_cut(wire: socket.socket) -> None:
    connection = PeerConnection("a", wire)
    wire.close()
    connection.cut()


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("10.1.2.3", True),
        ("10.2.0.1", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:10.2.0.1", False),
        ("fd00::1", True),
        ("fe80::1%eth0", False),
    ],
)
def test_only_addresses_of_the_networks_may_connect(address: str, may: bool) -> None:
    assert admission(networks=["10.1.0.0/16", "fd00::/8"]).may_connect(address) is may
    assert admission().may_connect(address)


def test_an_ae_title_may_be_bound_to_networks(wire: socket.socket) -> None:
    door = admission(calling_ae_networks={"PACS": ["10.0.0.1/32"]})
    peers = [("10.0.0.1", "PACS"), ("10.0.0.2", "PACS"), ("10.0.0.2", "OTHER"), ("::ffff:10.0.0.1", "PACS")]
    assert [come_in(door, wire, *peer) for peer in peers] == [None, "calling-ae-network", None, None]


def test_one_address_can_ask_only_so_often_whatever_it_calls_itself(wire: socket.socket) -> None:
    door = admission(maximum_associations_per_s=0.4, maximum_associations=100)
    # A burst is of five seconds' worth, and a wrong title counts, too.
    assert [come_in(door, wire, "a", title) for title in ("1", "2", "3")] == [None, None, "rate"]
    assert come_in(door, wire, "b", "4") is None


def test_a_bucket_refills_as_time_passes() -> None:
    now = [0.0]
    rates = RateLimit(2.0, 4.0, clock=lambda: now[0])
    assert [rates.take("a") for _ in range(6)] == [True] * 4 + [False] * 2
    now[0] = 1.0
    assert [rates.take("a") for _ in range(3)] == [True, True, False]
    now[0] = 1000.0
    assert [rates.take("a") for _ in range(5)] == [True] * 4 + [False]


def test_whoever_waits_waits_longer_each_time() -> None:
    rates = RateLimit(2.0, 2.0, clock=lambda: 0.0)
    assert [rates.wait_s("a") for _ in range(5)] == [0.0, 0.0, 0.5, 1.0, 1.5]
    assert rates.wait_s("b") == 0.0


def test_rates_of_many_peers_are_remembered_in_bounds() -> None:
    rates = RateLimit(1.0, 1.0, clock=lambda: 0.0)
    for number in range(9000):
        rates.take(str(number))
    assert len(rates._buckets) <= 4096
    assert not rates.take("8999")


def test_everybody_has_a_share_whatever_others_hold() -> None:
    held = MemoryBudget(800, connections=4)
    assert held.hold("greedy", 500)
    assert not held.hold("greedy", 501)
    assert all(held.hold(name, 100) for name in ("a", "b", "c"))
    assert not held.hold("a", 101)
    held.release("greedy")
    assert held.hold("a", 500)


def test_what_is_refused_changes_nothing_and_less_is_always_allowed() -> None:
    held = MemoryBudget(800, connections=4)
    assert held.hold("a", 300)
    assert held.hold("b", 300)
    assert not held.hold("a", 400)
    assert held.hold("a", 300)
    assert held.hold("b", 150)
    assert held.hold("a", 450)


def test_refusals_are_counted_and_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    refusals = Refusals(clock=lambda: now[0])
    for at in (0.0, 1.0, 9.0, 10.5):
        now[0] = at
        refusals.note("connection-refused", "tls", "10.0.0.1", port=1)
    refusals.note("connection-refused", "tls", "10.0.0.2")
    assert refusals.counts == {("connection-refused", "tls"): 5}
    told = [(record.message, record.peer, record.times) for record in caplog.records]
    assert told == [
        ("connection-refused", "10.0.0.1", 1),
        ("connection-refused", "10.0.0.1", 3),
        ("connection-refused", "10.0.0.2", 1),
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_a_flood_from_many_addresses_is_forgotten_in_bounds() -> None:
    refusals = Refusals(clock=lambda: 0.0)
    for number in range(3000):
        refusals.note("connection-refused", "tls", str(number))
    assert len(refusals._told) <= 1024
