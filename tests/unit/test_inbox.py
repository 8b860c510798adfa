"""From an image's arrival to its study's answer, on an explicit clock."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from dicomnode.domain.errors import UidMismatch
from dicomnode.domain.instance import InstanceRef, StoredInstance
from dicomnode.domain.job import (
    Accepted,
    DeliveryState,
    JobState,
    Rejection,
    RejectionReason,
    ResultKind,
    RetryPolicy,
    StudyAnswer,
)
from dicomnode.store import Store
from dicomnode.store.ledger import Balance
from dicomnode.store.reception import Receipt, ReceiptKind
from dicomnode.store.rows import EventKind
from tests.stores import (
    EXPLICIT_LE,
    MAXIMUM_WAIT_S,
    QUIET_S,
    accept,
    answer,
    association,
    at,
    claim,
    image,
    open_store,
    part10,
    rejection_of_all,
    result,
    to,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


def states(store: Store, study: str = "1.1") -> list[JobState]:
    return [entry.state for entry in store.ledger.jobs_of(study)]


def kinds(store: Store, study: str = "1.1") -> list[EventKind]:
    return [event.kind for event in store.ledger.explain(study)]


def uids(instances: Sequence[StoredInstance]) -> list[str]:
    return [instance.ref.sop_instance for instance in instances]


def finished(store: Store, seconds: float, *destinations: str) -> StudyAnswer:
    job = claim(store, seconds)
    given = answer(job)
    store.inbox.finish(job, given, to(*destinations), at(seconds))
    return given


# Accepting


def test_a_new_image_is_promised_and_its_bytes_are_there(store: Store) -> None:
    assert accept(store) == Receipt(kind=ReceiptKind.NEW, study="1.1", version=1)
    (stored,) = claim(store, QUIET_S).instances
    assert stored.ref == image()
    assert (stored.calling_ae, stored.transfer_syntax, stored.received_at) == ("MODALITY", EXPLICIT_LE, at(0))
    assert store.blobs.read_instance(stored) == part10(image())
    assert stored.size_bytes == len(part10(image()))


def test_the_same_bytes_again_are_a_duplicate_and_no_work(store: Store) -> None:
    accept(store)
    finished(store, QUIET_S)
    assert accept(store, seconds=10).kind is ReceiptKind.DUPLICATE
    assert store.inbox.claim(at(1000)) is None
    assert kinds(store)[-1] is EventKind.DUPLICATE


def test_other_bytes_under_the_same_uid_make_a_new_version_with_the_newest_content(store: Store) -> None:
    accept(store, content=b"first")
    finished(store, QUIET_S)
    assert accept(store, content=b"corrected", seconds=10) == Receipt(kind=ReceiptKind.REPLACED, study="1.1", version=2)
    job = claim(store, 10 + QUIET_S)
    assert [store.blobs.read_instance(stored) for stored in job.instances] == [part10(image(), b"corrected")]
    assert EventKind.REPLACED in kinds(store)


def test_the_former_content_of_a_replaced_image_stays_in_the_store(store: Store) -> None:
    accept(store, content=b"first")
    (former,) = claim(store, QUIET_S).instances
    accept(store, content=b"corrected", seconds=10)
    assert store.blobs.read_instance(former) == part10(image(), b"first")


def test_content_replaced_before_it_was_looked_at_is_accounted_for(store: Store) -> None:
    accept(store, content=b"first")
    accept(store, content=b"corrected", seconds=1)
    finished(store, 1 + QUIET_S)
    assert states(store) == [JobState.DONE]
    assert store.ledger.balance() == Balance(answered=1, replaced=1)


def test_content_that_returns_to_what_it_was_is_current_again(store: Store) -> None:
    for seconds, content in enumerate([b"first", b"second", b"first"]):
        accept(store, content=content, seconds=seconds)
    job = claim(store, 2 + QUIET_S)
    assert [store.blobs.read_instance(stored) for stored in job.instances] == [part10(image(), b"first")]


def test_a_sop_instance_held_under_another_study_is_refused_and_the_ledger_says_why(store: Store) -> None:
    accept(store, "1.1", 1)
    moved = InstanceRef(study="1.9", series="1.9.2", sop_class=image().sop_class, sop_instance="1.1.2.1")
    with pytest.raises(UidMismatch, match=r"already held in study 1\.1"):
        store.inbox.accept(moved, EXPLICIT_LE, b"moved", association(), at(1))
    assert kinds(store, "1.9") == [EventKind.REFUSED]
    assert store.ledger.balance() == Balance(pending=1)


def test_the_nodes_own_result_coming_back_is_no_work(store: Store) -> None:
    accept(store)
    own = finished(store, QUIET_S, "PACS").results[0]
    receipt = store.inbox.accept(own.ref, EXPLICIT_LE, own.part10 + b" repacked", association("pacs"), at(20))
    assert receipt == Receipt(kind=ReceiptKind.DUPLICATE, study="1.1", version=None)
    assert store.inbox.claim(at(1000)) is None
    assert kinds(store)[-1] is EventKind.OWN_RESULT_RETURNED


def test_a_fallback_that_was_sent_in_a_results_place_coming_back_is_no_work(store: Store) -> None:
    accept(store)
    finished(store, QUIET_S, "PACS")
    sent = InstanceRef(study="1.1", series="1.1.7", sop_class="1.2.840.10008.5.1.4.1.1.88.33", sop_instance="1.1.7.7")
    delivery = store.outbox.claim("PACS", 1, at(3))[0]
    store.outbox.record(delivery, Accepted(), at(3), RetryPolicy(), 0.5, sent_as=sent)
    assert store.inbox.accept(sent, EXPLICIT_LE, b"fallback", association(), at(20)).kind is ReceiptKind.DUPLICATE
    assert store.inbox.claim(at(1000)) is None


def test_a_time_without_a_zone_is_a_fault_of_the_caller(store: Store) -> None:
    with pytest.raises(ValueError, match="without a zone"):
        store.inbox.claim(datetime(2025, 1, 1))  # noqa: DTZ001


# Assembly


def test_a_study_is_due_when_quiet_has_passed_since_its_last_image(store: Store) -> None:
    accept(store, number=1, seconds=0)
    accept(store, number=2, seconds=1.5)
    assert store.inbox.next_due() == at(1.5 + QUIET_S)
    assert store.inbox.claim(at(1.5 + QUIET_S - 0.001)) is None
    assert uids(claim(store, 1.5 + QUIET_S).instances) == ["1.1.2.1", "1.1.2.2"]


def test_an_open_association_holds_the_study_it_contributed_to(store: Store) -> None:
    store.inbox.association_opened("one", at(0))
    accept(store, seconds=0, over="one")
    assert store.inbox.claim(at(60)) is None
    store.inbox.association_released("one", at(61))
    assert uids(claim(store, 61).instances) == ["1.1.2.1"]


def test_a_released_association_still_leaves_the_quiet_time(store: Store) -> None:
    store.inbox.association_opened("one", at(0))
    accept(store, seconds=0, over="one")
    store.inbox.association_released("one", at(0.5))
    assert store.inbox.claim(at(QUIET_S - 0.001)) is None
    assert claim(store, QUIET_S).study == "1.1"


def test_every_association_that_contributed_holds_the_study(store: Store) -> None:
    for name in ("one", "two"):
        store.inbox.association_opened(name, at(0))
    accept(store, number=1, over="one")
    accept(store, number=2, over="two")
    store.inbox.association_released("one", at(1))
    assert store.inbox.claim(at(60)) is None
    store.inbox.association_released("two", at(61))
    assert len(claim(store, 61).instances) == 2


def test_an_association_holds_no_study_but_its_own(store: Store) -> None:
    store.inbox.association_opened("one", at(0))
    accept(store, "1.1", over="one")
    accept(store, "1.2", over="two")
    assert claim(store, QUIET_S).study == "1.2"


def test_an_association_that_is_open_but_sent_nothing_of_a_study_does_not_hold_it(store: Store) -> None:
    accept(store)
    store.inbox.association_opened("idle", at(1))
    assert claim(store, QUIET_S).study == "1.1"


def test_the_maximum_wait_ends_the_assembly_whatever_is_open(store: Store) -> None:
    store.inbox.association_opened("one", at(0))
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
    store.inbox.association_released("never heard of", at(0))
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
    store.inbox.association_opened("two", at(900))
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
    store.inbox.finish(job, StudyAnswer(results=(report,), rejections=(lateral,), summary={}), to(), at(3))
    assert states(store) == [JobState.DONE]
    assert store.ledger.balance() == Balance(answered=1, rejected=1)


def test_a_report_that_says_not_analysed_makes_the_study_done_and_the_image_rejected(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    rejected = rejection_of_all(job)
    report = result(job, ResultKind.STRUCTURED_REPORT)
    given = StudyAnswer(results=(report,), rejections=rejected.rejections, summary={})
    store.inbox.finish(job, given, to("PACS"), at(3))
    assert states(store) == [JobState.DONE]
    assert store.ledger.balance() == Balance(rejected=1)


def test_an_image_that_an_answer_forgets_is_not_hidden(store: Store) -> None:
    accept(store, number=1)
    accept(store, number=2)
    job = claim(store, QUIET_S)
    report = result(job, ResultKind.STRUCTURED_REPORT, ("1.1.2.1",))
    store.inbox.finish(job, StudyAnswer(results=(report,), rejections=(), summary={}), to(), at(3))
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
    assert store.ledger.explain("1.1")[-1].detail == "BlobDamaged"
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
    assert len(store.ledger.explain("1.1")[-1].detail) == 500


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
    store.inbox.association_opened("one", at(0))
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


# Expected


def expected(store: Store, since: float = 0.0) -> list[str]:
    return uids(store.inbox.expected(at(since)))


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
    (found,) = store.inbox.expected(at(0))
    assert store.blobs.read_instance(found) == part10(image(), b"new")


def test_an_image_that_came_before_is_not_expected(store: Store) -> None:
    accept(store, number=1, seconds=0)
    accept(store, number=2, seconds=1)
    assert expected(store, since=0.5) == ["1.1.2.2"]
