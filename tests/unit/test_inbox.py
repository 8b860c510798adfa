"""How work on a study ends: answered, rejected, put back, given up, or taken up again after a restart."""

from pathlib import Path

from dicomnode.domain.answer import Rejection, RejectionReason, ResultKind, StudyAnswer
from dicomnode.domain.delivery import DeliveryState
from dicomnode.domain.job import JobState
from dicomnode.store import Store
from dicomnode.store.events import EventKind
from dicomnode.store.ledger import Balance, describe
from tests.support.stores import (
    QUIET_S,
    accept,
    answer,
    at,
    claim,
    finished,
    image,
    kinds,
    open_store,
    rejection_of_all,
    result,
    states,
    to,
)

# Finishing and failing


def test_an_answer_is_queued_for_every_destination(store: Store) -> None:
    accept(store)
    finished(store, QUIET_S, "PACS", "ARCHIVE")
    assert states(store) == [JobState.DONE]
    assert [(d.destination, d.kind, d.state) for d in store.ledger.deliveries_of("1.1")] == [
        ("PACS", ResultKind.STRUCTURED_REPORT, DeliveryState.WAITING),
        ("ARCHIVE", ResultKind.STRUCTURED_REPORT, DeliveryState.WAITING),
        ("PACS", ResultKind.SECONDARY_CAPTURE, DeliveryState.WAITING),
        ("ARCHIVE", ResultKind.SECONDARY_CAPTURE, DeliveryState.WAITING),
    ]
    assert store.ledger.balance() == Balance(pending=1), "an answer on its way is not yet given"


def test_without_destinations_the_results_stay_and_the_ledger_says_so(store: Store) -> None:
    accept(store)
    finished(store, QUIET_S)
    assert store.ledger.deliveries_of("1.1") == ()
    assert store.ledger.explain("1.1")[-1].kind is EventKind.KEPT
    assert store.ledger.balance() == Balance(answered=1)


def test_finishing_twice_is_finishing_once(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    for seconds in (3, 4):
        store.inbox.finish(job, answer(job), to("PACS"), at(seconds))
    assert len(store.ledger.deliveries_of("1.1")) == 2
    assert kinds(store).count(EventKind.ANSWERED) == 1


def test_a_result_that_is_there_already_is_not_delivered_again(store: Store) -> None:
    """A re-run whose inputs are the same derives the same UIDs: the destination has those objects."""
    accept(store, number=1)
    first = claim(store, QUIET_S)
    given = answer(first)
    store.inbox.finish(first, given, to("PACS"), at(3))
    accept(store, number=2, seconds=10)
    second = claim(store, 10 + QUIET_S)
    store.inbox.finish(second, given, to("PACS"), at(13))
    assert len(store.ledger.deliveries_of("1.1")) == 2
    assert len(store.outbox.claim("PACS", 10, at(20))) == 2


def test_a_study_of_rejected_images_is_rejected_with_the_reasons(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    store.inbox.finish(job, rejection_of_all(job), to("PACS"), at(3))
    assert states(store) == [JobState.REJECTED]
    (told,) = store.ledger.rejections_of("1.1")
    assert (told.version, told.sop_instance, told.reason) == (1, "1.1.2.1", RejectionReason.LATERAL_VIEW)
    assert kinds(store)[-2:] == [EventKind.IMAGE_REJECTED, EventKind.REJECTED]
    assert store.ledger.balance() == Balance(rejected=1)


def test_a_study_may_be_answered_in_part(store: Store) -> None:
    accept(store, number=1)
    accept(store, number=2)
    job = claim(store, QUIET_S)
    report = result(job, ResultKind.STRUCTURED_REPORT, ("1.1.2.1",))
    lateral = Rejection(source=image(number=2), reason=RejectionReason.LATERAL_VIEW, detail="a lateral view")
    store.inbox.finish(job, StudyAnswer(results=(report,), rejections=(lateral,)), to(), at(3))
    assert states(store) == [JobState.DONE]
    assert store.ledger.balance() == Balance(answered=1, rejected=1)


def test_a_report_that_says_not_analysed_makes_the_study_done_and_the_image_rejected(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    rejected = rejection_of_all(job)
    report = result(job, ResultKind.STRUCTURED_REPORT)
    given = StudyAnswer(results=(report,), rejections=rejected.rejections)
    store.inbox.finish(job, given, to("PACS"), at(3))
    assert states(store) == [JobState.DONE]
    assert store.ledger.balance() == Balance(rejected=1)


def test_an_image_that_an_answer_forgets_is_not_hidden(store: Store) -> None:
    accept(store, number=1)
    accept(store, number=2)
    job = claim(store, QUIET_S)
    report = result(job, ResultKind.STRUCTURED_REPORT, ("1.1.2.1",))
    store.inbox.finish(job, StudyAnswer(results=(report,), rejections=()), to(), at(3))
    assert store.ledger.balance() == Balance(answered=1, unaccounted=1)
    assert EventKind.IMAGE_UNMENTIONED in kinds(store)


def test_a_failed_study_comes_back_when_it_is_due(store: Store) -> None:
    accept(store)
    store.inbox.fail(claim(store, QUIET_S), "StoreUnavailable: disk", at(30), at(3))
    assert states(store) == [JobState.WAITING]
    assert store.ledger.jobs_of("1.1")[0].last_error == "StoreUnavailable: disk"
    assert store.inbox.claim(at(29)) is None
    assert claim(store, 30).attempts == 2


def test_a_study_without_another_try_is_a_dead_letter_with_its_cause(store: Store) -> None:
    accept(store)
    store.inbox.fail(claim(store, QUIET_S), "BlobDamaged", None, at(3))
    assert states(store) == [JobState.DEAD]
    assert store.inbox.claim(at(10_000)) is None
    assert describe(store.ledger.explain("1.1")[-1]) == "BlobDamaged"
    assert store.ledger.balance() == Balance(dead=1)


def test_failing_a_finished_job_changes_nothing(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    store.inbox.finish(job, answer(job), to(), at(3))
    store.inbox.fail(job, "too late", None, at(4))
    store.inbox.fail(job, "too late", at(10), at(4))
    assert states(store) == [JobState.DONE]


def test_finishing_a_job_that_was_given_up_changes_nothing(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    store.inbox.fail(job, "broken", None, at(3))
    store.inbox.finish(job, answer(job), to("PACS"), at(4))
    assert states(store) == [JobState.DEAD]
    assert store.ledger.deliveries_of("1.1") == ()


def test_a_long_cause_is_cut_to_fit_the_ledger(store: Store) -> None:
    accept(store)
    store.inbox.fail(claim(store, QUIET_S), "x" * 5000, None, at(3))
    assert len(describe(store.ledger.explain("1.1")[-1])) == 500


# Recovery


def restarted(store: Store, path: Path, seconds: float, *, maximum_attempts: int = 5) -> Store:
    store.close()
    again = open_store(path)
    again.inbox.recover(at(seconds), maximum_attempts=maximum_attempts)
    return again


def test_a_study_in_work_when_the_node_stopped_is_taken_up_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    accept(store)
    claim(store, QUIET_S)
    with restarted(store, tmp_path / "store", 60) as again:
        assert claim(again, 60).attempts == 2
        assert EventKind.INTERRUPTED in kinds(again)


def test_a_study_that_keeps_killing_the_node_becomes_a_dead_letter(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    accept(store)
    for seconds in (10, 20, 30):
        claim(store, seconds)
        store = restarted(store, tmp_path / "store", seconds + 5, maximum_attempts=3)
    with store:
        assert store.inbox.claim(at(1000)) is None
        assert states(store) == [JobState.DEAD]
        assert store.ledger.jobs_of("1.1")[0].last_error == "the node stopped during attempt 3"


def test_an_interrupted_version_is_superseded_if_a_newer_one_has_its_images(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    accept(store, number=1)
    claim(store, QUIET_S)
    accept(store, number=2, seconds=3)
    with restarted(store, tmp_path / "store", 60) as again:
        assert states(again) == [JobState.SUPERSEDED, JobState.COLLECTING]
        assert len(claim(again, 60).instances) == 2


def test_no_association_survives_a_restart(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    store.reception.association_opened("one", at(0))
    accept(store, over="one")
    with restarted(store, tmp_path / "store", 10) as again:
        assert claim(again, 10).study == "1.1"


def test_what_was_being_sent_when_the_node_stopped_is_sent_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    accept(store)
    finished(store, QUIET_S, "PACS")
    assert len(store.outbox.claim("PACS", 10, at(3))) == 2
    with restarted(store, tmp_path / "store", 60) as again:
        assert [delivery.attempts for delivery in again.outbox.claim("PACS", 10, at(60))] == [2, 2]
        assert kinds(again).count(EventKind.DELIVERY_INTERRUPTED) == 2


def test_recovering_a_tidy_store_changes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    accept(store)
    finished(store, QUIET_S, "PACS")
    before = store.ledger.explain("1.1")
    with restarted(store, tmp_path / "store", 60) as again:
        assert again.ledger.explain("1.1") == before
