"""What the store counts while it works: each image once, in the transaction that ends it, and nothing with a name."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dicomnode.bundle.scores import SCORE_BOUNDS, score_bound, score_counts
from dicomnode.domain.answer import Stage, StudyAnswer
from dicomnode.domain.delivery import Accepted, NoAnswer, RetryPolicy
from dicomnode.domain.finding import ModelIdentity, Presence
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Job, JobState
from dicomnode.domain.routing import Route
from dicomnode.domain.summary import FindingSummary, ImageSummary, StudySummary
from dicomnode.store import Store
from dicomnode.store.counters import (
    ANALYSED,
    LATENCY_BOUNDS_S,
    MOST_CALLERS,
    OTHER_CALLERS,
    Waiting,
    WeeklyImages,
    week_of,
)
from dicomnode.store.engine.sqlite import Database, migrations
from dicomnode.store.operator import AllDead
from tests.support.stores import QUIET_S, accept, answer, at, claim, open_store, rejection_of_all, to

MODEL = ModelIdentity(name="m", version="1", bundle_hash="b" * 64)
WEEK = "2025-01-27"
"""The Monday before the tests' first day."""
COUNTS = ("weekly_image", "weekly_study", "weekly_score", "latency", "destination_counter")


def finding(
    label: str, probability: float, presence: Presence = Presence.ABSENT, threshold: float = 0.5
) -> FindingSummary:
    return FindingSummary(
        label=label,
        probability=probability,
        spread=0.01,
        presence=presence,
        operating_point="standard",
        threshold=threshold,
    )


def image_of(instance: StoredInstance, probability: float = 0.04) -> ImageSummary:
    return ImageSummary(
        sop_instance=instance.ref.sop_instance,
        abnormality=finding("Abnormal", 0.8, Presence.PRESENT),
        findings=(finding("Effusion", probability), finding("Mass", 0.55, Presence.UNDETERMINED)),
    )


def scored(job: Job) -> StudyAnswer:
    images = tuple(image_of(instance) for instance in job.instances)
    summary = StudySummary(study=job.study, model=MODEL, images=images)
    return replace(answer(job), summary=summary, seconds={Stage.DECODE: 0.2, Stage.INFER: 0.04, Stage.ENCODE: 700.0})


def answered(store: Store, study: str, seconds: float = 0.0, **more: Any) -> Job:
    accept(store, study, seconds=seconds, over=study, **more)
    job = claim(store, seconds + QUIET_S)
    store.inbox.finish(job, scored(job), to("PACS"), at(seconds + 3))
    return job


def test_a_week_is_named_by_its_monday_in_utc() -> None:
    assert week_of(datetime(2025, 2, 2, 23, 59, tzinfo=UTC)) == "2025-01-27"
    assert week_of(datetime(2025, 2, 3, tzinfo=UTC)) == "2025-02-03"
    assert week_of(datetime.fromisoformat("2025-02-03T00:30+02:00")) == "2025-01-27"


def test_a_score_is_in_the_bin_whose_upper_bound_is_the_next() -> None:
    assert score_bound(0.0) == 0.001
    assert score_bound(0.05) == 0.05
    assert score_bound(0.0500001) == 0.075
    assert score_bound(1.0) == 1.0
    counts = score_counts([0.0, 0.001, 0.96])
    assert (counts[0], counts[-1], sum(counts), len(counts)) == (2, 1, 3, len(SCORE_BOUNDS))


def test_images_are_counted_by_week_caller_and_end(store: Store) -> None:
    answered(store, "1.1")
    accept(store, "1.2", over="two", calling_ae="CT")
    job = claim(store, QUIET_S)
    store.inbox.finish(job, rejection_of_all(job), to("PACS"), at(7 * 86400))
    assert store.watching.images() == (
        WeeklyImages(week=WEEK, calling_ae="MODALITY", outcome=ANALYSED, images=1),
        WeeklyImages(week="2025-02-03", calling_ae="CT", outcome="lateral-view", images=1),
    )
    assert store.watching.operations().outcomes == {"answered": 1, "rejected": 1}


def test_an_image_is_counted_once_whatever_number_of_versions_speak_of_it(store: Store) -> None:
    answered(store, "1.1")
    accept(store, "1.1", 2, seconds=10)
    job = claim(store, 10 + QUIET_S)
    assert len(job.instances) == 2
    store.inbox.finish(job, scored(job), to("PACS"), at(13))
    (images,) = store.watching.images()
    assert images.images == 2
    effusion = next(entry for entry in store.watching.scores("b" * 64, "standard") if entry.label == "Effusion")
    assert effusion.images == 2


def test_other_content_of_the_same_image_is_another_image(store: Store) -> None:
    answered(store, "1.1")
    accept(store, "1.1", content=b"other", seconds=10)
    job = claim(store, 10 + QUIET_S)
    store.inbox.finish(job, scored(job), to("PACS"), at(13))
    assert sum(entry.images for entry in store.watching.images()) == 2


def test_an_answer_that_was_unrouted_at_first_is_counted_once(store: Store) -> None:
    accept(store)
    job = claim(store, QUIET_S)
    store.inbox.finish(job, scored(job), Route(recipients=(), unrouted=tuple(job.senders)), at(3))
    assert store.watching.operations().outcomes == {"dead": 1}
    store.ledger.retry(AllDead(), at(4))
    job = claim(store, 4)
    store.inbox.finish(job, scored(job), to("PACS"), at(5))
    assert store.watching.operations().outcomes == {"answered": 1, "dead": 1}
    assert sum(entry.images for entry in store.watching.images()) == 1


def test_finishing_twice_counts_once(store: Store) -> None:
    job = answered(store, "1.1")
    store.inbox.finish(job, scored(job), to("PACS"), at(9))
    operations = store.watching.operations()
    assert operations.outcomes == {"answered": 1}
    assert sum(operations.latencies[Stage.INFER].counts) == 1


def test_scores_are_counted_by_label_and_bin(store: Store) -> None:
    answered(store, "1.1")
    found = {entry.label: entry for entry in store.watching.scores("b" * 64, "standard")}
    assert set(found) == {"Abnormal", "Effusion", "Mass"}
    assert found["Effusion"].counts == score_counts([0.04])
    assert (found["Effusion"].above, found["Abnormal"].above, found["Mass"].above) == (0, 1, 1)
    assert (found["Mass"].undetermined, found["Effusion"].undetermined) == (1, 0)
    assert found["Effusion"].total == 0.04
    assert store.watching.scores("b" * 64, "youden") == ()
    assert store.watching.scores("c" * 64, "standard") == ()


def test_all_weeks_together_are_the_sum_of_the_weeks(store: Store) -> None:
    answered(store, "1.1")
    answered(store, "1.2", seconds=14 * 86400.0)
    (images,) = store.watching.image_totals()
    assert (images.images, len(store.watching.images())) == (2, 2)
    weekly, together = store.watching.scores("b" * 64, "standard"), store.watching.score_totals("b" * 64, "standard")
    assert (len(weekly), len(together)) == (6, 3)
    for entry in together:
        parts = [one for one in weekly if one.label == entry.label]
        assert entry.counts == tuple(map(sum, zip(*(one.counts for one in parts), strict=True)))
        assert (entry.above, entry.undetermined) == (
            sum(one.above for one in parts),
            sum(one.undetermined for one in parts),
        )


def test_a_peer_cannot_make_rows_without_end_by_changing_its_title(store: Store) -> None:
    for number in range(MOST_CALLERS + 3):
        answered(store, f"1.{number + 1}", seconds=10.0 * number, calling_ae=f"AE{number}")
    found = store.watching.images()
    assert len(found) == MOST_CALLERS + 1
    assert next(entry.images for entry in found if entry.calling_ae == OTHER_CALLERS) == 3
    answered(store, "2.1", seconds=5000, calling_ae="AE0")
    assert next(entry.images for entry in store.watching.images() if entry.calling_ae == "AE0") == 2


def test_latencies_are_the_times_of_the_books(store: Store) -> None:
    accept(store, seconds=0)
    accept(store, number=2, seconds=4)
    job = claim(store, 10)
    store.inbox.finish(job, scored(job), to("PACS"), at(12))
    latencies = store.watching.operations().latencies
    assert {stage: latency.seconds for stage, latency in latencies.items()} == {
        Stage.RECEIVE: 4.0,
        Stage.WAIT: 6.0,
        Stage.ANSWER: 8.0,
        Stage.DECODE: 0.2,
        Stage.INFER: 0.04,
        Stage.ENCODE: 700.0,
    }
    assert latencies[Stage.WAIT].counts[LATENCY_BOUNDS_S.index(10.0)] == 1
    assert latencies[Stage.ENCODE].counts[LATENCY_BOUNDS_S.index(1800.0)] == 1


def test_a_clock_that_is_set_back_gives_no_negative_latency(store: Store) -> None:
    accept(store, seconds=100)
    job = claim(store, 200)
    store.inbox.finish(job, scored(job), to("PACS"), at(50))
    assert store.watching.operations().latencies[Stage.ANSWER].seconds == 0.0


def test_a_latency_beyond_every_bound_is_in_the_last_bin(store: Store) -> None:
    accept(store)
    job = claim(store, 3e6)
    store.inbox.finish(job, scored(job), to("PACS"), at(3e6))
    assert store.watching.operations().latencies[Stage.WAIT].counts[-1] == 1


def test_attempts_tell_whether_a_destination_is_up(store: Store) -> None:
    answered(store, "1.1")
    first, second = store.outbox.claim("PACS", 10, at(5))
    assert store.watching.operations().destinations["PACS"].is_up is None
    store.outbox.record(first, NoAnswer(cause="refused"), at(7), RetryPolicy(), 0.5)
    store.outbox.record(second, NoAnswer(cause="no", permanent=True), at(8), RetryPolicy(), 0.5)
    figures = store.watching.operations().destinations["PACS"]
    assert (figures.is_up, figures.failed, figures.failures_in_row, figures.dead) == (False, 2, 2, 1)
    assert (figures.last_failed_at, figures.waiting.count, figures.waiting.since) == (at(8), 1, at(3))
    (again,) = store.outbox.claim("PACS", 10, at(3600))
    store.outbox.record(again, Accepted(), at(3603), RetryPolicy(), 0.5)
    operations = store.watching.operations()
    figures = operations.destinations["PACS"]
    assert (figures.is_up, figures.delivered, figures.failures_in_row) == (True, 1, 0)
    assert figures.last_delivered_at == at(3603)
    assert operations.latencies[Stage.SEND].seconds == 2 + 3 + 3
    assert operations.latencies[Stage.DELIVER].seconds == 3600


def test_what_waits_is_counted_by_state_with_the_age_of_the_oldest(store: Store) -> None:
    accept(store, "1.1", seconds=0, over="one")
    accept(store, "1.2", seconds=5, over="two")
    claim(store, QUIET_S)
    jobs = store.watching.operations().jobs
    assert (jobs[JobState.WORKING].since, jobs[JobState.COLLECTING].since) == (at(0), at(5))
    assert (jobs[JobState.WAITING].count, jobs[JobState.DEAD].since) == (0, None)
    assert store.watching.operations().waiting == Waiting(count=2, since=at(0))


def test_results_are_listed_once_each_in_order(store: Store) -> None:
    for number in range(3):
        answered(store, f"1.{number + 1}", seconds=10.0 * number)
    found = list(store.watching.results(at(0), at(20)))
    assert [entry.study for entry in found] == ["1.1", "1.2"]
    assert found[0].senders == ("MODALITY",)
    assert found[0].summary.images[0].labels()[1].probability == 0.04
    assert (found[0].received_at, found[0].ended_at, found[0].state) == (at(0), at(3), JobState.DONE)


def test_a_stored_summary_of_another_form_is_read_as_an_empty_one(store: Store, tmp_path: Path) -> None:
    answered(store, "1.1")
    with closing(sqlite3.connect(tmp_path / "store" / "store.db")) as connection, connection:
        connection.execute("UPDATE job SET summary = ?", ('{"images": 3}',))
    assert [entry.summary for entry in store.watching.results(at(0), at(20))] == [StudySummary()]


def test_the_counts_hold_no_study_no_image_and_no_patient(store: Store, tmp_path: Path) -> None:
    answered(store, "1.2.840.77")
    with closing(sqlite3.connect(tmp_path / "store" / "store.db")) as connection:
        for name in COUNTS:
            rows = connection.execute(f"SELECT * FROM {name}").fetchall()
            assert "1.2.840.77" not in repr(rows)


def test_what_an_older_store_holds_is_counted_as_it_would_have_been(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        answered(store, "1.1")
        answered(store, "1.2", seconds=10)
        accept(store, "1.3", over="three", seconds=20, calling_ae="CT")
        job = claim(store, 20 + QUIET_S)
        store.inbox.finish(job, rejection_of_all(job), to("PACS"), at(8 * 86400))
        accept(store, "1.1", 2, seconds=8 * 86400)
        for delivery in store.outbox.claim("PACS", 2, at(9 * 86400)):
            store.outbox.record(delivery, Accepted(), at(9 * 86400), RetryPolicy(), 0.5)
        counted = _counted(store)
    _back_to_before(tmp_path / "store" / "store.db")
    with open_store(tmp_path / "store") as store:
        assert _counted(store) == counted
        job = claim(store, 8 * 86400 + QUIET_S)
        store.inbox.finish(job, scored(job), to("PACS"), at(9 * 86400))
        assert sum(entry.images for entry in store.watching.images()) == 4, "only the late image is new"


def _counted(store: Store) -> tuple[object, ...]:
    operations = store.watching.operations()
    figures = operations.destinations["PACS"]
    return (
        store.watching.images(),
        store.watching.scores("b" * 64, "standard"),
        operations.outcomes,
        (figures.delivered, figures.failed, figures.last_delivered_at, figures.is_up),
    )


def _back_to_before(file: Path) -> None:
    """Make a store what it was before there were counts."""
    number = next(n for n, script in enumerate(migrations()) if "weekly_score" in script)
    with closing(sqlite3.connect(file)) as connection:
        for name in COUNTS:
            connection.execute(f"DROP TABLE {name}")
        connection.execute("DROP INDEX result_lost")
        for table, column in (
            ("instance", "counted"),
            ("delivery", "retry_requested_at"),
            ("commitment", "retry_requested_at"),
            ("result", "lost_at"),
        ):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute("ALTER TABLE event RENAME COLUMN former_text TO detail")
        connection.execute(f"PRAGMA user_version = {number}")
        connection.commit()
    assert not Database(file).is_current(migrations())
