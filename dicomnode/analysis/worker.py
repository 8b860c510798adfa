"""The worker: claims a study, has it answered, and finishes it in one transaction.

While no study is complete, incomplete ones are prepared, one step at a time. So a study that becomes complete waits for
one step at most. The worker is the step of a loop (`dicomnode.loop`).
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from dicomnode.analysis.look_ahead import PreparedAnswer
from dicomnode.domain.answer import RejectionReason, StudyAnswer, Wanted
from dicomnode.domain.errors import CxrNodeError, Permanent, Transient
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import ExpectedJob, Job
from dicomnode.domain.routing import Route, Routing
from dicomnode.settings.node import WorkSettings
from dicomnode.store.blobs.local import StagedBlob

log = logging.getLogger(__name__)

POLL_S = 0.25
"""The longest rest of the worker's loop: other processes change the store too (`cxrnode queue retry`)."""

Read = Callable[[StoredInstance], bytes]


class JobQueue(Protocol):
    """What the worker asks of the store."""

    def claim(self, now: datetime) -> Job | None:
        """Return a job that is due, now in work; None if none is due."""

    def next_due(self) -> datetime | None:
        """Return when the next study is due, if one is expected."""

    def expected(self, since: datetime) -> Sequence[ExpectedJob]:
        """Return incomplete versions whose images came after `since`, the one that is due first first."""

    def finish(
        self, job: Job, answer: StudyAnswer, route: Route, now: datetime, staged: Sequence[StagedBlob] = ()
    ) -> None:
        """Make the answer durable and close the job; without a route it becomes a dead letter."""

    def fail(self, job: Job, cause: str, retry_at: datetime | None, now: datetime) -> None:
        """Put the job back until `retry_at`, or close it as a dead letter."""


class Analysis(Protocol):
    """What the worker asks of the analysis."""

    def answer(self, job: Job, read: Read, now: datetime, wanted: Sequence[Wanted]) -> PreparedAnswer:
        """Answer a job with the sets of results that are wanted of it."""

    def discard(self, prepared: PreparedAnswer) -> None:
        """Remove what is still staged of an answer."""

    def prepare(
        self, expected: Sequence[ExpectedJob], read: Read, now: datetime, wanted_of: Callable[[Job], Sequence[Wanted]]
    ) -> bool:
        """Take one step for one of these versions, and tell whether one was left to take."""


class Worker:
    """Answers one study after the other. Used by one thread."""

    def __init__(
        self,
        *,
        jobs: JobQueue,
        read: Read,
        analysis: Analysis,
        routing: Routing,
        settings: WorkSettings,
        clock: Callable[[], datetime],
        answered: Callable[[], None],
    ) -> None:
        """`read` returns an instance's Part 10 bytes; `answered` is called when deliveries may be due."""
        self._jobs, self._read, self._analysis = jobs, read, analysis
        self._routing, self._settings = routing, settings
        self._clock, self._answered = clock, answered
        # An image that was there at the start may have ended the former run. It is not examined before its study is
        # claimed, since only claims count attempts.
        self._started_at = clock()
        # A failure that could not be written down, because the store failed too.
        self._unrecorded: tuple[Job, str, datetime | None] | None = None

    def step(self) -> int:
        """Answer one study, or prepare one if none is due; return 0 if there was nothing to do.

        Raises: StoreUnavailable.
        """
        return int(self.work_once() or self.prepare_once())

    def next_due(self) -> datetime | None:
        """Return when the next study is due, if one is expected. Raises: StoreUnavailable."""
        return self._jobs.next_due()

    def work_once(self) -> bool:
        """Answer one study if one is due; tell whether one was.

        Raises: StoreUnavailable, when not even a failure can be recorded; the next call records it.
        """
        self._record_failure()
        job = self._jobs.claim(self._clock())
        if job is None:
            return False
        try:
            route = self._routing.route(job.senders)
            prepared = self._analysis.answer(job, self._read, self._clock(), route.wanted())
            self._finish(job, prepared, route)
        except Permanent as error:
            log.exception("study-failed", extra={"study": job.study, "version": job.version, "cause": _cause(error)})
            self._fail(job, error, None)
        except Exception as error:  # noqa: BLE001 whatever fails, the study is not lost and the next one is answered
            self._try_later(job, error)
        else:
            self._report(job, prepared.answer, route)
        return True

    def prepare_once(self) -> bool:
        """Take a step for an incomplete study, if there is one to take; tell whether there was.

        Raises: StoreUnavailable, when the store cannot say which.
        """
        expected = self._jobs.expected(self._started_at)
        try:
            return self._analysis.prepare(expected, self._read, self._clock(), self._wanted_of)
        except Exception as error:  # the attempt after the claim fails in the same way, and is recorded
            log.warning("preparation-failed", exc_info=error)
            return True

    def _finish(self, job: Job, prepared: PreparedAnswer, route: Route) -> None:
        try:
            self._jobs.finish(job, prepared.answer, route, self._clock(), prepared.staged)
        finally:
            self._analysis.discard(prepared)

    def _wanted_of(self, job: Job) -> tuple[Wanted, ...]:
        return self._routing.route(job.senders).wanted()

    def _try_later(self, job: Job, error: Exception) -> None:
        # A full disk is not the study's fault: only a study whose own fault it may be is given up.
        last = not isinstance(error, Transient) and job.attempts >= self._settings.maximum_attempts
        retry_at = None if last else self._clock() + timedelta(seconds=self._settings.retry_delay_s)
        event = "study-failed" if last else "study-deferred"
        log.error(event, exc_info=error, extra={"study": job.study, "version": job.version, "attempt": job.attempts})
        self._fail(job, error, retry_at)

    def _fail(self, job: Job, error: Exception, retry_at: datetime | None) -> None:
        self._unrecorded = (job, _cause(error), retry_at)
        self._record_failure()

    def _record_failure(self) -> None:
        if self._unrecorded is not None:
            job, cause, retry_at = self._unrecorded
            self._jobs.fail(job, cause, retry_at, self._clock())
            self._unrecorded = None

    def _report(self, job: Job, answer: StudyAnswer, route: Route) -> None:
        log.info(
            "study-answered",
            extra={
                "study": job.study,
                "version": job.version,
                "results": len(answer.results),
                "rejections": [rejection.reason.value for rejection in answer.rejections],
                "destinations": [recipient.name for recipient in route.recipients],
            },
        )
        if any(rejection.reason is RejectionReason.PATIENT_MISMATCH for rejection in answer.rejections):
            log.error("patient-mismatch", extra={"study": job.study, "version": job.version})
        if route.unrouted and answer.results:
            log.error(
                "study-unrouted",
                extra={
                    "study": job.study,
                    "version": job.version,
                    "calling_ae": [sender.calling_ae for sender in route.unrouted],
                    "delivered_elsewhere": bool(route.recipients),
                },
            )
        self._answered()


def _cause(error: Exception) -> str:
    """Return a cause for the ledger. The node's own errors carry no patient data; of others only the class is named."""
    return f"{type(error).__name__}: {error}" if isinstance(error, CxrNodeError) else type(error).__name__
