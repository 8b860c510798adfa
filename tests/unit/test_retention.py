"""What is settled goes after its time, what is owed stays, and nothing that arrives meanwhile is lost."""

import math
import os
import sqlite3
from pathlib import Path

import pytest

from dicomnode.domain.delivery import Accepted, Refused, RetryPolicy
from dicomnode.settings.node import AssemblySettings, RetentionSettings, StoreSettings
from dicomnode.store import Store
from dicomnode.store.events import EventKind
from dicomnode.store.ledger import Balance, describe
from dicomnode.store.operator import OfStudy
from dicomnode.store.reception import ReceiptKind
from dicomnode.store.retention import Purged
from tests.support.stores import QUIET_S, accept, answer, at, claim, rejection_of_all, to

DAY_S = 86_400.0
POLICY = RetryPolicy(first_delay_s=1.0, factor=2.0, max_delay_s=10.0, give_up_after_s=60.0)


def opened(path: Path, *, images_days: float = 2.0, results_days: float = 5.0, audited: bool = False) -> Store:
    return Store.open(
        StoreSettings(path=path, minimum_free_bytes=0),
        AssemblySettings(quiet_s=QUIET_S),
        exclusive=True,
        retention=RetentionSettings(images_days=images_days, results_days=results_days),
        audited=audited,
    )


def answered(store: Store, study: str = "1.1", *, destination: str | None = "archive") -> None:
    """Have a study of two images answered with two results."""
    accept(store, study, 1)
    accept(store, study, 2)
    store.reception.association_released("one", at(1))
    job = claim(store, 10)
    store.inbox.finish(job, answer(job), to(*filter(None, [destination])), at(11))


def deliver(store: Store, seconds: float = 20, *, commit_within_s: float | None = None) -> None:
    for delivery in store.outbox.claim("archive", 10, at(seconds)):
        store.outbox.record(delivery, Accepted(), at(seconds), POLICY, 0.0, commit_within_s=commit_within_s)


def files(path: Path) -> int:
    return sum(1 for found in (path / "blobs").rglob("*") if found.is_file())


def days(number: float) -> float:
    return 20 + number * DAY_S


def test_images_go_first_and_results_later_and_the_books_stay(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        answered(store)
        deliver(store)
        assert store.retention.purge(at(days(1.99))) == Purged()
        assert files(tmp_path) == 4
        images = store.retention.purge(at(days(2.01)))
        assert (images.studies, images.files) == (1, 2)
        assert images.size_bytes > 0
        assert files(tmp_path) == 2
        assert store.retention.purge(at(days(4.9))) == Purged()
        assert store.retention.purge(at(days(5.01))).files == 2
        assert files(tmp_path) == 0
        assert store.retention.purge(at(days(50))) == Purged()
        assert store.ledger.balance() == Balance(answered=2)
        told = [describe(event) for event in store.ledger.explain("1.1") if event.kind is EventKind.PURGED]
    assert told == [
        "the bytes of 2 received image(s) were removed, 2 day(s) after the study was settled",
        "the bytes of 2 result(s) were removed, 5 day(s) after the study was settled",
    ]


def test_a_rejected_study_goes_too(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        accept(store)
        store.reception.association_released("one", at(1))
        job = claim(store, 10)
        store.inbox.finish(job, rejection_of_all(job), to("archive"), at(11))
        assert store.retention.purge(at(days(3))).files == 1
        assert store.ledger.balance() == Balance(rejected=1)


def test_what_is_owed_stays(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        accept(store, "1.1")  # collecting
        accept(store, "1.2")
        job = claim(store, 1000)
        store.inbox.fail(job, "a fault", None, at(1001))  # a dead letter
        working = claim(store, 1002)
        assert store.retention.purge(at(days(1000))) == Purged()
        store.inbox.finish(working, answer(working), to("archive"), at(1003))  # to be delivered
        assert store.retention.purge(at(days(1000))) == Purged()
        (first, second) = store.outbox.claim("archive", 10, at(1004))
        store.outbox.record(first, Accepted(), at(1005), POLICY, 0.0)
        store.outbox.record(second, Refused(cause="no", permanent=True, status=0xA900), at(1005), POLICY, 0.0)
        assert store.retention.purge(at(days(1000))) == Purged()  # one of its results is a dead letter
        assert files(tmp_path) == 4


def test_results_without_a_destination_are_kept_with_their_images(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        answered(store, destination=None)
        assert store.retention.purge(at(days(1000))) == Purged()


def test_a_result_that_is_not_committed_stays(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        answered(store)
        deliver(store, commit_within_s=60.0)
        assert store.retention.purge(at(days(1000))) == Purged()
        store.commitments.expire("archive", at(100))
        assert store.retention.purge(at(days(1000))) == Purged()
        with sqlite3.connect(tmp_path / "store.db") as aside:
            aside.execute("UPDATE commitment SET state = 'committed', next_at = NULL")
        assert store.retention.purge(at(days(1000))).files == 4


def test_an_image_that_comes_again_after_the_purge_is_analysed_again_and_delivered_to_nobody_twice(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        answered(store)
        deliver(store)
        assert store.retention.purge(at(days(6))).files == 4
        late = days(7)
        assert accept(store, number=1, seconds=late).kind is ReceiptKind.NEW
        assert accept(store, number=2, seconds=late).kind is ReceiptKind.NEW
        assert accept(store, number=2, seconds=late).kind is ReceiptKind.DUPLICATE
        job = claim(store, late + 1000)
        assert [store.blobs.read_instance(found) for found in job.instances]
        assert len(job.instances) == 2
        store.inbox.finish(job, answer(job), to("archive"), at(late + 1001))
        assert store.outbox.claim("archive", 10, at(late + 2000)) == ()
        # Another destination is new to them, and gets the bytes that are there again.
        accept(store, number=1, seconds=late + 3000, over="two", calling_ae="OTHER")
        again = claim(store, late + 4000)
        store.inbox.finish(again, answer(again), to("other"), at(late + 4001))
        sent = store.outbox.claim("other", 10, at(late + 5000))
        assert len([store.outbox.read(one) for one in sent]) == 2
        for one in sent:
            store.outbox.record(one, Accepted(), at(late + 5001), POLICY, 0.0)
        assert store.ledger.balance() == Balance(answered=4)


def test_a_late_image_is_answered_without_those_that_are_gone(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        answered(store)
        deliver(store)
        store.retention.purge(at(days(3)))
        accept(store, number=3, seconds=days(4))
        job = claim(store, days(5))
        assert [found.ref.sop_instance for found in job.instances] == ["1.1.2.3"]
        assert job.predecessors  # the report says which one it follows


def test_nothing_that_was_purged_is_tried_again(tmp_path: Path) -> None:
    with opened(tmp_path, results_days=2.0) as store:
        answered(store)
        store.ledger.drop(OfStudy(study="1.1"), at(12))
        assert store.retention.purge(at(days(3))).files == 4
        changed = store.ledger.retry(OfStudy(study="1.1"), at(days(4)))
        assert (changed.jobs, changed.deliveries) == (0, 0)


def test_what_was_dropped_and_purged_stays_dropped_when_more_of_the_study_comes(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        accept(store, number=2)
        store.ledger.drop(OfStudy(study="1.1"), at(12))
        assert store.retention.purge(at(days(3))).files == 1
        accept(store, number=1, seconds=days(4))
        job = claim(store, days(5))
        store.inbox.finish(job, answer(job), to("archive"), at(days(5)))
        deliver(store, days(6))
        assert store.ledger.balance() == Balance(answered=1, dropped=1)


def test_a_crash_between_the_rows_and_the_files_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as store:
        answered(store)
        deliver(store)
        monkeypatch.setattr(store.retention, "_remove", lambda _: None)
        assert store.retention.purge(at(days(6))).files == 4
        assert files(tmp_path) == 4
    with opened(tmp_path):
        assert files(tmp_path) == 0
    assert os.listdir(tmp_path / "unclaimed") == []  # noqa: PTH208


def test_bytes_that_arrive_while_the_same_are_removed_are_there_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as store:
        answered(store)
        deliver(store)
        write = store.blobs.write

        def written_then_purged(data: bytes) -> str:
            name = write(data)
            monkeypatch.setattr(store.blobs, "write", write)
            store.retention.purge(at(days(6)))
            return name

        monkeypatch.setattr(store.blobs, "write", written_then_purged)
        accept(store, number=1, seconds=days(6.5))
        job = claim(store, days(7))
        assert [store.blobs.read_instance(found) for found in job.instances]


def test_bytes_that_arrive_before_the_same_are_removed_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as store:
        answered(store)
        deliver(store)
        remove = store.retention._remove

        def arrived_then_removed(name: str) -> None:
            monkeypatch.setattr(store.retention, "_remove", remove)
            accept(store, number=1, seconds=days(6))
            accept(store, number=2, seconds=days(6))
            remove(name)

        monkeypatch.setattr(store.retention, "_remove", arrived_then_removed)
        store.retention.purge(at(days(6)))
        job = claim(store, days(7))
        assert len([store.blobs.read_instance(found) for found in job.instances]) == 2


def test_strays_go_with_the_images(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    stray = tmp_path / "unclaimed" / ("0" * 64)
    stray.write_bytes(b"set aside")
    with opened(tmp_path) as store:
        store.retention.purge(at(0))
        assert stray.exists()
        store.retention.purge(at(1e9))
        assert not stray.exists()


def test_for_ever_is_for_ever_and_nothing_is_at_once(tmp_path: Path) -> None:
    with opened(tmp_path / "kept", images_days=math.inf, results_days=math.inf) as store:
        answered(store)
        deliver(store)
        assert store.retention.purge(at(days(100_000))) == Purged()
    with opened(tmp_path / "gone", images_days=0.0, results_days=0.0) as store:
        answered(store)
        deliver(store)
        assert store.retention.purge(at(21)).files == 4


def test_a_store_full_of_settled_studies_is_emptied_step_by_step(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for number in range(45):
            answered(store, f"1.{number + 1}")
        deliver(store)
        while store.outbox.next_due("archive"):
            deliver(store)
        steps = []
        while not steps or steps[-1]:
            steps.append(store.retention.step(at(days(6))))
        assert files(tmp_path) == 0
        assert max(steps) <= 40
        due = store.retention.next_due()
        assert due is not None
        assert due > at(days(6))
        assert store.retention.step(at(days(6) + 1)) == 0


def audited(path: Path) -> Store:
    return opened(path, images_days=0.0, results_days=0.0, audited=True)


def test_what_the_audit_trail_has_still_to_tell_of_stays(tmp_path: Path) -> None:
    with audited(tmp_path) as store:
        store.audit.begin()
        answered(store)
        deliver(store)
        answered(store, "1.2", destination=None)
        assert store.retention.purge(at(21)) == Purged()  # no record made yet
        assert store.audit.gather(at(30))
        assert store.retention.purge(at(31)) == Purged()  # recorded, not told
        told = store.audit.pending(10)
        (first, *_) = [record.number for record in told if "1.1" in str(record.about)]
        store.audit.done(first)
        assert store.retention.purge(at(31)) == Purged()  # reception told, delivery not
        store.audit.done(told[-1].number)
        assert store.retention.purge(at(32)).files == 4
        assert store.retention.purge(at(33)) == Purged()


def test_a_purge_of_the_images_does_not_hold_up_that_of_the_results(tmp_path: Path) -> None:
    with opened(tmp_path, audited=True) as store:
        store.audit.begin()
        answered(store)
        deliver(store)
        store.audit.gather(at(30))
        store.audit.done(store.audit.pending(10)[-1].number)
        assert store.retention.purge(at(days(2.01))).files == 2
        assert store.retention.purge(at(days(5.01))).files == 2


def test_a_repository_that_is_gone_holds_files_with_a_warning_and_not_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with audited(tmp_path) as store:
        store.audit.begin()
        answered(store)
        deliver(store)
        store.audit.gather(at(30))
        assert store.retention.step(at(31)) == 0
        assert "purge-waits-for-audit" not in caplog.messages
        assert store.retention.step(at(days(6.9))) == 0
        (warning,) = [record for record in caplog.records if record.message == "purge-waits-for-audit"]
        assert (warning.levelname, warning.studies, warning.for_at_most_days) == ("WARNING", 1, 7.0)
        assert store.retention.step(at(days(7.1))) == 2
        told = [describe(event) for event in store.ledger.explain("1.1") if event.kind is EventKind.PURGED]
    assert len(told) == 2
    assert all(entry.endswith("still to be sent, and will not name the patient") for entry in told)
    assert files(tmp_path) == 0


def test_a_trail_that_was_switched_off_holds_nothing(tmp_path: Path) -> None:
    with audited(tmp_path) as store:
        store.audit.begin()
        answered(store)
        deliver(store)
    with opened(tmp_path, images_days=0.0, results_days=0.0) as store:
        assert store.retention.purge(at(21)).files == 4
        told = [describe(event) for event in store.ledger.explain("1.1") if event.kind is EventKind.PURGED]
    assert all(entry.endswith("0 day(s) after the study was settled") for entry in told)
