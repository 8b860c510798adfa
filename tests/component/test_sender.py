"""The delivery loop on real sockets, with an outbox in memory that keeps the rules of the store."""

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
from pydicom import uid as uids

from dicomnode.delivery_settings import DeliverySettings, RetrySettings
from dicomnode.domain.errors import StoreUnavailable
from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.job import (
    Accepted,
    Delivery,
    DeliveryState,
    Destination,
    NoAnswer,
    Refused,
    ResultKind,
    RetryPolicy,
    StoreOutcome,
)
from dicomnode.net.scu import send
from dicomnode.net.sender import Sender
from tests.component.dimse import EXPLICIT, Peer, renamed
from tests.make import build, encode
from tests.processes import free_port, wait_until

CR = str(uids.ComputedRadiographyImageStorage)
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SETTINGS = DeliverySettings(
    connect_timeout_s=1, response_timeout_s=2, batch=2, retry=RetrySettings(first_delay_s=0.2, max_delay_s=0.2)
)


class MemoryOutbox:
    """Deliveries in memory, by the rules of the store's outbox."""

    def __init__(self, *names: str, refuse_record: int = 0) -> None:
        part10 = encode(build("cr", rows=64, columns=64))
        self._lock = threading.Lock()
        self._bytes = {number: renamed(part10, str(number)) for number in range(len(names))}
        self._due: dict[int, datetime | None] = {}
        self._attempts = dict.fromkeys(range(len(names)), 0)
        self._names = names
        self._refuse_record = refuse_record
        self.states: dict[int, DeliveryState] = dict.fromkeys(range(len(names)), DeliveryState.WAITING)
        self.outcomes: list[StoreOutcome] = []
        self.urged_at: datetime | None = None

    def claim(self, destination: str, limit: int, now: datetime) -> tuple[Delivery, ...]:
        with self._lock:
            waiting = [
                number
                for number, state in self.states.items()
                if state is DeliveryState.WAITING
                and self._names[number] == destination
                and (self._due.get(number) or START) <= now
            ]
            due = sorted(waiting, key=lambda number: (self._due.get(number) or START, number))[:limit]
            for number in due:
                self.states[number] = DeliveryState.SENDING
                self._attempts[number] += 1
            return tuple(self._delivery(number) for number in due)

    def next_due(self, destination: str) -> datetime | None:
        waiting = [due for number, due in self._due.items() if due and self.states[number] is DeliveryState.WAITING]
        return min(waiting, default=None)

    def urged(self, destination: str, since: datetime) -> bool:
        return self.urged_at is not None and self.urged_at > since

    def read(self, delivery: Delivery) -> bytes:
        return self._bytes[delivery.delivery_id]

    def record(
        self,
        delivery: Delivery,
        outcome: StoreOutcome,
        now: datetime,
        policy: RetryPolicy,
        randomness: float,
        sent_as: InstanceRef | None = None,
        commit_within_s: float | None = None,
    ) -> DeliveryState:
        with self._lock:
            if self._refuse_record:
                self._refuse_record -= 1
                raise StoreUnavailable("the database is locked")
            self.outcomes.append(outcome)
            state = DeliveryState.DELIVERED
            if isinstance(outcome, Refused | NoAnswer):
                state = DeliveryState.DEAD if outcome.permanent else DeliveryState.WAITING
                self._due[delivery.delivery_id] = now + timedelta(seconds=policy.delay_s(delivery.attempts, randomness))
            self.states[delivery.delivery_id] = state
            return state

    def all_are(self, state: DeliveryState) -> bool:
        return set(self.states.values()) == {state}

    def _delivery(self, number: int) -> Delivery:
        return Delivery(
            delivery_id=number,
            destination=self._names[number],
            ref=InstanceRef(study="1.2", series="1.2.3", sop_class=CR, sop_instance=f"1.2.3.{number}"),
            kind=ResultKind.SECONDARY_CAPTURE,
            transfer_syntax=EXPLICIT,
            blob=str(number),
            attempts=self._attempts[number],
            created_at=START,
        )


@contextmanager
def running(
    outbox: MemoryOutbox, destination: Destination, settings: DeliverySettings = SETTINGS, **options: Any
) -> Iterator[Sender]:
    sender = Sender(
        destination.name,
        partial(send, destination, calling_ae="CXRNODE", settings=settings),
        outbox,
        settings,
        clock=lambda: datetime.now(UTC),
        randomness=lambda: 0.5,
        **options,
    )
    sender.loop.start()
    try:
        yield sender
    finally:
        assert sender.loop.stop(10)


def test_everything_due_is_delivered_in_batches_of_one_association_each() -> None:
    outbox = MemoryOutbox(*["peer"] * 5)
    with Peer({CR: [EXPLICIT]}) as peer, running(outbox, peer.destination):
        wait_until(lambda: outbox.all_are(DeliveryState.DELIVERED), 10, "the delivery")
    assert len(peer.stored) == 5
    assert peer.associations == 3


def test_a_destination_that_comes_back_gets_what_waited(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outbox = MemoryOutbox("peer")
    port = free_port()
    absent = Destination(name="peer", ae_title="PEER", host="127.0.0.1", port=port)
    with running(outbox, absent):
        wait_until(lambda: len(outbox.outcomes) >= 2, 10, "the second attempt")
        with Peer({CR: [EXPLICIT]}, port=port) as peer:
            wait_until(lambda: outbox.all_are(DeliveryState.DELIVERED), 10, "the delivery")
    assert len(peer.stored) == 1
    events = [record.message for record in caplog.records if record.name == "dicomnode.net.sender"]
    assert events[0] == "delivery-deferred"
    assert events[-1] == "instance-delivered"


def test_a_refusal_for_good_is_a_dead_letter(caplog: pytest.LogCaptureFixture) -> None:
    outbox = MemoryOutbox("peer")
    with Peer({CR: [EXPLICIT]}, on_store=lambda _: 0xC000) as peer, running(outbox, peer.destination):
        wait_until(lambda: outbox.all_are(DeliveryState.DEAD), 10, "the dead letter")
    (record,) = [record for record in caplog.records if record.message == "delivery-dead"]
    assert record.cause == "C000: cannot understand"


def test_a_dead_destination_holds_up_no_other() -> None:
    outbox = MemoryOutbox("dead", "peer", "dead", "peer")
    dead = Destination(name="dead", ae_title="DEAD", host="127.0.0.1", port=free_port())
    with Peer({CR: [EXPLICIT]}) as peer, running(outbox, dead), running(outbox, peer.destination):
        wait_until(lambda: len(peer.stored) == 2, 60, "the delivery to the other")


def test_a_wake_up_is_heard_before_the_next_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomnode.net.loop.POLL_S", 3600)
    outbox = MemoryOutbox("peer")
    outbox.states[0] = DeliveryState.DROPPED
    with Peer({CR: [EXPLICIT]}) as peer, running(outbox, peer.destination) as sender:
        time.sleep(0.3)
        outbox.states[0] = DeliveryState.WAITING
        sender.loop.wake()
        wait_until(lambda: peer.stored, 60, "the delivery")


def test_stopping_finishes_the_batch_at_hand() -> None:
    outbox = MemoryOutbox("peer", "peer", "peer")
    started = threading.Event()

    def slowly(event: Any) -> int:
        started.set()
        time.sleep(0.3)
        return 0x0000

    with Peer({CR: [EXPLICIT]}, on_store=slowly) as peer:
        with running(outbox, peer.destination) as sender:
            started.wait(5)
            assert sender.loop.stop(10)
        assert not sender.loop.running
    states = [outbox.states[number] for number in range(3)]
    assert states == [DeliveryState.DELIVERED, DeliveryState.DELIVERED, DeliveryState.WAITING]


def test_an_outcome_that_cannot_be_recorded_is_recorded_later_and_the_object_not_sent_again() -> None:
    outbox = MemoryOutbox("peer", refuse_record=3)
    with Peer({CR: [EXPLICIT]}) as peer, running(outbox, peer.destination):
        wait_until(lambda: outbox.all_are(DeliveryState.DELIVERED), 10, "the record")
    assert len(peer.stored) == 1
    assert outbox.outcomes == [Accepted()]


def test_an_unknown_failure_neither_ends_the_loop_nor_keeps_a_claim(caplog: pytest.LogCaptureFixture) -> None:
    class Defective(MemoryOutbox):
        defects = 1

        def read(self, delivery: Delivery) -> bytes:
            if self.defects:
                self.defects -= 1
                raise RuntimeError("about CANARY^NAMEZQX")
            return super().read(delivery)

    outbox = Defective("peer", "peer")
    with Peer({CR: [EXPLICIT]}) as peer, running(outbox, peer.destination):
        wait_until(lambda: outbox.all_are(DeliveryState.DELIVERED), 10, "the delivery")
    assert outbox.outcomes[:2] == [NoAnswer(cause="internal error while sending")] * 2
    (record,) = [record for record in caplog.records if record.message == "loop-failed"]
    assert record.raised.startswith("RuntimeError in read ")
    assert "CANARY" not in str(record.__dict__)


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
    assert sender.breaker.circuit.is_open
    (told,) = [record for record in caplog.records if record.message == "destination-unavailable"]
    assert (told.levelname, told.destination, told.service, told.failures) == ("WARNING", "dead", "store", 2)
    assert "CANARY" not in str(told.__dict__)


def test_a_sender_whose_destination_is_left_alone_does_not_look_for_work_all_the_time() -> None:
    outbox = MemoryOutbox(*["dead"] * 20)
    looks: list[datetime] = []
    with slamming_door() as (dead, _), running(outbox, dead, PATIENT) as sender:
        wait_until(lambda: sender.breaker.circuit.is_open, WITHIN_S, "the opening")
        outbox.urged = lambda destination, since: bool(looks.append(since))  # type: ignore[method-assign]
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
        wait_until(lambda: to_dead.breaker.circuit.is_open, WITHIN_S, "the opening")
        assert not to_peer.breaker.circuit.is_open


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
            wait_until(lambda: not sender.breaker.circuit.is_open, WITHIN_S, "the closing")
    finally:
        assert sender.loop.stop(WITHIN_S)
    assert sizes[:2] == [2, 2]
    trials = sizes[2 : sizes.index(2, 2)]
    assert set(trials) == {1}
    assert len(trials) >= 2
    assert len(peer.stored) == 7
    told = [record.message for record in caplog.records if record.name == "dicomnode.net.circuit"]
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
        outbox.urged_at = datetime.now(UTC)
        assert steps(sender, 5) == 1
        assert len(knocks) == 3


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
        assert not sender.breaker.circuit.is_open
