"""The loop from inbox to outbox: claim a study, answer it, finish it in one transaction.

While no study is complete, incomplete ones are prepared, a step at a time, so that a study that becomes complete waits
for one step at most.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from dicomnode.domain.answer import RejectionReason, StudyAnswer, Wanted
from dicomnode.domain.delivery import Expected
from dicomnode.domain.errors import CxrNodeError, Permanent, Transient
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Job
from dicomnode.domain.routing import Route, Routing
from dicomnode.settings.node import WorkSettings

log = logging.getLogger(__name__)

_POLL_S = 0.25
"""Longest wait until the inbox is asked again: other processes change the store too (`cxrnode queue retry`)."""
_LEAST_POLL_S = 0.02


class Inbox(Protocol):
    """The part of the store's inbox that the worker uses."""

    def claim(self, now: datetime) -> Job | None:
        """Return a job that is due, now in work."""

    def next_due(self) -> datetime | None:
        """Return when the next study is due, if one is expected."""

    def expected(self, since: datetime) -> Sequence[Expected]:
        """Return incomplete versions whose images came `since` then, the one that is due first first."""

    def finish(self, job: Job, answer: StudyAnswer, route: Route, now: datetime) -> None:
        """Make the answer durable and close the job; without a route it is a dead letter."""

    def fail(self, job: Job, cause: str, retry_at: datetime | None, now: datetime) -> None:
        """Put the job back until `retry_at`, or close it as a dead letter."""


Read = Callable[[StoredInstance], bytes]
Answer = Callable[[Job, Read, datetime, Sequence[Wanted]], StudyAnswer]
Prepare = Callable[[Sequence[Expected], Read, datetime, Callable[[Job], Sequence[Wanted]]], bool]


class Worker:
    """Answers studies one after the other on a thread of its own."""

    def __init__(
        self,
        *,
        inbox: Inbox,
        read: Read,
        answer: Answer,
        prepare: Prepare,
        routing: Routing,
        settings: WorkSettings,
        clock: Callable[[], datetime],
        answered: Callable[[], None],
    ) -> None:
        """`read` gives an instance's Part 10 bytes; `answered` is called when deliveries may be due.

        `prepare` takes one step for one of the versions it is given, if any is left to take, and tells whether it was.
        """
        self._inbox, self._read, self._answer, self._prepare = inbox, read, answer, prepare
        self._routing, self._settings = routing, settings
        self._clock, self._answered = clock, answered
        # What is there at the start may have ended the last run: it waits for its claim, which counts attempts.
        self._started_at = clock()
        # A failure that could not be written down: the store was in trouble too.
        self._unrecorded: tuple[Job, str, datetime | None] | None = None
        self._stopping, self._woken = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the thread is alive."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Look at the inbox now rather than at the next poll."""
        self._woken.set()

    def stop(self) -> None:
        """Finish the study at hand, then end."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()

    def work_once(self) -> bool:
        """Answer one study if one is due; tell whether there was one.

        Raises: StoreUnavailable, when not even a failure can be recorded; the next call records it.
        """
        self._record_failure()
        job = self._inbox.claim(self._clock())
        if job is None:
            return False
        try:
            route = self._routing.route(job.senders)
            answer = self._answer(job, self._read, self._clock(), route.wanted())
            self._inbox.finish(job, answer, route, self._clock())
        except Permanent as error:
            log.exception("study-failed", extra={"study": job.study, "version": job.version, "cause": _cause(error)})
            self._fail(job, error, None)
        except Exception as error:  # noqa: BLE001 whatever breaks, the study is not lost and the loop goes on
            self._try_later(job, error)
        else:
            self._report(job, answer, route)
        return True

    def prepare_once(self) -> bool:
        """Take a step for an incomplete study, if there is one to take; tell whether there was.

        Raises: StoreUnavailable, when the store cannot say which.
        """
        expected = self._inbox.expected(self._started_at)
        try:
            return self._prepare(expected, self._read, self._clock(), self._wanted_of)
        except Exception as error:  # the claim will meet it again, and deal with it
            log.warning("preparation-failed", exc_info=error)
            return True

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause_s = _POLL_S
            try:
                if self.work_once() or self.prepare_once():
                    continue
                pause_s = self._until_due_s()
            except CxrNodeError as error:  # the store itself is in trouble; nothing is lost while it is
                log.exception("store-failed", extra={"cause": _cause(error)})
            self._woken.wait(pause_s)
            self._woken.clear()

    def _wanted_of(self, job: Job) -> tuple[Wanted, ...]:
        return self._routing.route(job.senders).wanted()

    def _until_due_s(self) -> float:
        due = self._inbox.next_due()
        if due is None:
            return _POLL_S
        return min(max((due - self._clock()).total_seconds(), _LEAST_POLL_S), _POLL_S)

    def _try_later(self, job: Job, error: Exception) -> None:
        # A full disk says nothing against the study: only what may be its own fault is ever given up.
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
            self._inbox.fail(job, cause, retry_at, self._clock())
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
    """Return a cause for the ledger: the node's own errors carry no patient data, others may, so only their class."""
    return f"{type(error).__name__}: {error}" if isinstance(error, CxrNodeError) else type(error).__name__
