"""Work ahead: images of studies that are not complete yet are examined while the node waits for the rest.

What is found is kept in memory alone. It depends on nothing but the image and the pipeline, so an answer is the same
with and without it, and a crash loses only time. Used by one thread.

One image at a time: in a batch of eight an image takes the processor 13 ms instead of 15 (the shipped ensemble), or 120
instead of 86 (five EfficientNet-B2), and studies would wait for each other.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Job, StudyAnswer, Wanted
from dicomnode.pipeline import Examination, Examined, Pipeline

Read = Callable[[StoredInstance], bytes]

_ENOUGH_BYTES = 128 << 20
"""No further image is begun beyond this: six radiographs of 10 MB as frames, more than come in one quiet time."""


class WorkAhead:
    """A pipeline that may know some of the answer beforehand."""

    def __init__(self, pipeline: Pipeline, *, enough_bytes: int = _ENOUGH_BYTES) -> None:
        """`enough_bytes`: what frames may hold before the next image waits for its study."""
        self._pipeline, self._enough_bytes = pipeline, enough_bytes
        self._held: dict[StoredInstance, Examination] = {}
        self._tried: set[StoredInstance] = set()

    def answer(self, job: Job, read: Read, now: datetime, wanted: Sequence[Wanted]) -> StudyAnswer:
        """Answer as `Pipeline.answer` does, in less time for each image that was examined before."""
        examinations = [self._take(instance, read) for instance in job.instances]
        return self._pipeline.conclude(job, examinations, now, wanted)

    def prepare(self, expected: Sequence[StoredInstance], read: Read) -> bool:
        """Examine the first of these that was not tried yet, if any, and tell so; forget what is not among them.

        Raises: whatever `read` raises; that image then waits for its study.
        """
        wanted = set(expected)
        self._held = {instance: found for instance, found in self._held.items() if instance in wanted}
        self._tried &= wanted
        image = next((instance for instance in expected if instance not in self._tried), None)
        if image is None or self.held_bytes >= self._enough_bytes:
            return False
        self._tried.add(image)
        examination = self._pipeline.examine(image, read(image))
        if _size_bytes(examination) <= self._enough_bytes:
            self._held[image] = examination
        return True

    def _take(self, instance: StoredInstance, read: Read) -> Examination:
        if instance in self._held:
            return self._held.pop(instance)
        return self._pipeline.examine(instance, read(instance))

    @property
    def held_bytes(self) -> int:
        """Return what the frames hold that wait for their study."""
        return sum(_size_bytes(examination) for examination in self._held.values())


def _size_bytes(examination: Examination) -> int:
    return examination.frame.pixels.nbytes if isinstance(examination, Examined) else 0
