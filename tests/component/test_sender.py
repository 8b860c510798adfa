"""The delivery loop on real sockets, with an outbox in memory that keeps the rules of the store."""

import logging
import threading
import time
from typing import Any

import pytest

from dicomnode.domain.delivery import Accepted, Delivery, DeliveryState, Destination, NoAnswer
from tests.support.dimse import EXPLICIT, Peer
from tests.support.processes import free_port, wait_until
from tests.support.sending import CR, MemoryOutbox, running


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
    events = [record.message for record in caplog.records if record.name == "dicomnode.net.scu.sender"]
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
    monkeypatch.setattr("dicomnode.loop.POLL_S", 3600)
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
