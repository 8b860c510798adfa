"""A sender leaves a destination alone that does not answer, and finds out when it is back."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO
from typing import Any

import pytest
from pydicom import dcmread

from dicomnode.domain.delivery import DeliveryState, Destination, Refused
from dicomnode.net.scu.destinations import is_there
from dicomnode.net.scu.sender import Sender
from dicomnode.net.scu.storage import send
from dicomnode.settings.delivery import DeliverySettings, DimseDestination, RetrySettings
from tests.support.dimse import EXPLICIT, Peer
from tests.support.processes import free_port, wait_until
from tests.support.sending import CR, SETTINGS, MemoryOutbox, running

PATIENT = DeliverySettings(
    connect_timeout_s=5, response_timeout_s=5, batch=2, retry=RetrySettings(first_delay_s=3600, max_delay_s=3600)
)
WITHIN_S = 60.0


@contextmanager
def slamming_door() -> Iterator[tuple[Destination, list[int]]]:
    """Listen, and close every connection at once; the list grows by each."""
    knocks: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    wire, (_, port) = listener.accept()
                    knocks.append(port)
                    wire.close()

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        yield Destination(name="dead", ae_title="DEAD", host="127.0.0.1", port=listener.getsockname()[1]), knocks
        listener.shutdown(socket.SHUT_RDWR)
        serving.join(WITHIN_S)


def steps(sender: Sender, times: int) -> int:
    """Let a sender that does not run look for work again and again; return how many deliveries it tried."""
    return sum(sender.deliver_due() for _ in range(times))


def stopped(outbox: MemoryOutbox, destination: Destination, settings: DeliverySettings = PATIENT) -> Sender:
    return Sender(
        destination.name,
        partial(send, destination, calling_ae="CXRNODE", settings=settings),
        outbox,
        settings,
        clock=lambda: datetime.now(UTC),
        randomness=lambda: 0.5,
    )


def test_a_dead_destination_is_not_hammered_by_everything_that_waits_for_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outbox = MemoryOutbox(*["dead"] * 20)
    with slamming_door() as (dead, knocks):
        sender = stopped(outbox, dead)
        assert steps(sender, 20) == 4  # two batches
        assert len(knocks) == 2
    assert len(outbox.outcomes) == 4
    assert sender.breaker.state.is_open
    (told,) = [record for record in caplog.records if record.message == "destination-unavailable"]
    assert (told.levelname, told.destination, told.service, told.failures) == ("WARNING", "dead", "store", 2)
    assert "CANARY" not in str(told.__dict__)


def test_a_sender_whose_destination_is_left_alone_does_not_look_for_work_all_the_time() -> None:
    outbox = MemoryOutbox(*["dead"] * 20)
    looks: list[datetime] = []
    with slamming_door() as (dead, _), running(outbox, dead, PATIENT) as sender:
        wait_until(lambda: sender.breaker.state.is_open, WITHIN_S, "the opening")
        outbox.retry_requested = lambda destination, since: bool(looks.append(since))  # type: ignore[method-assign]
        time.sleep(2.5)  # what is to be shown is that little happens
    assert len(looks) <= 6


def test_others_are_delivered_to_while_one_is_left_alone() -> None:
    outbox = MemoryOutbox(*["dead", "peer"] * 8)
    with (
        slamming_door() as (dead, _),
        Peer({CR: [EXPLICIT]}) as peer,
        running(outbox, dead, PATIENT) as to_dead,
        running(outbox, peer.destination, PATIENT) as to_peer,
    ):
        wait_until(lambda: len(peer.stored) == 8, WITHIN_S, "the deliveries to the other")
        wait_until(lambda: to_dead.breaker.state.is_open, WITHIN_S, "the opening")
        assert not to_peer.breaker.state.is_open


def test_a_destination_without_resources_is_left_alone_too() -> None:
    outbox = MemoryOutbox(*["peer"] * 10)
    with Peer({CR: [EXPLICIT]}, on_store=lambda _: 0xA700) as peer:
        sender = stopped(outbox, peer.destination)
        assert steps(sender, 10) == 4
        assert peer.associations == 2
    assert all(isinstance(outcome, Refused) and not outcome.permanent for outcome in outbox.outcomes)


def test_a_destination_that_refuses_objects_for_good_is_there() -> None:
    outbox = MemoryOutbox(*["peer"] * 10)
    with Peer({CR: [EXPLICIT]}, on_store=lambda _: 0xC000) as peer:
        sender = stopped(outbox, peer.destination)
        assert steps(sender, 10) == 10
    assert outbox.all_are(DeliveryState.DEAD)


def test_a_destination_is_tried_with_one_delivery_and_gets_all_once_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    outbox = MemoryOutbox(*["peer"] * 7)
    port = free_port()
    absent = Destination(name="peer", ae_title="PEER", host="127.0.0.1", port=port)
    sizes: list[int] = []
    sender = stopped(outbox, absent, SETTINGS)
    transfer = sender._transfer
    sender._transfer = lambda items, *, report: (sizes.append(len(items)), transfer(items, report=report))
    sender.loop.start()
    try:
        wait_until(lambda: len(sizes) >= 4, WITHIN_S, "trials")
        with Peer({CR: [EXPLICIT]}, port=port) as peer:
            wait_until(lambda: outbox.all_are(DeliveryState.DELIVERED), WITHIN_S, "the delivery")
            wait_until(lambda: not sender.breaker.state.is_open, WITHIN_S, "the closing")
    finally:
        assert sender.loop.stop(WITHIN_S)
    assert sizes[:2] == [2, 2]
    trials = sizes[2 : sizes.index(2, 2)]
    assert set(trials) == {1}
    assert len(trials) >= 2
    assert len(peer.stored) == 7
    told = [record.message for record in caplog.records if record.name == "dicomnode.net.scu.circuit_breaker"]
    assert told == ["destination-unavailable", "destination-available"]


def test_an_object_that_makes_the_destination_abort_holds_up_no_other_for_ever() -> None:
    outbox = MemoryOutbox(*["peer"] * 9)

    def refuse_one(event: Any) -> int:
        if event.request.AffectedSOPInstanceUID == bad:
            event.assoc.abort()
        return 0x0000

    bad = str(dcmread(BytesIO(outbox._bytes[0])).SOPInstanceUID)
    with Peer({CR: [EXPLICIT]}, on_store=refuse_one) as peer, running(outbox, peer.destination):
        wait_until(
            lambda: [outbox.states[number] for number in range(1, 9)] == [DeliveryState.DELIVERED] * 8,
            WITHIN_S,
            "the delivery of the others",
        )
    assert outbox.states[0] is DeliveryState.WAITING


def test_an_operator_who_asks_for_another_try_gets_one_at_once() -> None:
    outbox = MemoryOutbox(*["dead"] * 10)
    with slamming_door() as (dead, knocks):
        sender = stopped(outbox, dead)
        steps(sender, 5)
        assert len(knocks) == 2
        outbox.request_retry(5)
        assert steps(sender, 5) == 1
        assert len(knocks) == 3


class Stepped:
    """A sender that does not run, with a clock of its own, and how often it has looked whether its peer is there."""

    def __init__(self, outbox: MemoryOutbox, destination: Destination, settings: DeliverySettings = PATIENT) -> None:
        self.now, self.looks = datetime.now(UTC), 0
        entry = DimseDestination(ae_title=destination.ae_title, host=destination.host, port=destination.port)

        def look() -> bool:
            self.looks += 1
            return is_there(entry, settings, "CXRNODE")

        self.sender = Sender(
            destination.name,
            partial(send, destination, calling_ae="CXRNODE", settings=settings),
            outbox,
            settings,
            clock=lambda: self.now,
            randomness=lambda: 0.5,
            is_there=look,
        )

    def after(self, seconds: float, times: int = 5) -> int:
        """Let time pass, and the sender look for work; return how many deliveries it tried."""
        self.now += timedelta(seconds=seconds)
        return steps(self.sender, times)


def test_a_destination_that_is_back_is_found_within_half_a_minute_and_gets_everything() -> None:
    outbox = MemoryOutbox(*["peer"] * 7)
    port = free_port()
    stepped = Stepped(outbox, Destination(name="peer", ae_title="PEER", host="127.0.0.1", port=port))
    assert stepped.after(0) == 4
    assert (stepped.after(29), stepped.looks) == (0, 0)
    assert (stepped.after(1), stepped.looks) == (0, 1)  # it is still away
    # Its deliveries would not be due for an hour.
    assert min(due for due in outbox._due.values() if due) > stepped.now + timedelta(minutes=50)
    with Peer({CR: [EXPLICIT]}, port=port) as peer:
        assert (stepped.after(29), stepped.looks) == (0, 1)
        stepped.after(1, times=6)
        assert stepped.looks == 2
        assert len(peer.stored) == 7
    assert outbox.all_are(DeliveryState.DELIVERED)
    assert not stepped.sender.breaker.state.is_open


def test_a_destination_that_is_there_and_refuses_is_not_asked_whether_it_is_there() -> None:
    outbox = MemoryOutbox(*["peer"] * 7)
    with Peer({CR: [EXPLICIT]}, on_store=lambda _: 0xA700) as peer:
        stepped = Stepped(outbox, peer.destination)
        assert stepped.after(0) == 4
        assert (stepped.after(600), stepped.looks) == (0, 0)


def test_nobody_asks_whether_a_destination_is_there_for_which_nothing_waits() -> None:
    outbox = MemoryOutbox(*["dead"] * 4)
    with slamming_door() as (dead, knocks):
        stepped = Stepped(outbox, dead)
        stepped.after(0)
        outbox.states = dict.fromkeys(outbox.states, DeliveryState.DROPPED)
        assert (stepped.after(60), stepped.looks, len(knocks)) == (0, 0, 2)


def test_while_a_destination_is_left_alone_no_delivery_is_due_before_it_is_tried() -> None:
    outbox = MemoryOutbox(*["dead"] * 20)
    with slamming_door() as (dead, _):
        stepped = Stepped(outbox, dead)
        stepped.after(0)
    retry_at = stepped.sender.breaker.state.retry_at
    assert retry_at is not None
    waiting = [outbox._due.get(number) for number in range(20)]
    assert all(due is not None and due >= retry_at for due in waiting)


def test_a_destination_that_takes_its_time_holds_up_no_other() -> None:
    outbox = MemoryOutbox(*["slow", "peer"] * 4)
    let_go = threading.Event()

    def take_time(_: Any) -> int:
        let_go.wait(WITHIN_S)
        return 0x0000

    settings = DeliverySettings(response_timeout_s=2 * WITHIN_S, batch=2)
    with Peer({CR: [EXPLICIT]}, on_store=take_time) as slow, Peer({CR: [EXPLICIT]}) as peer:
        to_slow = replace(slow.destination, name="slow")
        with running(outbox, to_slow, settings) as sender, running(outbox, peer.destination, settings):
            wait_until(lambda: len(peer.stored) == 4, WITHIN_S, "the deliveries to the other")
            assert slow.stored == []
            let_go.set()
            wait_until(lambda: outbox.all_are(DeliveryState.DELIVERED), WITHIN_S, "the deliveries to the slow one")
        assert not sender.breaker.state.is_open
