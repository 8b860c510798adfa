"""From a finished result to its destinations: attempts, patience, and dead letters."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.domain.delivery import Accepted, Delivery, DeliveryState, NoAnswer, Refused, RetryPolicy
from dicomnode.domain.errors import BlobDamaged
from dicomnode.domain.instance import InstanceRef
from dicomnode.store import Store
from dicomnode.store.events import EventKind
from dicomnode.store.ledger import Balance, DeliveryEntry, describe
from dicomnode.store.operator import OfStudy
from tests.support.stores import QUIET_S, accept, answer, at, claim, open_store, to

POLICY = RetryPolicy(first_delay_s=30, factor=2, max_delay_s=600, give_up_after_s=3600, jitter=0.1)
MIDDLE = 0.5
"""The randomness that leaves a delay as it is."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        accept(opened)
        job = claim(opened, QUIET_S)
        opened.inbox.finish(job, answer(job), to("PACS", "ARCHIVE"), at(3))
        yield opened


def take(store: Store, seconds: float, destination: str = "PACS") -> Delivery:
    """Claim the next delivery alone."""
    (delivery,) = store.outbox.claim(destination, 1, at(seconds))
    return delivery


def entry(store: Store, delivery: Delivery) -> DeliveryEntry:
    return next(e for e in store.ledger.deliveries_of("1.1") if e.delivery_id == delivery.delivery_id)


def test_a_claim_takes_what_is_due_at_one_destination_only(store: Store) -> None:
    taken = store.outbox.claim("PACS", 10, at(3))
    assert [delivery.kind.value for delivery in taken] == ["sr", "sc"]
    assert {delivery.destination for delivery in taken} == {"PACS"}
    assert store.outbox.claim("PACS", 10, at(3)) == (), "nothing is sent twice at once"
    assert len(store.outbox.claim("ARCHIVE", 10, at(3))) == 2


def test_a_claim_takes_no_more_than_it_is_asked_for(store: Store) -> None:
    assert len(store.outbox.claim("PACS", 1, at(3))) == 1
    assert len(store.outbox.claim("PACS", 1, at(3))) == 1
    assert store.outbox.claim("PACS", 1, at(3)) == ()


def test_a_delivery_carries_everything_that_sending_needs(store: Store) -> None:
    delivery = take(store, 3)
    assert delivery.ref.study == "1.1"
    assert store.outbox.read(delivery) == b"result " + delivery.ref.sop_instance.encode()
    assert (delivery.attempts, delivery.created_at) == (1, at(3))


def test_damaged_bytes_are_not_sent(store: Store, tmp_path: Path) -> None:
    delivery = take(store, 3)
    (tmp_path / "store" / "blobs" / delivery.blob[:2] / delivery.blob).write_bytes(b"rotten")
    with pytest.raises(BlobDamaged):
        store.outbox.read(delivery)


def test_an_accepted_delivery_is_delivered(store: Store) -> None:
    delivery = take(store, 3)
    store.outbox.record(delivery, Accepted(), at(4), POLICY, MIDDLE)
    told = entry(store, delivery)
    assert (told.state, told.last_status, told.last_error) == (DeliveryState.DELIVERED, None, None)
    assert store.ledger.explain("1.1")[-1].kind is EventKind.DELIVERED


def test_a_warning_counts_as_delivered_and_is_noted(store: Store) -> None:
    delivery = take(store, 3)
    store.outbox.record(delivery, Accepted(warning=0xB000), at(4), POLICY, MIDDLE)
    told = entry(store, delivery)
    assert (told.state, told.last_status) == (DeliveryState.DELIVERED, 0xB000)
    assert "warning B000H" in describe(store.ledger.explain("1.1")[-1])


def test_a_study_is_answered_once_everything_is_delivered(store: Store) -> None:
    for destination in ("PACS", "ARCHIVE"):
        for delivery in store.outbox.claim(destination, 10, at(3)):
            assert store.ledger.balance() == Balance(pending=1)
            store.outbox.record(delivery, Accepted(), at(4), POLICY, MIDDLE)
    assert store.ledger.balance() == Balance(answered=1)


def test_what_was_really_sent_is_kept(store: Store) -> None:
    delivery = take(store, 3)
    comprehensive_sr = "1.2.840.10008.5.1.4.1.1.88.33"
    sent = InstanceRef(study="1.1", series="1.1.5", sop_class=comprehensive_sr, sop_instance="1.1.5.1")
    store.outbox.record(delivery, Accepted(), at(4), POLICY, MIDDLE, sent_as=sent)
    told = entry(store, delivery)
    assert (told.sent_sop_class, told.sent_sop_instance) == (comprehensive_sr, "1.1.5.1")
    assert "1.1.5.1" in describe(store.ledger.explain("1.1")[-1])


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Refused(status=0xA900, cause="refused: A900H", permanent=True), 0xA900),
        (NoAnswer(cause="association rejected for good", permanent=True), None),
    ],
)
def test_a_permanent_refusal_is_a_dead_letter_at_once(
    store: Store, outcome: Refused | NoAnswer, status: int | None
) -> None:
    delivery = take(store, 3)
    store.outbox.record(delivery, outcome, at(4), POLICY, MIDDLE)
    told = entry(store, delivery)
    assert (told.state, told.last_error, told.last_status) == (DeliveryState.DEAD, outcome.cause, status)
    assert store.ledger.balance() == Balance(pending=1), "its siblings are still on their way"


@pytest.mark.parametrize(
    "outcome",
    [Refused(status=0xA700, cause="out of resources", permanent=False), NoAnswer(cause="connection refused")],
)
def test_a_passing_failure_waits_longer_every_time(store: Store, outcome: Refused | NoAnswer) -> None:
    now, waits = 3.0, []
    for attempt in range(1, 8):
        taken = store.outbox.claim("PACS", 10, at(now))
        assert [delivery.attempts for delivery in taken] == [attempt, attempt]
        for delivery in taken:
            store.outbox.record(delivery, outcome, at(now), POLICY, MIDDLE)
        due = store.outbox.next_due("PACS")
        assert due is not None
        waits.append((due - at(now)).total_seconds())
        assert store.outbox.claim("PACS", 10, at(now + waits[-1] - 0.001)) == ()
        now += waits[-1]
    assert waits == [30, 60, 120, 240, 480, 600, 600]


@pytest.mark.parametrize(("asked_s", "waits_s"), [(None, 30.0), (5.0, 30.0), (120.0, 120.0), (999_999.0, 3600.0)])
def test_a_peers_wish_to_be_left_alone_is_heeded_within_reason(
    store: Store, asked_s: float | None, waits_s: float
) -> None:
    delivery = take(store, 3)
    busy = Refused(status=None, cause="HTTP 503: busy", permanent=False, retry_after_s=asked_s)
    store.outbox.record(delivery, busy, at(3), POLICY, MIDDLE)
    assert entry(store, delivery).next_attempt_at == at(3 + waits_s)


def test_peers_that_failed_together_do_not_come_back_together(store: Store) -> None:
    first, second = store.outbox.claim("PACS", 2, at(3))
    store.outbox.record(first, NoAnswer(cause="down"), at(3), POLICY, 0.0)
    store.outbox.record(second, NoAnswer(cause="down"), at(3), POLICY, 0.999)
    assert store.outbox.next_due("PACS") == at(3 + 27)
    assert entry(store, second).next_attempt_at > at(3 + 32.9)  # type: ignore[operator]


def test_a_delivery_that_is_too_old_is_given_up(store: Store) -> None:
    delivery = take(store, 3)
    store.outbox.record(delivery, NoAnswer(cause="connection refused"), at(3 + 3599), POLICY, MIDDLE)
    assert entry(store, delivery).state is DeliveryState.WAITING
    (again,) = (d for d in store.outbox.claim("PACS", 5, at(9000)) if d.delivery_id == delivery.delivery_id)
    store.outbox.record(again, NoAnswer(cause="connection refused"), at(9000), POLICY, MIDDLE)
    told = entry(store, delivery)
    assert (told.state, told.last_error) == (
        DeliveryState.DEAD,
        "connection refused; given up after 2 attempt(s)",
    )


def test_a_dead_destination_holds_up_no_other(store: Store) -> None:
    for delivery in store.outbox.claim("PACS", 10, at(3)):
        store.outbox.record(delivery, NoAnswer(cause="down"), at(3), POLICY, MIDDLE)
    assert store.outbox.next_due("PACS") == at(33)
    assert store.outbox.next_due("ARCHIVE") == at(3)


def test_an_outcome_that_comes_twice_counts_once(store: Store) -> None:
    delivery = take(store, 3)
    store.outbox.record(delivery, Accepted(), at(4), POLICY, MIDDLE)
    store.outbox.record(delivery, NoAnswer(cause="late"), at(5), POLICY, MIDDLE)
    assert entry(store, delivery).state is DeliveryState.DELIVERED


def test_nothing_is_due_at_a_destination_that_has_everything(store: Store) -> None:
    for delivery in store.outbox.claim("PACS", 10, at(3)):
        store.outbox.record(delivery, Accepted(), at(4), POLICY, MIDDLE)
    assert store.outbox.next_due("PACS") is None
    assert store.outbox.next_due("never configured") is None


def test_an_operator_who_asks_for_another_try_is_heard_until_it_is_made(store: Store) -> None:
    assert not store.outbox.retry_requested("PACS", at(0))
    for delivery in store.outbox.claim("PACS", 1, at(5)):
        store.outbox.record(delivery, NoAnswer(cause="refused"), at(5), POLICY, 0.5)
    assert not store.outbox.retry_requested("PACS", at(0))
    store.ledger.retry(OfStudy(study="1.1"), at(8))
    assert store.outbox.retry_requested("PACS", at(7))
    assert not store.outbox.retry_requested("PACS", at(9))
    assert not store.outbox.retry_requested("OTHER", at(7))
    for delivery in store.outbox.claim("PACS", 10, at(10)):
        store.outbox.record(delivery, NoAnswer(cause="refused"), at(10), POLICY, 0.5)
    assert not store.outbox.retry_requested("PACS", at(7))


def test_what_waits_is_due_when_its_destination_is_tried_and_at_once_when_that_is_back(store: Store) -> None:
    first = take(store, 3)
    store.outbox.record(first, NoAnswer(cause="nobody there"), at(4), POLICY, MIDDLE)
    store.outbox.postpone("PACS", at(100))
    assert store.outbox.next_due("PACS") == at(100)
    assert store.outbox.next_due("ARCHIVE") == at(3)
    store.outbox.postpone("PACS", at(50))
    assert store.outbox.next_due("PACS") == at(100)
    store.outbox.bring_forward("PACS", at(60))
    assert len(store.outbox.claim("PACS", 10, at(60))) == 2


def test_what_was_refused_keeps_its_delay_when_the_destination_is_back(store: Store) -> None:
    refused = take(store, 3)
    store.outbox.record(refused, Refused(status=0xA700, cause="A700", permanent=False), at(4), POLICY, MIDDLE)
    store.outbox.bring_forward("PACS", at(5))
    assert entry(store, refused).next_attempt_at == at(34)


def test_a_retry_that_was_asked_for_is_not_put_off(store: Store) -> None:
    dead = take(store, 3)
    store.outbox.record(dead, Refused(status=0xC000, cause="C000", permanent=True), at(4), POLICY, MIDDLE)
    store.ledger.retry(OfStudy(study="1.1"), at(5))
    store.outbox.postpone("PACS", at(100))
    assert entry(store, dead).next_attempt_at == at(5)
