"""From a delivered result to the destination's word that it keeps it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.domain.commitment import CommitmentFailure, CommitmentItem, CommitmentReport, CommitmentState, Remedy
from dicomnode.domain.delivery import Accepted, DeliveryState, RetryPolicy
from dicomnode.domain.instance import InstanceRef
from dicomnode.store import Store
from dicomnode.store.events import EventKind
from dicomnode.store.ledger import Balance, DeliveryEntry
from dicomnode.store.operator import OneDelivery
from tests.support.stores import QUIET_S, accept, answer, at, claim, open_store, to

POLICY = RetryPolicy(first_delay_s=30, factor=2, max_delay_s=600, give_up_after_s=3600, jitter=0.1)
MIDDLE = 0.5
WITHIN_S = 100.0
ABSENT = CommitmentFailure(reason=0x0112, cause="0112: no such object instance", remedy=Remedy.SEND_AGAIN)
CONFLICT = CommitmentFailure(reason=0x0119, cause="0119: class-instance conflict", remedy=Remedy.GIVE_UP)
USED = CommitmentFailure(reason=0x0131, cause="0131: duplicate transaction UID", remedy=Remedy.ASK_AGAIN)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        accept(opened)
        job = claim(opened, QUIET_S)
        opened.inbox.finish(job, answer(job), to("PACS"), at(3))
        yield opened


def deliver(store: Store, seconds: float, sent_as: InstanceRef | None = None) -> list[str]:
    """Deliver whatever is due and return the SOP Instance UIDs."""
    deliveries = store.outbox.claim("PACS", 10, at(seconds))
    for delivery in deliveries:
        store.outbox.record(
            delivery, Accepted(), at(seconds), POLICY, MIDDLE, sent_as=sent_as, commit_within_s=WITHIN_S
        )
    return [delivery.ref.sop_instance for delivery in deliveries]


def ask(store: Store, seconds: float, transaction: str = "1.9.1") -> tuple[CommitmentItem, ...]:
    return store.commitments.claim("PACS", 10, transaction, WITHIN_S, at(seconds), POLICY)


def report(
    store: Store, seconds: float, *committed: str, transaction: str = "1.9.1", **failed: CommitmentFailure
) -> tuple[tuple[str, ...], ...]:
    """Report what is committed; `failed` names SOP Instance UIDs with underscores for dots."""
    failures = {uid[1:].replace("_", "."): failure for uid, failure in failed.items()}
    told = CommitmentReport(transaction_uid=transaction, committed=frozenset(committed), failed=failures)
    changes = store.commitments.report(told, at(seconds), POLICY, MIDDLE)
    return changes.committed, changes.failed, changes.dead


def failing(uid: str, failure: CommitmentFailure) -> dict[str, CommitmentFailure]:
    return {"u" + uid.replace(".", "_"): failure}


def entries(store: Store) -> list[DeliveryEntry]:
    return list(store.ledger.deliveries_of("1.1"))


def states(store: Store) -> set[CommitmentState | None]:
    return {entry.commitment for entry in entries(store)}


def kinds(store: Store) -> list[EventKind]:
    return [event.kind for event in store.ledger.explain("1.1")]


def test_what_is_delivered_to_a_destination_that_is_not_asked_has_no_commitment(store: Store) -> None:
    (delivery, *_) = store.outbox.claim("PACS", 10, at(3))
    store.outbox.record(delivery, Accepted(), at(4), POLICY, MIDDLE)
    assert states(store) == {None}
    assert ask(store, 5) == ()


def test_one_request_asks_about_everything_that_was_delivered(store: Store) -> None:
    uids = deliver(store, 4)
    assert store.commitments.next_due("PACS") == at(4)
    assert sorted(item.sop_instance for item in ask(store, 5)) == sorted(uids)
    assert states(store) == {CommitmentState.REQUESTED}
    assert ask(store, 5, "1.9.2") == (), "nothing is asked twice at once"
    assert store.commitments.claim("OTHER", 10, "1.9.3", WITHIN_S, at(5), POLICY) == ()


def test_a_destination_is_asked_about_what_it_really_got(store: Store) -> None:
    sent = InstanceRef(study="1.1", series="1.1.5", sop_class="1.2.840.10008.5.1.4.1.1.88.33", sop_instance="1.1.5.1")
    deliver(store, 4, sent_as=sent)
    assert {(item.sop_class, item.sop_instance) for item in ask(store, 5)} == {(sent.sop_class, sent.sop_instance)}


def test_committed_is_the_end_and_a_repeat_changes_nothing(store: Store) -> None:
    uids = deliver(store, 4)
    ask(store, 5)
    assert report(store, 6, *uids) == (tuple(uids), (), ())
    assert states(store) == {CommitmentState.COMMITTED}
    assert store.commitments.next_due("PACS") is None
    assert report(store, 7, *uids) == ((), (), ())
    assert report(store, 8, **failing(uids[0], ABSENT)) == ((), (), ())
    assert {entry.state for entry in entries(store)} == {DeliveryState.DELIVERED}
    assert kinds(store).count(EventKind.COMMITTED) == 2
    assert store.ledger.balance() == Balance(answered=1)


def test_a_report_of_an_unknown_transaction_is_said_to_be_one(store: Store) -> None:
    uids = deliver(store, 4)
    told = CommitmentReport(transaction_uid="1.666", committed=frozenset(uids), failed={})
    assert store.commitments.report(told, at(5), POLICY, MIDDLE).unknown
    assert states(store) == {CommitmentState.DUE}


def test_a_report_says_nothing_of_what_was_not_asked_in_its_transaction(store: Store) -> None:
    uids = deliver(store, 4)
    (first,) = store.commitments.claim("PACS", 1, "1.9.1", WITHIN_S, at(5), POLICY)
    assert report(store, 6, *uids) == ((first.sop_instance,), (), ())
    assert states(store) == {CommitmentState.DUE, CommitmentState.COMMITTED}


def test_what_is_not_kept_is_delivered_again_as_the_same_instance_and_asked_about_again(store: Store) -> None:
    kept, lost = deliver(store, 4)
    ask(store, 5)
    assert report(store, 6, kept, **failing(lost, ABSENT)) == ((kept,), (lost,), ())
    assert states(store) == {CommitmentState.COMMITTED, CommitmentState.FAILED}
    assert store.ledger.balance() == Balance(pending=1)
    assert deliver(store, 35.9) == []
    assert deliver(store, 36) == [lost]
    assert [item.sop_instance for item in ask(store, 37, "1.9.2")] == [lost]
    report(store, 38, lost, transaction="1.9.2")
    assert states(store) == {CommitmentState.COMMITTED}


def test_a_result_that_is_never_kept_is_sent_at_growing_intervals_until_it_is_given_up(store: Store) -> None:
    now, waits = 4.0, []
    while deliver(store, now):
        (item, *_) = ask(store, now, f"1.9.{len(waits)}")
        report(store, now, transaction=f"1.9.{len(waits)}", **failing(item.sop_instance, ABSENT))
        due = store.outbox.next_due("PACS")
        if due is None:
            break
        waits.append((due - at(now)).total_seconds())
        now += waits[-1]
    assert waits == [30, 60, 120, 240, 480, 600, 600, 600, 600, 600]
    assert DeliveryState.DEAD in {entry.state for entry in entries(store)}
    assert kinds(store)[-1] is EventKind.COMMITMENT_FAILED


def test_what_was_committed_meanwhile_is_not_asked_about_again(store: Store) -> None:
    kept, late = deliver(store, 4)
    ask(store, 5)
    store.commitments.expire("PACS", at(104))
    ask(store, 104, "1.9.2")
    report(store, 105, kept, **failing(late, ABSENT))
    report(store, 106, kept, late, transaction="1.9.2")
    assert states(store) == {CommitmentState.COMMITTED}
    assert deliver(store, 200) == [late]
    assert ask(store, 201, "1.9.3") == ()
    assert states(store) == {CommitmentState.COMMITTED}


def test_what_sending_again_cannot_help_is_a_dead_letter_that_an_operator_may_bring_back(store: Store) -> None:
    kept, refused = deliver(store, 4)
    ask(store, 5)
    assert report(store, 6, kept, **failing(refused, CONFLICT)) == ((kept,), (), (refused,))
    (dead,) = [entry for entry in entries(store) if entry.state is DeliveryState.DEAD]
    assert dead.last_error == "not committed, 0119: class-instance conflict"
    assert store.ledger.balance() == Balance(dead=1)
    store.ledger.retry(OneDelivery(delivery_id=dead.delivery_id), at(7))
    assert deliver(store, 7) == [refused]
    assert [item.sop_instance for item in ask(store, 8, "1.9.2")] == [refused]


def test_a_transaction_that_the_destination_confuses_is_asked_anew(store: Store) -> None:
    uids = deliver(store, 4)
    ask(store, 5)
    report(store, 6, uids[0], **failing(uids[1], USED))
    assert [item.sop_instance for item in ask(store, 6, "1.9.2")] == [uids[1]]
    assert {entry.state for entry in entries(store)} == {DeliveryState.DELIVERED}


def test_silence_is_overdue_once_and_asked_again_at_once_with_another_transaction(store: Store) -> None:
    uids = deliver(store, 4)
    ask(store, 5)
    assert store.commitments.expire("PACS", at(103.9)) == ()
    assert store.commitments.next_due("PACS") == at(104)
    assert sorted(item.sop_instance for item in store.commitments.expire("PACS", at(104))) == sorted(uids)
    assert store.commitments.expire("PACS", at(105)) == (), "the alert is given once"
    assert [entry.commitment for entry in store.ledger.uncommitted()] == [CommitmentState.OVERDUE] * 2
    assert len(ask(store, 104, "1.9.2")) == 2
    assert states(store) == {CommitmentState.OVERDUE}, "asking again does not take the alert back"
    assert store.watching.operations().destinations["PACS"].overdue_commitments == 2
    report(store, 110, *uids, transaction="1.9.2")
    assert store.ledger.uncommitted() == ()


def test_a_late_answer_to_the_first_request_counts(store: Store) -> None:
    uids = deliver(store, 4)
    ask(store, 5)
    store.commitments.expire("PACS", at(104))
    ask(store, 104, "1.9.2")
    assert report(store, 105, *uids)[0] == tuple(uids)
    assert report(store, 106, *uids, transaction="1.9.2") == ((), (), ())


def test_a_destination_that_cannot_be_asked_is_asked_later_and_overdue_in_time(store: Store) -> None:
    deliver(store, 4)
    ask(store, 5)
    store.commitments.not_requested("1.9.1", "connection refused", at(6), POLICY, MIDDLE)
    assert states(store) == {CommitmentState.DUE}
    assert ask(store, 35, "1.9.2") == ()
    assert len(ask(store, 36, "1.9.2")) == 2
    store.commitments.not_requested("1.9.2", "connection refused", at(37), POLICY, MIDDLE)
    assert len(store.commitments.expire("PACS", at(104))) == 2
    store.commitments.not_requested("1.9.2", "connection refused", at(105), POLICY, MIDDLE)
    assert states(store) == {CommitmentState.OVERDUE}


def test_asking_ends_with_the_retry_policy_and_an_operator_may_ask_again(store: Store) -> None:
    deliver(store, 4)
    now = 4.0
    while (due := store.commitments.next_due("PACS")) is not None and now < 10_000:
        now = max(now, (due - at(0)).total_seconds())
        store.commitments.expire("PACS", at(now))
        ask(store, now, f"1.9.{now}")
    assert now == pytest.approx(4 + 3600, abs=WITHIN_S)
    assert states(store) == {CommitmentState.OVERDUE}
    (first, *_) = entries(store)
    assert not store.commitments.retry_requested("PACS", at(0))
    assert store.ledger.retry(OneDelivery(delivery_id=first.delivery_id), at(9000)).deliveries == 1
    assert store.commitments.retry_requested("PACS", at(8999))
    assert not store.commitments.retry_requested("PACS", at(9001))
    assert [item.delivery_id for item in ask(store, 9000, "1.9.9999")] == [first.delivery_id]
    assert not store.commitments.retry_requested("PACS", at(8999))


def test_a_request_that_was_written_down_survives_a_restart(store: Store, tmp_path: Path) -> None:
    uids = deliver(store, 4)
    ask(store, 5)
    with open_store(tmp_path / "store", exclusive=False) as another:
        another.inbox.recover(at(10), maximum_attempts=3)
        assert report(another, 11, *uids)[0] == tuple(uids)
