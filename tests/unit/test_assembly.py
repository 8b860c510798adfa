"""When a study is complete, which images each version of its answer speaks of, and which are still expected."""

import pytest

from dicomnode.domain.job import JobState
from dicomnode.store import Store
from dicomnode.store.ledger import Balance
from tests.support.stores import (
    MAXIMUM_WAIT_S,
    QUIET_S,
    accept,
    answer,
    at,
    claim,
    finished,
    image,
    part10,
    rejection_of_all,
    states,
    to,
    uids,
)

# Completeness


def test_a_study_is_due_when_quiet_has_passed_since_its_last_image(store: Store) -> None:
    accept(store, number=1, seconds=0)
    accept(store, number=2, seconds=1.5)
    assert store.inbox.next_due() == at(1.5 + QUIET_S)
    assert store.inbox.claim(at(1.5 + QUIET_S - 0.001)) is None
    assert uids(claim(store, 1.5 + QUIET_S).instances) == ["1.1.2.1", "1.1.2.2"]


def test_an_open_association_holds_the_study_it_contributed_to(store: Store) -> None:
    store.reception.association_opened("one", at(0))
    accept(store, seconds=0, over="one")
    assert store.inbox.claim(at(60)) is None
    store.reception.association_released("one", at(61))
    assert uids(claim(store, 61).instances) == ["1.1.2.1"]


def test_a_released_association_still_leaves_the_quiet_time(store: Store) -> None:
    store.reception.association_opened("one", at(0))
    accept(store, seconds=0, over="one")
    store.reception.association_released("one", at(0.5))
    assert store.inbox.claim(at(QUIET_S - 0.001)) is None
    assert claim(store, QUIET_S).study == "1.1"


def test_every_association_that_contributed_holds_the_study(store: Store) -> None:
    for name in ("one", "two"):
        store.reception.association_opened(name, at(0))
    accept(store, number=1, over="one")
    accept(store, number=2, over="two")
    store.reception.association_released("one", at(1))
    assert store.inbox.claim(at(60)) is None
    store.reception.association_released("two", at(61))
    assert len(claim(store, 61).instances) == 2


def test_an_association_holds_no_study_but_its_own(store: Store) -> None:
    store.reception.association_opened("one", at(0))
    accept(store, "1.1", over="one")
    accept(store, "1.2", over="two")
    assert claim(store, QUIET_S).study == "1.2"


def test_an_association_that_is_open_but_sent_nothing_of_a_study_does_not_hold_it(store: Store) -> None:
    accept(store)
    store.reception.association_opened("idle", at(1))
    assert claim(store, QUIET_S).study == "1.1"


def test_the_maximum_wait_ends_the_assembly_whatever_is_open(store: Store) -> None:
    store.reception.association_opened("one", at(0))
    accept(store, number=1, seconds=0, over="one")
    accept(store, number=2, seconds=MAXIMUM_WAIT_S - 1, over="one")
    assert store.inbox.claim(at(MAXIMUM_WAIT_S - 0.001)) is None
    assert len(claim(store, MAXIMUM_WAIT_S).instances) == 2


def test_a_trickle_of_images_cannot_put_a_study_off_beyond_the_maximum_wait(store: Store) -> None:
    for number in range(7):
        accept(store, number=number, seconds=number * MAXIMUM_WAIT_S / 6)
    assert store.inbox.next_due() == at(MAXIMUM_WAIT_S)


def test_releasing_an_unknown_association_changes_nothing(store: Store) -> None:
    accept(store)
    store.reception.association_released("never heard of", at(0))
    assert store.inbox.next_due() == at(QUIET_S)


def test_the_study_that_is_due_for_longest_comes_first(store: Store) -> None:
    for seconds, study in enumerate(["1.3", "1.1", "1.2"]):
        accept(store, study, seconds=seconds)
    assert [claim(store, 60).study for _ in range(3)] == ["1.3", "1.1", "1.2"]
    assert store.inbox.claim(at(60)) is None


# Versions


def test_an_image_that_arrives_while_the_study_is_in_work_makes_a_new_version(store: Store) -> None:
    accept(store, number=1)
    first = claim(store, QUIET_S)
    assert accept(store, number=2, seconds=3).version == 2
    assert store.inbox.claim(at(60)) is None, "two versions of a study are never in work at once"
    store.inbox.finish(first, answer(first), to("PACS"), at(61))
    second = claim(store, 61)
    assert (second.version, uids(second.instances)) == (2, ["1.1.2.1", "1.1.2.2"])
    assert [ref.sop_instance for ref in second.predecessors] == [answer(first).results[0].ref.sop_instance]


def test_a_late_image_makes_a_new_version_that_names_the_former_report(store: Store) -> None:
    accept(store, number=1)
    former = finished(store, QUIET_S, "PACS")
    accept(store, number=2, seconds=100)
    job = claim(store, 100 + QUIET_S)
    assert job.version == 2
    assert job.predecessors == (former.results[0].ref,)
    assert uids(job.instances) == ["1.1.2.1", "1.1.2.2"]


def test_the_predecessor_is_the_report_of_the_version_before(store: Store) -> None:
    for number in (1, 2):
        accept(store, number=number, seconds=number * 100)
        former = finished(store, number * 100 + QUIET_S)
    accept(store, number=3, seconds=300)
    assert claim(store, 300 + QUIET_S).predecessors == (former.results[0].ref,)


def test_without_a_report_in_the_version_before_an_older_one_is_the_predecessor(store: Store) -> None:
    accept(store, number=1)
    reported = finished(store, QUIET_S)
    accept(store, number=2, seconds=100)
    second = claim(store, 100 + QUIET_S)
    store.inbox.finish(second, rejection_of_all(second), to("PACS"), at(103))
    accept(store, number=3, seconds=200)
    assert claim(store, 200 + QUIET_S).predecessors == (reported.results[0].ref,)


def test_a_first_version_has_no_predecessor(store: Store) -> None:
    accept(store)
    assert claim(store, QUIET_S).predecessors == ()


def test_an_image_that_arrives_between_attempts_joins_the_version_that_waits(store: Store) -> None:
    accept(store, number=1)
    store.inbox.fail(claim(store, QUIET_S), "for now", at(60), at(3))
    assert accept(store, number=2, seconds=10).version == 1
    job = claim(store, 10 + QUIET_S)
    assert (job.version, job.attempts, len(job.instances)) == (1, 2, 2)


def test_a_version_that_collects_again_may_wait_its_maximum_again(store: Store) -> None:
    accept(store, number=1)
    store.inbox.fail(claim(store, QUIET_S), "for now", at(1000), at(3))
    store.reception.association_opened("two", at(900))
    accept(store, number=2, seconds=900, over="two")
    assert store.inbox.next_due() == at(900 + MAXIMUM_WAIT_S)


def test_a_failed_version_is_superseded_by_the_one_that_has_its_images(store: Store) -> None:
    accept(store, number=1)
    first = claim(store, QUIET_S)
    accept(store, number=2, seconds=3)
    store.inbox.fail(first, "for now", at(10), at(4))
    assert states(store) == [JobState.SUPERSEDED, JobState.COLLECTING]
    finished(store, 3 + QUIET_S)
    assert states(store) == [JobState.SUPERSEDED, JobState.DONE]
    assert store.ledger.balance() == Balance(answered=2)


def test_an_image_that_arrives_after_a_dead_letter_gives_the_whole_study_another_chance(store: Store) -> None:
    accept(store, number=1)
    store.inbox.fail(claim(store, QUIET_S), "broken", None, at(3))
    assert store.ledger.balance() == Balance(dead=1)
    accept(store, number=2, seconds=100)
    assert store.ledger.balance() == Balance(pending=2)
    assert len(claim(store, 100 + QUIET_S).instances) == 2
    assert states(store) == [JobState.SUPERSEDED, JobState.WORKING]


def test_content_that_came_and_went_while_a_version_was_in_work_is_not_counted_as_looked_at(store: Store) -> None:
    accept(store, content=b"first")
    job = claim(store, QUIET_S)
    accept(store, content=b"second", seconds=3)
    accept(store, content=b"first", seconds=4)
    store.inbox.finish(job, answer(job), to(), at(5))
    assert store.ledger.balance() == Balance(answered=1, replaced=1, pending=1)


# ExpectedJob


def expected(store: Store, since: float = 0.0) -> list[str]:
    return [uid for entry in store.inbox.expected(at(since)) for uid in uids(entry.job.instances)]


def test_images_of_incomplete_studies_are_expected_in_the_order_of_their_claims(store: Store) -> None:
    accept(store, "1.2", 1, seconds=1)
    accept(store, "1.1", 1, seconds=0)
    accept(store, "1.1", 2, seconds=0.5)
    assert expected(store) == ["1.1.2.1", "1.1.2.2", "1.2.2.1"]


def test_an_image_of_a_study_in_work_or_answered_is_not_expected_until_the_study_is_open_again(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    assert expected(store) == []
    store.inbox.finish(job, answer(job), to(), at(QUIET_S))
    assert expected(store) == []
    accept(store, number=2, seconds=10)
    assert expected(store) == ["1.1.2.1", "1.1.2.2"]


def test_only_the_newest_content_of_an_image_is_expected(store: Store) -> None:
    accept(store, content=b"old")
    accept(store, content=b"new", seconds=1)
    (found,) = store.inbox.expected(at(0))[0].job.instances
    assert store.blobs.read_instance(found) == part10(image(), b"new")


def test_a_study_is_not_expected_of_which_an_image_came_before(store: Store) -> None:
    accept(store, "1.1", 1, seconds=0)
    accept(store, "1.1", 2, seconds=1)
    accept(store, "1.2", 1, seconds=1)
    assert expected(store, since=0.5) == ["1.2.2.1"]


def test_a_study_of_very_many_images_is_not_expected(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomnode.store.jobs._MOST_IMAGES", 1)
    accept(store, "1.1", 1)
    accept(store, "1.2", 1)
    accept(store, "1.2", 2)
    assert expected(store) == ["1.1.2.1"]


def test_a_study_is_expected_as_it_is_claimed_then(store: Store) -> None:
    accept(store)
    finished(store, QUIET_S, "PACS")
    accept(store, number=2, seconds=10)
    (foreseen,) = store.inbox.expected(at(0))
    assert foreseen.job == claim(store, 10 + QUIET_S)
    assert foreseen.job.predecessors


def test_a_study_is_quiet_once_nobody_who_sent_something_of_it_is_connected(store: Store) -> None:
    for name in ("one", "two"):
        store.reception.association_opened(name, at(0))
    accept(store, number=1, over="one")
    accept(store, number=2, over="two")
    store.reception.association_released("one", at(1))
    assert [entry.is_quiet for entry in store.inbox.expected(at(0))] == [False]
    store.reception.association_released("two", at(1))
    assert [entry.is_quiet for entry in store.inbox.expected(at(0))] == [True]
