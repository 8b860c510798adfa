"""The loop between inbox and outbox: every claimed study is finished, put back, or closed as a dead letter."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicomnode.analysis.look_ahead import PreparedAnswer
from dicomnode.analysis.worker import Worker
from dicomnode.domain.answer import Rejection, RejectionReason, ResultInstance, ResultKind, StudyAnswer, Wanted
from dicomnode.domain.errors import BlobDamaged, DiskFull, StoreUnavailable
from dicomnode.domain.instance import InstanceRef, StoredInstance, StudySender
from dicomnode.domain.job import ExpectedJob, Job
from dicomnode.domain.routing import Recipient, Route, Routing, Rule
from dicomnode.loop import Loop
from dicomnode.settings.node import WorkSettings
from dicomnode.store.blobs.local import StagedBlob

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PACS, WEB = Recipient(name="PACS"), Recipient(name="WEB", outputs=frozenset({ResultKind.STRUCTURED_REPORT}))
ROUTING = Routing(recipients=(PACS, WEB), rules=(Rule(calling_ae="CT", destinations=("WEB",)),), default=("PACS",))
ANSWER = StudyAnswer(results=(), rejections=())


def job(attempts: int = 1, *senders: str) -> Job:
    who = frozenset(StudySender(calling_ae=title, called_ae="CXRNODE") for title in senders)
    return Job(job_id=7, study="1.2.3", version=1, attempts=attempts, instances=(), senders=who)


class FakeInbox:
    def __init__(self, *jobs: Job) -> None:
        self.jobs = list(jobs)
        self.finished: list[tuple[Job, StudyAnswer, Route]] = []
        self.failed: list[tuple[Job, str, datetime | None]] = []
        self.out_of_order = self.is_full = False
        self.staged: list[StagedBlob] = []
        self.incomplete: tuple[ExpectedJob, ...] = ()
        self.asked_since: list[datetime] = []

    def next_due(self) -> datetime | None:
        return None

    def expected(self, since: datetime) -> tuple[ExpectedJob, ...]:
        self.asked_since.append(since)
        return self.incomplete

    def claim(self, now: datetime) -> Job | None:
        return self.jobs.pop(0) if self.jobs else None

    def finish(
        self, job: Job, answer: StudyAnswer, route: Route, now: datetime, staged: Sequence[StagedBlob] = ()
    ) -> None:
        if self.is_full:
            raise DiskFull("below the configured free space")
        self.finished.append((job, answer, route))
        self.staged += staged

    def fail(self, job: Job, cause: str, retry_at: datetime | None, now: datetime) -> None:
        if self.out_of_order:
            raise StoreUnavailable("disk gone")
        self.failed.append((job, cause, retry_at))


class FakeAnalysis:
    """Answers and prepares by two functions; remembers what is discarded."""

    def __init__(
        self, answer: Callable[..., StudyAnswer], prepare: Callable[..., bool], staged: tuple[StagedBlob, ...]
    ) -> None:
        self.answers, self.prepare, self.staged = answer, prepare, staged
        self.discarded: list[StagedBlob] = []

    def answer(
        self, job: Job, read: Callable[[StoredInstance], bytes], now: datetime, wanted: Sequence[Wanted]
    ) -> PreparedAnswer:
        return PreparedAnswer(answer=self.answers(job, read, now, wanted), staged=self.staged)

    def discard(self, prepared: PreparedAnswer) -> None:
        self.discarded += prepared.staged


def worker(
    inbox: FakeInbox,
    answer: Callable[..., StudyAnswer],
    woken: list[bool] | None = None,
    routing: Routing = ROUTING,
    prepare: Callable[..., bool] = lambda *_: False,
) -> Worker:
    return Worker(
        jobs=inbox,
        read=lambda instance: b"",
        analysis=FakeAnalysis(answer, prepare, ()),
        routing=routing,
        settings=WorkSettings(maximum_attempts=3, retry_delay_s=10),
        clock=lambda: NOW,
        answered=lambda: (woken if woken is not None else []).append(True),
    )


def raising(error: Exception) -> Callable[..., StudyAnswer]:
    def answer(
        job: Job, read: Callable[[StoredInstance], bytes], now: datetime, wanted: Sequence[Wanted]
    ) -> StudyAnswer:
        raise error

    return answer


def test_an_answer_is_finished_for_its_route_and_the_senders_are_woken() -> None:
    inbox, woken = FakeInbox(job()), []
    assert worker(inbox, lambda *_: ANSWER, woken).work_once()
    assert inbox.finished == [(job(), ANSWER, Route(recipients=(PACS,)))]
    assert woken == [True]


@pytest.mark.parametrize(
    ("senders", "names", "wanted"),
    [
        (("CT",), ["WEB"], (Wanted(outputs=frozenset({ResultKind.STRUCTURED_REPORT})),)),
        (("CT", "MR"), ["PACS", "WEB"], (Wanted(),)),
    ],
)
def test_what_is_made_is_what_the_studys_destinations_want(
    senders: tuple[str, ...], names: list[str], wanted: tuple[Wanted, ...]
) -> None:
    inbox, asked = FakeInbox(job(1, *senders)), []

    def answer(job: Job, read: object, now: datetime, wanted: Sequence[Wanted]) -> StudyAnswer:
        asked.append(wanted)
        return ANSWER

    worker(inbox, answer).work_once()
    assert asked == [wanted]
    assert [recipient.name for recipient in inbox.finished[0][2].recipients] == names


def test_a_study_without_a_route_is_an_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    inbox = FakeInbox(job(1, "STRANGER"))
    ref = InstanceRef(study="1.2.3", series="1", sop_class="1", sop_instance="1")
    made = ResultInstance(ref=ref, kind=ResultKind.STRUCTURED_REPORT, transfer_syntax="1", part10=b"", derived_from=())
    answer = StudyAnswer(results=(made,), rejections=())
    worker(inbox, lambda *_: answer, routing=replace(ROUTING, default=())).work_once()
    (record,) = [record for record in caplog.records if record.message == "study-unrouted"]
    assert (record.levelname, record.calling_ae, record.delivered_elsewhere) == ("ERROR", ["STRANGER"], False)


def test_a_study_of_two_patients_is_an_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    ref = InstanceRef(study="1.2.3", series="1.2.4", sop_class="1.2.5", sop_instance="1.2.6")
    rejection = Rejection(source=ref, reason=RejectionReason.PATIENT_MISMATCH, detail="they differ")
    inbox = FakeInbox(job())
    worker(inbox, lambda *_: replace(ANSWER, rejections=(rejection,))).work_once()
    assert len(inbox.finished) == 1
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["patient-mismatch"]


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


def test_incomplete_studies_that_came_since_the_start_are_prepared_for_their_destinations() -> None:
    inbox, given = FakeInbox(), []
    inbox.incomplete = (ExpectedJob(job=job(1, "CT"), is_quiet=True),)

    def prepare(
        expected: Sequence[ExpectedJob], read: object, now: datetime, wanted_of: Callable[[Job], Sequence[Wanted]]
    ) -> bool:
        given.append((expected, now, wanted_of(expected[0].job)))
        return True

    assert worker(inbox, lambda *_: ANSWER, prepare=prepare).prepare_once()
    assert given == [(inbox.incomplete, NOW, (Wanted(outputs=WEB.outputs),))]
    assert inbox.asked_since == [NOW]


def test_a_failing_preparation_is_told_and_costs_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def prepare(*_: object) -> bool:
        raise ValueError("CANARY^NAME")

    assert worker(FakeInbox(), lambda *_: ANSWER, prepare=prepare).prepare_once()
    assert [record.message for record in caplog.records] == ["preparation-failed"]


def test_a_complete_study_comes_before_the_next_image_to_prepare() -> None:
    inbox, order = FakeInbox(job()), []

    def answer(*_: object) -> StudyAnswer:
        order.append("answer")
        return ANSWER

    def prepare(*_: object) -> bool:
        order.append("prepare")
        if order.count("prepare") == 1:
            inbox.jobs.append(job())
        return order.count("prepare") < 2

    working = worker(inbox, answer, prepare=prepare)
    assert [working.step() for _ in range(4)] == [1, 1, 1, 0]
    assert order == ["answer", "prepare", "answer", "prepare"]


@pytest.mark.parametrize("is_full", [False, True])
def test_staged_results_are_handed_to_the_store_and_discarded_whatever_comes_of_it(is_full: bool) -> None:
    inbox, staged = FakeInbox(job()), (StagedBlob(name="ab" * 32, path=Path("ab.part")),)
    inbox.is_full = is_full
    analysis = FakeAnalysis(lambda *_: ANSWER, lambda *_: False, staged)
    Worker(
        jobs=inbox,
        read=lambda instance: b"",
        analysis=analysis,
        routing=ROUTING,
        settings=WorkSettings(),
        clock=lambda: NOW,
        answered=lambda: None,
    ).step()
    assert inbox.staged == ([] if is_full else list(staged))
    assert analysis.discarded == list(staged)


def test_a_worker_that_is_woken_looks_at_once() -> None:
    inbox, rested, done = FakeInbox(), threading.Event(), threading.Event()

    def answer(*_: object) -> StudyAnswer:
        done.set()
        return ANSWER

    def prepare(*_: object) -> bool:
        rested.set()
        return False

    working = worker(inbox, answer, prepare=prepare)
    loop = Loop("worker", working.step, working.next_due, clock=lambda: NOW, about={}, poll_s=3600.0)
    loop.start()
    assert rested.wait(60)
    inbox.jobs.append(job())
    loop.wake()
    assert done.wait(60)
    assert loop.stop(drain_s=None)
