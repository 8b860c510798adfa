"""Any order of arrivals, claims, answers, failures, restarts, deliveries, operators and purges keeps the balance."""

import shutil
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dicomnode.domain.answer import Rejection, RejectionReason, ResultKind, StudyAnswer
from dicomnode.domain.delivery import Accepted, DeliveryState, NoAnswer, Refused, RetryPolicy, StoreOutcome
from dicomnode.domain.job import Job, JobState
from dicomnode.store import Store
from dicomnode.store.blob_references import NAMES
from dicomnode.store.blobs.local import SystemCalls, is_acknowledged
from dicomnode.store.events import EventKind
from dicomnode.store.operator import AllDead, OfStudy, OneJob, Selection
from dicomnode.store.reception import ReceiptKind
from tests.support.stores import accept, answer, at, image, open_store, part10, result, to

STUDIES = st.sampled_from(["1.1", "1.2"])
NUMBERS = st.integers(1, 3)
CONTENTS = st.sampled_from([b"first", b"second"])
ASSOCIATIONS = st.sampled_from(["one", "two"])
DESTINATIONS = st.sampled_from([(), ("PACS",), ("PACS", "ARCHIVE")])
OUTCOMES: st.SearchStrategy[StoreOutcome] = st.sampled_from(
    [
        Accepted(),
        Accepted(warning=0xB007),
        Refused(status=0xA900, cause="A900H", permanent=True),
        Refused(status=0xA700, cause="A700H", permanent=False),
        NoAnswer(cause="connection refused"),
    ]
)
POLICY = RetryPolicy(first_delay_s=10, max_delay_s=100, give_up_after_s=1000)
OPEN = {JobState.COLLECTING, JobState.WAITING}
OWING = OPEN | {JobState.WORKING, JobState.DEAD}
ANSWERED = {JobState.DONE, JobState.REJECTED}
SENT = {DeliveryState.DELIVERED}
MAXIMUM_ATTEMPTS = 3
# The test is of states, not of disks: memory makes it some ten times faster.
MEMORY = Path("/dev/shm")

Contents = dict[str, bytes]
"""SOP Instance UID → the bytes the store promised last."""


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.seconds = 0.0
        self.received = 0
        self.contents: dict[str, Contents] = {"1.1": {}, "1.2": {}}
        self.working: dict[int, Job] = {}
        self.answered: dict[tuple[str, int], Contents] = {}
        self.reports: dict[tuple[str, int], str] = {}
        self.opened = self._open()

    def _open(self) -> Store:
        return open_store(self.folder / "store", calls=SystemCalls(fsync=lambda _: None))

    @rule(name=ASSOCIATIONS)
    def an_association_opens(self, name: str) -> None:
        self.opened.reception.association_opened(name, at(self.seconds))

    @rule(name=ASSOCIATIONS)
    def an_association_ends(self, name: str) -> None:
        self.opened.reception.association_released(name, at(self.seconds))

    @rule(study=STUDIES, number=NUMBERS, content=CONTENTS, over=ASSOCIATIONS)
    def an_image_arrives(self, study: str, number: int, content: bytes, over: str) -> None:
        kind = accept(self.opened, study, number, content=content, seconds=self.seconds, over=over).kind
        uid, sent = image(study, number).sop_instance, part10(image(study, number), content)
        former = self.contents[study].get(uid)
        expected = {None: ReceiptKind.NEW, sent: ReceiptKind.DUPLICATE}.get(former, ReceiptKind.REPLACED)
        assert kind is expected
        self.received += kind is not ReceiptKind.DUPLICATE
        self.contents[study][uid] = sent

    @rule(seconds=st.sampled_from([1.0, 3.0, 30.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.seconds += seconds

    @rule()
    def a_study_is_claimed(self) -> None:
        self._claim()

    def _claim(self) -> Job | None:
        job = self.opened.inbox.claim(at(self.seconds))
        if job is None:
            return None
        assert job.study not in {busy.study for busy in self.working.values()}
        assert self._bytes_of(job) == self.contents[job.study], "a version speaks of everything the study holds"
        former = [self.reports[key] for key in sorted(self.reports) if key[0] == job.study and key[1] < job.version]
        assert [ref.sop_instance for ref in job.predecessors] == former[-1:]
        self.working[job.job_id] = job
        return job

    def _bytes_of(self, job: Job) -> Contents:
        return {stored.ref.sop_instance: self.opened.blobs.read_instance(stored) for stored in job.instances}

    @precondition(lambda self: self.working)
    @rule(rejected=st.sampled_from(["none", "first", "all"]), destinations=DESTINATIONS, pick=st.integers(0, 1))
    def a_study_is_answered(self, rejected: str, destinations: tuple[str, ...], pick: int) -> None:
        job = self._pick(pick)
        self._finish(job, given(job, rejected), destinations)

    def _finish(self, job: Job, said: StudyAnswer, destinations: tuple[str, ...]) -> None:
        contents, delivered = self._bytes_of(job), self._delivered(job.study)
        self.opened.inbox.finish(job, said, to(*destinations), at(self.seconds))
        assert delivered <= self._delivered(job.study), "what was delivered is not sent again"
        self.answered[job_key(job)] = contents
        for made in said.results:
            if made.kind is ResultKind.STRUCTURED_REPORT:
                self.reports[job_key(job)] = made.ref.sop_instance

    def _pick(self, pick: int) -> Job:
        chosen = sorted(self.working)[pick % len(self.working)]
        return self.working.pop(chosen)

    @precondition(lambda self: self.working)
    @rule(again_in=st.sampled_from([None, 0.0, 20.0]), pick=st.integers(0, 1))
    def a_study_fails(self, again_in: float | None, pick: int) -> None:
        retry_at = None if again_in is None else at(self.seconds + again_in)
        self.opened.inbox.fail(self._pick(pick), "StoreUnavailable", retry_at, at(self.seconds))

    @rule()
    def the_node_is_killed_and_starts_again(self) -> None:
        self.opened.close()
        self.working.clear()
        self.opened = self._open()
        self.opened.inbox.recover(at(self.seconds), maximum_attempts=MAXIMUM_ATTEMPTS)

    @rule(destination=st.sampled_from(["PACS", "ARCHIVE"]), outcome=OUTCOMES, limit=st.integers(1, 4))
    def results_are_sent(self, destination: str, outcome: StoreOutcome, limit: int) -> None:
        for delivery in self.opened.outbox.claim(destination, limit, at(self.seconds)):
            assert self.opened.outbox.read(delivery)
            self.opened.outbox.record(delivery, outcome, at(self.seconds), POLICY, 0.5)

    @rule(destination=st.sampled_from(["PACS", "ARCHIVE"]))
    def a_batch_is_begun_and_never_ended(self, destination: str) -> None:
        self.opened.outbox.claim(destination, 1, at(self.seconds))

    @rule(study=STUDIES, whole=st.booleans(), pick=st.integers(0, 5))
    def an_operator_retries(self, study: str, whole: bool, pick: int) -> None:
        for selection in self._selection(study, whole, pick):
            self.opened.ledger.retry(selection, at(self.seconds))

    @rule(study=STUDIES, whole=st.booleans(), pick=st.integers(0, 5))
    def an_operator_drops(self, study: str, whole: bool, pick: int) -> None:
        for selection in self._selection(study, whole, pick):
            self.opened.ledger.drop(selection, at(self.seconds))

    @rule(study=STUDIES)
    def an_operator_has_a_study_analysed_again(self, study: str) -> None:
        states = [entry.state for entry in self.opened.ledger.jobs_of(study)]
        if not states:
            return
        delivered = self._delivered(study)
        asked = self.opened.ledger.analyse_again(study, "anna", at(self.seconds))
        is_finished = states[-1] in ANSWERED and not (OPEN | {JobState.WORKING}) & set(states)
        assert (asked.version is not None) is (is_finished and bool(self.contents[study])), asked.why_not
        expected = [*states, JobState.WAITING] if asked.version is not None else states
        assert [entry.state for entry in self.opened.ledger.jobs_of(study)] == expected
        assert self._delivered(study) == delivered

    def _delivered(self, study: str) -> set[tuple[str, str, int]]:
        entries = self.opened.ledger.deliveries_of(study)
        return {(one.sop_instance, one.destination, one.attempts) for one in entries if one.state in SENT}

    @rule(days=st.sampled_from([8, 31]))
    def what_is_settled_is_purged(self, days: int) -> None:
        before = {study: self._purges(study) for study in self.contents}
        self.opened.retention.purge(at(self.seconds + days * 86_400))
        for study, contents in self.contents.items():
            if self._purges(study) == before[study]:
                continue
            assert not {entry.state for entry in self.opened.ledger.jobs_of(study)} & OWING, "an answer is owed"
            states = {entry.state for entry in self.opened.ledger.deliveries_of(study)}
            assert states <= {DeliveryState.DELIVERED, DeliveryState.DROPPED}
            contents.clear()

    def _purges(self, study: str) -> int:
        if not self.opened.ledger.jobs_of(study):
            return 0
        return sum(event.kind is EventKind.PURGED for event in self.opened.ledger.explain(study))

    def _selection(self, study: str, whole: bool, pick: int) -> list[Selection]:
        jobs = self.opened.ledger.jobs_of(study)
        if not jobs:
            return [AllDead()]
        return [OfStudy(study=study)] if whole else [OneJob(job_id=jobs[pick % len(jobs)].job_id)]

    @invariant()
    def every_image_has_exactly_one_fate(self) -> None:
        balance = self.opened.ledger.balance()
        counted = [balance.pending, balance.answered, balance.rejected, balance.dead, balance.dropped, balance.replaced]
        assert sum(counted) == self.received
        assert balance.unaccounted == 0

    @invariant()
    def every_file_is_named_by_a_row_and_every_acknowledged_image_is_marked(self) -> None:
        files = [file for file in (self.folder / "store" / "blobs").rglob("*") if file.is_file()]
        with self.opened.watching._database.reading() as connection:
            named = {row["blob"] for row in connection.execute(NAMES)}
            images = {row["blob"] for row in connection.execute("SELECT blob FROM instance WHERE purged_at IS NULL")}
        assert {file.name for file in files} == named
        assert {file.name for file in files if is_acknowledged(file)} >= images

    @invariant()
    def what_has_its_fate_is_counted_once(self) -> None:
        with self.opened.watching._database.reading() as connection:
            counted, missed = connection.execute(
                "SELECT SUM(counted), SUM(fate IN ('answered', 'rejected') AND NOT counted) FROM instance"
            ).fetchone()
        assert sum(entry.images for entry in self.opened.watching.images()) == (counted or 0)
        assert not missed

    @invariant()
    def a_study_has_one_version_to_come_and_one_in_work_at_most(self) -> None:
        for study in self.contents:
            states = [entry.state for entry in self.opened.ledger.jobs_of(study)]
            assert sum(state in OPEN for state in states) <= 1
            assert states.count(JobState.WORKING) == sum(job.study == study for job in self.working.values())

    @invariant()
    def no_destination_gets_an_object_twice(self) -> None:
        deliveries = self.opened.ledger.deliveries(list(DeliveryState), limit=10_000)
        pairs = Counter((entry.sop_instance, entry.destination) for entry in deliveries)
        assert all(count == 1 for count in pairs.values())

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        try:
            self._drain()
        finally:
            self.opened.close()
            shutil.rmtree(self.folder)

    def _drain(self) -> None:
        """Let everything run to its end: nothing may be left over."""
        self.the_node_is_killed_and_starts_again()
        self.seconds += 10_000
        while (job := self._claim()) is not None:
            del self.working[job.job_id]
            self._finish(job, answer(job), ("PACS",))
        for destination in ("PACS", "ARCHIVE"):
            for delivery in self.opened.outbox.claim(destination, 10_000, at(self.seconds)):
                self.opened.outbox.record(delivery, Accepted(), at(self.seconds), POLICY, 0.5)
        assert self.opened.ledger.balance().pending == 0
        self.every_image_has_exactly_one_fate()
        for study, contents in self.contents.items():
            newest = self.opened.ledger.jobs_of(study)[-1:]
            if contents and [entry.state in ANSWERED for entry in newest] == [True]:
                assert self.answered[study, newest[0].version] == contents, "the last answer is about what is held"


def job_key(job: Job) -> tuple[str, int]:
    return job.study, job.version


def given(job: Job, rejected: str) -> StudyAnswer:
    """Answer a job, rejecting none, the first or all of its images."""
    count = {"none": 0, "first": 1, "all": len(job.instances)}[rejected]
    rejections = tuple(
        Rejection(source=stored.ref, reason=RejectionReason.TOO_SMALL, detail="too small")
        for stored in job.instances[:count]
    )
    rest = tuple(stored.ref.sop_instance for stored in job.instances[count:])
    results = (result(job, ResultKind.STRUCTURED_REPORT, rest),) if rest else ()
    return StudyAnswer(results=results, rejections=rejections)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
