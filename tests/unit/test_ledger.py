"""What people see of the store, and what an operator may do to it."""

import json
import sqlite3
from pathlib import Path

import pytest

from dicomnode.domain.delivery import Accepted, DeliveryState, NoAnswer, Refused, RetryPolicy
from dicomnode.domain.errors import UnknownStudy
from dicomnode.domain.job import JobState
from dicomnode.domain.summary import StudySummary
from dicomnode.results.summary import summary_to_json
from dicomnode.store import Store
from dicomnode.store.counters import Waiting
from dicomnode.store.events import EventKind
from dicomnode.store.ledger import Balance, describe
from dicomnode.store.operator import AllDead, Changed, OfStudy, OneDelivery, OneJob
from tests.support.stores import QUIET_S, accept, answer, at, claim, open_store, to

POLICY = RetryPolicy(jitter=0)
NOTHING = Changed(jobs=0, deliveries=0)


def answered(store: Store, study: str = "1.1", *destinations: str) -> None:
    accept(store, study)
    job = claim(store, QUIET_S)
    store.inbox.finish(job, answer(job), to(*destinations), at(3))


def dead(store: Store, study: str = "1.1") -> None:
    accept(store, study)
    store.inbox.fail(claim(store, QUIET_S), "broken", None, at(3))


def deliver(store: Store, outcome: Accepted | Refused | NoAnswer, seconds: float = 4) -> None:
    for delivery in store.outbox.claim("PACS", 100, at(seconds)):
        store.outbox.record(delivery, outcome, at(seconds), POLICY, 0.5)


def state(store: Store, study: str = "1.1") -> JobState:
    return store.ledger.jobs_of(study)[-1].state


# Reading


def test_the_whole_story_of_a_study_is_told_in_order(store: Store) -> None:
    answered(store, "1.1", "PACS")
    deliver(store, NoAnswer(cause="connection refused"))
    deliver(store, Accepted(), 34)
    told = store.ledger.explain("1.1")
    assert [event.kind.value for event in told] == [
        "version-opened",
        "received",
        "claimed",
        "queued",
        "queued",
        "answered",
        "delivery-deferred",
        "delivery-deferred",
        "delivered",
        "delivered",
    ]
    assert told[0].at == at(0)
    assert all(event.version == 1 for event in told)
    assert "connection refused" in describe(told[6])


def test_a_study_nobody_sent_is_unknown(store: Store) -> None:
    with pytest.raises(UnknownStudy):
        store.ledger.explain("1.2.3")


def test_what_waits_is_listed_with_reason_attempts_and_time(store: Store) -> None:
    answered(store, "1.1", "PACS")
    deliver(store, NoAnswer(cause="connection refused"))
    first, second = store.ledger.deliveries([DeliveryState.WAITING])
    assert (first.destination, first.attempts, first.last_error) == ("PACS", 1, "connection refused")
    assert (first.study, first.version, second.next_attempt_at) == ("1.1", 1, at(34))


def test_jobs_are_listed_by_state_with_reason(store: Store) -> None:
    dead(store, "1.1")
    accept(store, "1.2")
    (gone,) = store.ledger.jobs([JobState.DEAD])
    assert (gone.study, gone.last_error, gone.attempts, gone.due_at) == ("1.1", "broken", 1, None)
    (coming,) = store.ledger.jobs([JobState.COLLECTING, JobState.WAITING])
    assert (coming.study, coming.instances, coming.due_at) == ("1.2", 1, at(QUIET_S))


def test_pages_hold_everything_once(store: Store) -> None:
    for number in range(7):
        (dead if number % 2 else answered)(store, f"1.{number}")
    pages, after = [], 0
    while page := store.ledger.jobs([JobState.DEAD, JobState.DONE], limit=3, after=after):
        pages.append([entry.study for entry in page])
        after = page[-1].job_id
    assert pages == [["1.0", "1.1", "1.2"], ["1.3", "1.4", "1.5"], ["1.6"]]


def test_delivery_pages_hold_everything_once(store: Store) -> None:
    for number in range(3):
        answered(store, f"1.{number}", "PACS")
    first = store.ledger.deliveries(list(DeliveryState), limit=4)
    second = store.ledger.deliveries(list(DeliveryState), limit=4, after=first[-1].delivery_id)
    assert [entry.study for entry in (*first, *second)] == ["1.0", "1.0", "1.1", "1.1", "1.2", "1.2"]


def test_what_is_not_at_its_end_is_counted(store: Store) -> None:
    dead(store, "1.1")
    answered(store, "1.2", "PACS")
    operations = store.watching.operations()
    assert (operations.jobs[JobState.DEAD].count, operations.jobs[JobState.WAITING].count) == (1, 0)
    assert (operations.destinations["PACS"].waiting.count, operations.dead_deliveries, operations.dead) == (2, 0, 1)


def test_the_oldest_waiting_work_is_known(store: Store) -> None:
    assert store.watching.operations().waiting.since is None
    answered(store, "1.1", "PACS")
    accept(store, "1.2", seconds=50)
    assert store.watching.operations().waiting.since == at(3)
    deliver(store, Accepted())
    assert store.watching.operations().waiting.since == at(50)


def test_dead_letters_do_not_wait(store: Store) -> None:
    dead(store, "1.1")
    answered(store, "1.2", "PACS")
    deliver(store, Refused(status=0xA900, cause="A900H", permanent=True))
    operations = store.watching.operations()
    assert (operations.dead, operations.waiting) == (3, Waiting())


def test_the_summary_of_an_answer_is_kept(store: Store, tmp_path: Path) -> None:
    answered(store)
    connection = sqlite3.connect(tmp_path / "store" / "store.db")
    (summary,) = connection.execute("SELECT summary FROM job").fetchone()
    connection.close()
    assert json.loads(summary) == summary_to_json(StudySummary())


@pytest.mark.parametrize("statement", ["UPDATE event SET facts = ''", "DELETE FROM event"])
def test_nobody_rewrites_the_ledger(store: Store, tmp_path: Path, statement: str) -> None:
    answered(store)
    connection = sqlite3.connect(tmp_path / "store" / "store.db")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()


# Acting


def test_a_dead_study_is_tried_again_with_its_attempts_counted_anew(store: Store) -> None:
    dead(store)
    assert store.ledger.retry(OfStudy(study="1.1"), at(100)) == Changed(jobs=1, deliveries=0)
    assert store.ledger.explain("1.1")[-1].kind is EventKind.RETRIED
    assert claim(store, 100).attempts == 1


def test_a_study_that_waits_for_its_next_attempt_can_be_hurried(store: Store) -> None:
    accept(store)
    store.inbox.fail(claim(store, QUIET_S), "for now", at(1000), at(3))
    assert store.ledger.retry(OfStudy(study="1.1"), at(10)).jobs == 1
    assert claim(store, 10).study == "1.1"


def test_one_delivery_is_tried_again_and_its_age_counts_anew(store: Store) -> None:
    answered(store, "1.1", "PACS")
    deliver(store, Refused(status=0xA900, cause="A900H", permanent=True))
    first, second = store.ledger.deliveries([DeliveryState.DEAD])
    much_later = POLICY.give_up_after_s * 2
    chosen = OneDelivery(delivery_id=second.delivery_id)
    assert store.ledger.retry(chosen, at(much_later)) == Changed(jobs=0, deliveries=1)
    deliver(store, NoAnswer(cause="connection refused"), much_later + 1)
    told = {entry.delivery_id: entry.state for entry in store.ledger.deliveries_of("1.1")}
    assert told == {first.delivery_id: DeliveryState.DEAD, second.delivery_id: DeliveryState.WAITING}


def test_every_dead_letter_is_tried_again_at_once(store: Store) -> None:
    answered(store, "1.1", "PACS")
    deliver(store, Refused(status=0xC000, cause="C000H", permanent=True))
    for study in ("1.2", "1.3"):
        dead(store, study)
    assert store.ledger.retry(AllDead(), at(100)) == Changed(jobs=2, deliveries=2)
    assert store.ledger.balance() == Balance(pending=3)
    assert store.ledger.retry(AllDead(), at(101)) == NOTHING


def test_dropped_work_is_not_done_and_its_records_stay(store: Store) -> None:
    dead(store)
    assert store.ledger.drop(OfStudy(study="1.1"), at(100)).jobs == 1
    assert store.inbox.claim(at(10_000)) is None
    assert store.ledger.balance() == Balance(dropped=1)
    assert [event.kind for event in store.ledger.explain("1.1")[-2:]] == [EventKind.DEAD, EventKind.DROPPED]


def test_dropping_is_undone_by_a_retry(store: Store) -> None:
    accept(store)
    store.ledger.drop(OfStudy(study="1.1"), at(1))
    store.ledger.retry(OfStudy(study="1.1"), at(100))
    assert len(claim(store, 100).instances) == 1


def test_dropped_deliveries_are_not_sent(store: Store) -> None:
    answered(store, "1.1", "PACS")
    assert store.ledger.drop(OfStudy(study="1.1"), at(4)) == Changed(jobs=0, deliveries=2)
    assert store.outbox.claim("PACS", 10, at(1000)) == ()
    assert store.ledger.balance() == Balance(dropped=1)


def test_what_has_ended_well_is_left_alone(store: Store) -> None:
    answered(store, "1.1", "PACS")
    deliver(store, Accepted())
    assert store.ledger.drop(OfStudy(study="1.1"), at(10)) == NOTHING
    assert store.ledger.retry(OfStudy(study="1.1"), at(10)) == NOTHING
    assert store.ledger.balance() == Balance(answered=1)


def test_what_is_in_work_or_being_sent_is_left_alone(store: Store) -> None:
    answered(store, "1.1", "PACS")
    store.outbox.claim("PACS", 10, at(4))
    accept(store, "1.2")
    job = claim(store, QUIET_S)
    assert store.ledger.drop(OfStudy(study="1.1"), at(5)) == NOTHING
    assert store.ledger.drop(OneJob(job_id=job.job_id), at(5)) == NOTHING


def test_an_image_that_arrives_after_a_drop_gives_the_whole_study_another_chance(store: Store) -> None:
    accept(store, number=1)
    store.ledger.drop(OfStudy(study="1.1"), at(1))
    accept(store, number=2, seconds=10)
    assert store.ledger.balance() == Balance(pending=2)
    assert len(claim(store, 10 + QUIET_S).instances) == 2


def test_bringing_back_a_dropped_version_supersedes_an_older_one_that_waits(store: Store) -> None:
    accept(store, number=1)
    first = claim(store, QUIET_S)
    accept(store, number=2, seconds=3)
    store.ledger.drop(OfStudy(study="1.1"), at(4))
    store.inbox.fail(first, "for now", at(60), at(5))
    store.ledger.retry(OfStudy(study="1.1"), at(10))
    assert [entry.state for entry in store.ledger.jobs_of("1.1")] == [JobState.SUPERSEDED, JobState.WAITING]
    job = claim(store, 10)
    assert (job.version, len(job.instances)) == (2, 2)
    store.inbox.finish(job, answer(job), to(), at(11))
    assert store.ledger.balance() == Balance(answered=2)


def test_acting_on_a_study_nobody_sent_is_an_error(store: Store) -> None:
    with pytest.raises(UnknownStudy):
        store.ledger.retry(OfStudy(study="1.2.3"), at(1))
    with pytest.raises(UnknownStudy):
        store.ledger.drop(OfStudy(study="1.2.3"), at(1))


def test_acting_on_an_id_nobody_has_changes_nothing(store: Store) -> None:
    dead(store)
    assert store.ledger.retry(OneJob(job_id=999), at(1)) == NOTHING
    assert store.ledger.drop(OneDelivery(delivery_id=999), at(1)) == NOTHING


def test_an_operator_may_act_beside_a_running_node(store: Store, tmp_path: Path) -> None:
    dead(store)
    with open_store(tmp_path / "store", exclusive=False) as beside:
        assert beside.watching.operations().dead == 1
        beside.ledger.retry(AllDead(), at(100))
    assert claim(store, 100).study == "1.1"


def test_one_dead_delivery_makes_a_study_show_as_dead(store: Store) -> None:
    answered(store, "1.1", "PACS")
    first, second = store.outbox.claim("PACS", 2, at(4))
    store.outbox.record(first, Accepted(), at(4), POLICY, 0.5)
    store.outbox.record(second, Refused(status=None, cause="no context", permanent=True), at(4), POLICY, 0.5)
    assert store.ledger.balance() == Balance(dead=1)
    assert state(store) is JobState.DONE
