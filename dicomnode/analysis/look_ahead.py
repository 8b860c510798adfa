"""Work ahead: what can be done for a study that is not complete yet is done while the node waits for the rest.

Images are examined as they arrive; once nobody who sends a study is connected any more, its answer is written as if it
were complete, and its results are staged in the store. If it is claimed as it was foreseen, that is its answer; if
another image came, only the writing is done again. What is found depends on nothing but the study, the pipeline and the
time that it bears, so an answer says the same with and without it, and a crash loses only time. Used by one thread.

One image at a time: in a batch of eight an image is read in 0.6 to 0.9 of the time, of which most runs gain some 5 ms
beside the 200 that a study takes, and studies would wait for each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from dicomnode.analysis.examination import AnalysedImage, Examination
from dicomnode.analysis.pipeline import Pipeline
from dicomnode.domain.answer import StudyAnswer, Wanted
from dicomnode.domain.delivery import Expected
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Job

Read = Callable[[StoredInstance], bytes]

_ENOUGH_BYTES = 128 << 20
"""Nothing further is begun beyond this: six radiographs of 10 MB as frames, more than come in one quiet time."""


class Staging(Protocol):
    """Where results lie that may be wanted soon."""

    def stage(self, data: bytes) -> str:
        """Write bytes beforehand and return the name that they will have. Raises: DiskFull, StoreUnavailable."""

    def unstage(self, name: str) -> None:
        """Remove them, unless they were written since."""


@dataclass(slots=True, kw_only=True)
class _Foreseen:
    """What the answer to a job will be, if it is claimed as it was then; None: it could not be written."""

    job: Job
    wanted: tuple[Wanted, ...]
    answer: StudyAnswer | None = None
    staged: list[str] = field(default_factory=list)

    def is_of(self, job: Job, wanted: Sequence[Wanted]) -> bool:
        return self.job == job and self.wanted == tuple(wanted)


class WorkAhead:
    """A pipeline that may know some of the answer beforehand, or all of it."""

    def __init__(self, pipeline: Pipeline, staging: Staging, *, enough_bytes: int = _ENOUGH_BYTES) -> None:
        """`enough_bytes`: what frames and results may hold before the next step waits for its study."""
        self._pipeline, self._staging, self._enough_bytes = pipeline, staging, enough_bytes
        self._held: dict[StoredInstance, Examination] = {}
        self._tried: set[StoredInstance] = set()
        self._foreseen: dict[int, _Foreseen] = {}

    def answer(self, job: Job, read: Read, now: datetime, wanted: Sequence[Wanted]) -> StudyAnswer:
        """Answer as `Pipeline.answer` does, in less time for everything that was done before."""
        foreseen = self._foreseen.pop(job.job_id, None)
        if foreseen is not None:
            if foreseen.answer is not None and foreseen.is_of(job, wanted):
                for instance in job.instances:
                    self._held.pop(instance, None)
                return foreseen.answer
            self._unstage(foreseen)
        examinations = [self._take(instance, read) for instance in job.instances]
        return self._pipeline.conclude(job, examinations, now, wanted)

    def prepare(
        self,
        expected: Sequence[Expected],
        read: Read,
        now: datetime,
        wanted_of: Callable[[Job], Sequence[Wanted]],
    ) -> bool:
        """Take the next step for these, if any is left, and tell so; forget what is not among them.

        A step is to examine an image, or to write the answer to a study whose images are all examined.
        Raises: whatever `read` and `stage` raise; the rest then waits for the claim of its study.
        """
        self._keep_only([entry.job for entry in expected])
        for entry in expected:
            if self.held_bytes >= self._enough_bytes:
                return False
            image = next((instance for instance in entry.job.instances if instance not in self._tried), None)
            if image is not None:
                self._examine(image, read)
                return True
            if entry.is_quiet and self._foresee(entry.job, now, tuple(wanted_of(entry.job))):
                return True
        return False

    def _examine(self, image: StoredInstance, read: Read) -> None:
        self._tried.add(image)
        examination = self._pipeline.examine(image, read(image))
        if _frame_bytes(examination) <= self._enough_bytes:
            self._held[image] = examination

    def _foresee(self, job: Job, now: datetime, wanted: tuple[Wanted, ...]) -> bool:
        """Write the answer to a study, unless that was tried or an image of it is not held; tell whether it was."""
        former = self._foreseen.get(job.job_id)
        if (former is not None and former.is_of(job, wanted)) or not self._held.keys() >= set(job.instances):
            return False
        if former is not None:
            self._unstage(former)
        foreseen = self._foreseen[job.job_id] = _Foreseen(job=job, wanted=wanted)
        answer = self._pipeline.conclude(job, [self._held[instance] for instance in job.instances], now, wanted)
        for result in answer.results:
            foreseen.staged.append(self._staging.stage(result.part10))
        foreseen.answer = answer
        return True

    def _unstage(self, foreseen: _Foreseen) -> None:
        for name in foreseen.staged:
            self._staging.unstage(name)

    def _keep_only(self, jobs: Sequence[Job]) -> None:
        expected = {instance for job in jobs for instance in job.instances}
        self._held = {instance: found for instance, found in self._held.items() if instance in expected}
        self._tried &= expected
        for number in self._foreseen.keys() - {job.job_id for job in jobs}:
            self._unstage(self._foreseen.pop(number))

    def _take(self, instance: StoredInstance, read: Read) -> Examination:
        if instance in self._held:
            return self._held.pop(instance)
        return self._pipeline.examine(instance, read(instance))

    @property
    def held_bytes(self) -> int:
        """Return what is held by frames that wait for their study, and by results that wait for its claim."""
        answers = (foreseen.answer for foreseen in self._foreseen.values() if foreseen.answer is not None)
        written = sum(len(result.part10) for answer in answers for result in answer.results)
        return written + sum(_frame_bytes(examination) for examination in self._held.values())


def _frame_bytes(examination: Examination) -> int:
    return examination.frame.pixels.nbytes if isinstance(examination, AnalysedImage) else 0
