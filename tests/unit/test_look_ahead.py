"""What is done before a study is complete: the same answer, sooner; bounded, and nothing but time to lose."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import Dataset

from dicomnode.analysis.look_ahead import LookAhead
from dicomnode.analysis.pipeline import Examination, Pipeline
from dicomnode.domain.answer import ResultKind, StudyAnswer, Wanted
from dicomnode.domain.errors import BlobDamaged, DiskFull
from dicomnode.domain.frame import Frame
from dicomnode.domain.instance import InstanceRef, StoredInstance
from dicomnode.domain.job import ExpectedJob, Job
from dicomnode.inference.predictor import Predictor, Reading
from dicomnode.store.blobs.local import StagedBlob
from tests.support.make import build, encode
from tests.support.pipelines import make_pipeline, stored_instance

NOW, LATER = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2026, 1, 2, 3, 4, 7, tzinfo=UTC)
STUDY = "1.2.826.7"
EVERYTHING = (Wanted(outputs=frozenset(ResultKind)), Wanted(series_description_prefix="B "))


class Held:
    """Received images, with a count of how often each was read."""

    def __init__(self, *datasets: Dataset) -> None:
        files = {encode(dataset): dataset for dataset in datasets}
        self.part10 = {stored_instance(dataset, part10, NOW): part10 for part10, dataset in files.items()}
        self.reads: list[StoredInstance] = []

    def read(self, instance: StoredInstance) -> bytes:
        self.reads.append(instance)
        return self.part10[instance]

    def job(self, images: int | None = None) -> Job:
        return Job(job_id=1, study=STUDY, version=1, attempts=1, instances=tuple(self.part10)[:images])

    def expected(self, images: int | None = None, *, is_quiet: bool = False) -> tuple[ExpectedJob, ...]:
        return (ExpectedJob(job=self.job(images), is_quiet=is_quiet),)


class Staged(dict[str, bytes]):
    """What lies ready to be stored, by its SHA-256."""

    is_full = False

    def stage(self, data: bytes) -> StagedBlob:
        if self.is_full:
            raise DiskFull("no")
        name = hashlib.sha256(data).hexdigest()
        self[name] = data
        return StagedBlob(name=name, path=Path(name))

    def discard(self, staged: StagedBlob) -> None:
        self.pop(staged.name, None)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return make_pipeline(tmp_path_factory.mktemp("bundle"))


def image(seed: int, **options: object) -> Dataset:
    return build("dx", seed=seed, study_uid=STUDY, **options)


def step(ahead: LookAhead, held: Held, expected: Sequence[ExpectedJob], wanted: Sequence[Wanted] = (Wanted(),)) -> bool:
    return ahead.prepare(expected, held.read, NOW, lambda job: wanted)


def prepare_all(ahead: LookAhead, held: Held, *, is_quiet: bool = False) -> int:
    steps = 0
    while step(ahead, held, held.expected(is_quiet=is_quiet)):
        steps += 1
    return steps


def everything_in(answer: StudyAnswer) -> tuple[object, ...]:
    return [replace(result) for result in answer.results], answer.rejections, answer.summary, answer.analysed


@pytest.mark.parametrize("prepared", [1, 2, 3])
def test_an_answer_is_the_same_to_the_byte_however_much_was_prepared(pipeline: Pipeline, prepared: int) -> None:
    lateral = image(3)
    lateral.ViewPosition = "LL"
    held = Held(image(1), lateral, image(2))
    ahead = LookAhead(pipeline, Staged())
    for _ in range(prepared):
        assert step(ahead, held, held.expected())
    at_once = pipeline.answer(held.job(), held.read, LATER, EVERYTHING)
    assert everything_in(ahead.answer(held.job(), held.read, LATER, EVERYTHING).answer) == everything_in(at_once)
    assert len(at_once.analysed) == 2
    assert len(at_once.rejections) == 1


def test_what_was_prepared_is_not_read_again(pipeline: Pipeline) -> None:
    held = Held(image(1), image(2))
    ahead = LookAhead(pipeline, Staged())
    assert prepare_all(ahead, held) == 2
    ahead.answer(held.job(), held.read, NOW, (Wanted(),))
    assert held.reads == list(held.part10)


def test_nothing_is_kept_once_the_study_is_answered(pipeline: Pipeline) -> None:
    held = Held(image(1))
    ahead = LookAhead(pipeline, Staged())
    prepare_all(ahead, held)
    assert ahead.memory_bytes > 0
    ahead.answer(held.job(), held.read, NOW, (Wanted(),))
    assert ahead.memory_bytes == 0


def test_what_is_no_longer_expected_is_forgotten(pipeline: Pipeline) -> None:
    held = Held(image(1))
    ahead = LookAhead(pipeline, Staged())
    prepare_all(ahead, held)
    assert not step(ahead, held, ())
    assert ahead.memory_bytes == 0
    assert prepare_all(ahead, held) == 1


def test_no_image_is_begun_when_enough_is_held(pipeline: Pipeline) -> None:
    held = Held(image(1), image(2), image(3))
    ahead = LookAhead(pipeline, Staged(), enough_bytes=frame_bytes(pipeline, held) + 1)
    assert prepare_all(ahead, held) == 2
    assert ahead.memory_bytes == 2 * frame_bytes(pipeline, held)


def test_an_image_that_is_too_much_alone_is_not_kept_nor_tried_twice(pipeline: Pipeline) -> None:
    held = Held(image(1))
    ahead = LookAhead(pipeline, Staged(), enough_bytes=frame_bytes(pipeline, held) - 1)
    assert prepare_all(ahead, held) == 1
    assert ahead.memory_bytes == 0


def frame_bytes(pipeline: Pipeline, held: Held) -> int:
    one = LookAhead(pipeline, Staged())
    one.prepare(held.expected(1), held.part10.__getitem__, NOW, lambda job: ())
    return one.memory_bytes


def test_an_image_that_cannot_be_read_is_left_to_its_study(pipeline: Pipeline) -> None:
    held = Held(image(1), image(2))
    ahead = LookAhead(pipeline, Staged())

    def broken(instance: StoredInstance) -> bytes:
        raise BlobDamaged("stored bytes changed")

    with pytest.raises(BlobDamaged):
        ahead.prepare(held.expected(is_quiet=True), broken, NOW, lambda job: (Wanted(),))
    assert prepare_all(ahead, held, is_quiet=True) == 1
    assert held.reads == [tuple(held.part10)[1]]
    with pytest.raises(BlobDamaged):
        ahead.answer(held.job(), broken, NOW, (Wanted(),))


@pytest.fixture
def written(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """Return the times that answers bear, each as it is written."""
    times: list[datetime] = []
    conclude = Pipeline.conclude

    def noting(
        self: Pipeline, job: Job, examined: Sequence[Examination], now: datetime, wanted: Sequence[Wanted]
    ) -> StudyAnswer:
        times.append(now)
        return conclude(self, job, examined, now, wanted)

    monkeypatch.setattr(Pipeline, "conclude", noting)
    return times


def test_the_answer_to_a_study_that_went_quiet_is_written_before_it_is_claimed(
    pipeline: Pipeline, written: list[datetime]
) -> None:
    held = Held(image(1), image(2))
    ahead = LookAhead(pipeline, Staged())
    assert prepare_all(ahead, held, is_quiet=True) == 3
    answer = ahead.answer(held.job(), held.read, LATER, (Wanted(),)).answer
    assert written == [NOW]
    assert everything_in(answer) == everything_in(pipeline.answer(held.job(), held.read, NOW, (Wanted(),)))
    assert ahead.memory_bytes == 0


def test_nothing_is_written_while_a_sender_is_connected(pipeline: Pipeline, written: list[datetime]) -> None:
    held = Held(image(1))
    ahead = LookAhead(pipeline, Staged())
    assert prepare_all(ahead, held) == 1
    assert written == []


@pytest.mark.parametrize("what", ["another image", "other results", "another attempt"])
def test_a_study_that_is_claimed_otherwise_than_foreseen_is_answered_anew(pipeline: Pipeline, what: str) -> None:
    held = Held(image(1), image(2))
    ahead = LookAhead(pipeline, Staged())
    while step(ahead, held, held.expected(1, is_quiet=True)):
        pass
    job = held.job() if what == "another image" else held.job(1)
    if what == "another attempt":
        former = InstanceRef(study=STUDY, series="1.2", sop_class="1.2.3", sop_instance="1.2.4")
        job = replace(job, attempts=2, predecessors=(former,))
    wanted = EVERYTHING if what == "other results" else (Wanted(),)
    answer = ahead.answer(job, held.read, LATER, wanted).answer
    assert everything_in(answer) == everything_in(pipeline.answer(job, held.read, LATER, wanted))


def test_an_image_that_comes_after_the_writing_has_it_done_again(pipeline: Pipeline, written: list[datetime]) -> None:
    held = Held(image(1), image(2))
    ahead = LookAhead(pipeline, Staged())
    while step(ahead, held, held.expected(1, is_quiet=True)):
        pass
    assert prepare_all(ahead, held, is_quiet=True) == 2
    assert len(ahead.answer(held.job(), held.read, LATER, (Wanted(),)).answer.analysed) == 2
    assert written == [NOW, NOW]
    assert held.reads == list(held.part10)


def test_an_answer_that_cannot_be_written_is_tried_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> StudyAnswer:
        raise ValueError("no")

    held = Held(image(1))
    ahead = LookAhead(pipeline, Staged())
    assert prepare_all(ahead, held) == 1
    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "conclude", broken)
        with pytest.raises(ValueError, match="no"):
            step(ahead, held, held.expected(is_quiet=True))
        assert not step(ahead, held, held.expected(is_quiet=True))
    assert len(ahead.answer(held.job(), held.read, LATER, (Wanted(),)).answer.results) == 2


def test_an_image_whose_examination_failed_is_examined_again_at_the_claim(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_once(self: Predictor, frame: Frame) -> Reading:
        monkeypatch.undo()
        raise ZeroDivisionError

    held = Held(image(1))
    ahead = LookAhead(pipeline, Staged())
    monkeypatch.setattr(Predictor, "read", fails_once)
    assert prepare_all(ahead, held, is_quiet=True) == 1
    assert len(ahead.answer(held.job(), held.read, LATER, (Wanted(),)).answer.analysed) == 1


def test_what_was_written_counts_as_held_until_it_is_no_longer_expected(pipeline: Pipeline) -> None:
    held = Held(image(1))
    ahead = LookAhead(pipeline, Staged())
    prepare_all(ahead, held)
    frames = ahead.memory_bytes
    prepare_all(ahead, held, is_quiet=True)
    at_once = pipeline.answer(held.job(), held.read, NOW, (Wanted(),))
    assert ahead.memory_bytes == frames + sum(len(result.part10) for result in at_once.results)
    step(ahead, held, ())
    assert ahead.memory_bytes == 0


def test_what_was_written_is_staged_for_the_claim(pipeline: Pipeline) -> None:
    held, staged = Held(image(1)), Staged()
    ahead = LookAhead(pipeline, staged)
    prepare_all(ahead, held, is_quiet=True)
    prepared = ahead.answer(held.job(), held.read, LATER, (Wanted(),))
    assert [staged[blob.name] for blob in prepared.staged] == [result.part10 for result in prepared.answer.results]


def test_what_is_left_of_staged_results_is_removed_once_they_are_named_or_the_worker_ends(pipeline: Pipeline) -> None:
    held, staged = Held(image(1)), Staged()
    ahead = LookAhead(pipeline, staged)
    prepare_all(ahead, held, is_quiet=True)
    prepared = ahead.answer(held.job(), held.read, LATER, (Wanted(),))
    ahead.discard(prepared)
    assert not staged
    step(ahead, held, ())  # a later version of the study is expected anew
    prepare_all(ahead, held, is_quiet=True)
    assert staged
    ahead.close()
    assert not staged


@pytest.mark.parametrize("what", ["claimed otherwise", "written again", "not expected"])
def test_what_was_staged_in_vain_is_removed(pipeline: Pipeline, what: str) -> None:
    held, staged = Held(image(1), image(2)), Staged()
    ahead = LookAhead(pipeline, staged)
    while step(ahead, held, held.expected(1, is_quiet=True)):
        pass
    in_vain = set(staged)
    assert len(in_vain) == 2
    if what == "claimed otherwise":
        ahead.answer(held.job(), held.read, LATER, (Wanted(),))
    elif what == "written again":
        prepare_all(ahead, held, is_quiet=True)
        assert len(staged) == 3
    else:
        step(ahead, held, ())
    assert not in_vain & set(staged)


def test_a_study_whose_results_cannot_be_staged_is_answered_at_its_claim(
    pipeline: Pipeline, written: list[datetime]
) -> None:
    held, staged = Held(image(1)), Staged()
    staged.is_full = True
    ahead = LookAhead(pipeline, staged)
    prepare_all(ahead, held)
    with pytest.raises(DiskFull):
        step(ahead, held, held.expected(is_quiet=True))
    assert not step(ahead, held, held.expected(is_quiet=True))
    assert len(ahead.answer(held.job(), held.read, LATER, (Wanted(),)).answer.results) == 2
    assert written == [NOW, LATER]


def test_what_is_too_much_to_be_kept_is_not_examined_again_after_another_study_was_answered(pipeline: Pipeline) -> None:
    small, large = Held(image(1, rows=96, columns=96)), Held(image(2))
    other = ExpectedJob(job=replace(large.job(), job_id=2), is_quiet=False)
    ahead = LookAhead(pipeline, Staged(), enough_bytes=frame_bytes(pipeline, large) - 1)
    read = {**small.part10, **large.part10}

    def prepare(*expected: ExpectedJob) -> bool:
        return ahead.prepare(expected, read.__getitem__, NOW, lambda job: ())

    assert prepare(*small.expected(is_quiet=True), other)
    assert prepare(*small.expected(is_quiet=True), other)
    assert prepare(*small.expected(is_quiet=True), other)
    ahead.answer(small.job(), small.read, NOW, ())
    assert not prepare(other)
