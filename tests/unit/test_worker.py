"""The loop between inbox and outbox: every claimed study is finished, put back, or closed as a dead letter."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from dicomnode.domain.errors import BlobDamaged, DiskFull, StoreUnavailable
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Job, StudyAnswer
from dicomnode.settings import WorkSettings
from dicomnode.worker import Worker

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ANSWER = StudyAnswer(results=(), rejections=(), summary={})


def job(attempts: int = 1) -> Job:
    return Job(job_id=7, study="1.2.3", version=1, attempts=attempts, instances=())


class FakeInbox:
    def __init__(self, *jobs: Job) -> None:
        self.jobs = list(jobs)
        self.finished: list[tuple[Job, StudyAnswer, tuple[str, ...]]] = []
        self.failed: list[tuple[Job, str, datetime | None]] = []
        self.out_of_order = False

    def claim(self, now: datetime) -> Job | None:
        return self.jobs.pop(0) if self.jobs else None

    def finish(self, job: Job, answer: StudyAnswer, destinations: Sequence[str], now: datetime) -> None:
        self.finished.append((job, answer, tuple(destinations)))

    def fail(self, job: Job, cause: str, retry_at: datetime | None, now: datetime) -> None:
        if self.out_of_order:
            raise StoreUnavailable("disk gone")
        self.failed.append((job, cause, retry_at))


def worker(inbox: FakeInbox, answer: Callable[..., StudyAnswer], woken: list[bool] | None = None) -> Worker:
    return Worker(
        inbox=inbox,
        read=lambda instance: b"",
        answer=answer,
        destinations=["PACS"],
        settings=WorkSettings(maximum_attempts=3, retry_delay_s=10),
        clock=lambda: NOW,
        answered=lambda: (woken if woken is not None else []).append(True),
    )


def raising(error: Exception) -> Callable[..., StudyAnswer]:
    def answer(job: Job, read: Callable[[StoredInstance], bytes], now: datetime) -> StudyAnswer:
        raise error

    return answer


def test_an_answer_is_finished_for_every_destination_and_the_senders_are_woken() -> None:
    inbox, woken = FakeInbox(job()), []
    assert worker(inbox, lambda *_: ANSWER, woken).work_once()
    assert inbox.finished == [(job(), ANSWER, ("PACS",))]
    assert woken == [True]


def test_without_work_nothing_happens() -> None:
    assert not worker(FakeInbox(), lambda *_: ANSWER).work_once()


def test_a_passing_failure_is_tried_again_later() -> None:
    inbox = FakeInbox(job())
    worker(inbox, raising(StoreUnavailable("the database is busy"))).work_once()
    assert inbox.failed == [(job(), "StoreUnavailable: the database is busy", NOW + timedelta(seconds=10))]


def test_a_permanent_failure_is_a_dead_letter_at_once() -> None:
    inbox = FakeInbox(job())
    worker(inbox, raising(BlobDamaged("stored bytes changed"))).work_once()
    assert inbox.failed == [(job(), "BlobDamaged: stored bytes changed", None)]


def test_a_study_that_breaks_the_analysis_is_a_dead_letter_after_the_last_attempt() -> None:
    inbox = FakeInbox(job(attempts=3))
    worker(inbox, raising(ZeroDivisionError())).work_once()
    assert inbox.failed[0][2] is None


def test_a_study_is_not_given_up_for_a_full_disk() -> None:
    inbox = FakeInbox(job(attempts=99))
    worker(inbox, raising(DiskFull("below the configured free space"))).work_once()
    assert inbox.failed[0][2] == NOW + timedelta(seconds=10)


def test_the_cause_of_an_unknown_error_quotes_no_data(caplog: pytest.LogCaptureFixture) -> None:
    inbox = FakeInbox(job())
    worker(inbox, raising(ValueError("CANARY^NAME"))).work_once()
    assert inbox.failed[0][1] == "ValueError"


def test_a_failure_that_cannot_be_recorded_is_recorded_when_the_store_is_back() -> None:
    inbox = FakeInbox(job())
    inbox.out_of_order = True
    loop = worker(inbox, raising(StoreUnavailable("disk gone")))
    with pytest.raises(StoreUnavailable):
        loop.work_once()
    inbox.out_of_order = False
    loop.work_once()
    assert [(entry[0], entry[1]) for entry in inbox.failed] == [(job(), "StoreUnavailable: disk gone")]
