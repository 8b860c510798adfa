"""Images examined before their study is complete: the same answer, sooner; bounded, and nothing but time to lose."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from pydicom import Dataset

from dicomnode.ahead import WorkAhead
from dicomnode.domain.errors import BlobDamaged
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Job, ResultKind, StudyAnswer, Wanted
from dicomnode.pipeline import Pipeline
from tests.make import build, encode
from tests.pipelines import make_pipeline, stored_instance

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

    def job(self) -> Job:
        return Job(job_id=1, study=STUDY, version=1, attempts=1, instances=tuple(self.part10))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return make_pipeline(tmp_path_factory.mktemp("bundle"))


def image(seed: int, **options: object) -> Dataset:
    return build("dx", seed=seed, study_uid=STUDY, **options)


def prepare_all(ahead: WorkAhead, held: Held) -> int:
    rounds = 0
    while ahead.prepare(tuple(held.part10), held.read):
        rounds += 1
    return rounds


def everything_in(answer: StudyAnswer) -> tuple[object, ...]:
    return [replace(result) for result in answer.results], answer.rejections, answer.summary, answer.analysed


@pytest.mark.parametrize("prepared", [1, 2, 3])
def test_an_answer_is_the_same_to_the_byte_however_much_was_prepared(pipeline: Pipeline, prepared: int) -> None:
    lateral = image(3)
    lateral.ViewPosition = "LL"
    held = Held(image(1), lateral, image(2))
    ahead = WorkAhead(pipeline)
    for _ in range(prepared):
        assert ahead.prepare(tuple(held.part10), held.read)
    at_once = pipeline.answer(held.job(), held.read, LATER, EVERYTHING)
    assert everything_in(ahead.answer(held.job(), held.read, LATER, EVERYTHING)) == everything_in(at_once)
    assert len(at_once.analysed) == 2
    assert len(at_once.rejections) == 1


def test_what_was_prepared_is_not_read_again(pipeline: Pipeline) -> None:
    held = Held(image(1), image(2))
    ahead = WorkAhead(pipeline)
    assert prepare_all(ahead, held) == 2
    ahead.answer(held.job(), held.read, NOW, (Wanted(),))
    assert held.reads == list(held.part10)


def test_nothing_is_kept_once_the_study_is_answered(pipeline: Pipeline) -> None:
    held = Held(image(1))
    ahead = WorkAhead(pipeline)
    prepare_all(ahead, held)
    assert ahead.held_bytes > 0
    ahead.answer(held.job(), held.read, NOW, (Wanted(),))
    assert ahead.held_bytes == 0


def test_what_is_no_longer_expected_is_forgotten(pipeline: Pipeline) -> None:
    held = Held(image(1))
    ahead = WorkAhead(pipeline)
    prepare_all(ahead, held)
    assert not ahead.prepare((), held.read)
    assert ahead.held_bytes == 0
    assert prepare_all(ahead, held) == 1


def test_no_image_is_begun_when_enough_is_held(pipeline: Pipeline) -> None:
    held = Held(image(1), image(2), image(3))
    ahead = WorkAhead(pipeline, enough_bytes=frame_bytes(pipeline, held) + 1)
    assert prepare_all(ahead, held) == 2
    assert ahead.held_bytes == 2 * frame_bytes(pipeline, held)


def test_an_image_that_is_too_much_alone_is_not_kept_nor_tried_twice(pipeline: Pipeline) -> None:
    held = Held(image(1))
    ahead = WorkAhead(pipeline, enough_bytes=frame_bytes(pipeline, held) - 1)
    assert prepare_all(ahead, held) == 1
    assert ahead.held_bytes == 0


def frame_bytes(pipeline: Pipeline, held: Held) -> int:
    one = WorkAhead(pipeline)
    one.prepare(tuple(held.part10)[:1], held.part10.__getitem__)
    return one.held_bytes


def test_an_image_that_cannot_be_read_is_left_to_its_study(pipeline: Pipeline) -> None:
    held = Held(image(1), image(2))
    ahead = WorkAhead(pipeline)

    def broken(instance: StoredInstance) -> bytes:
        raise BlobDamaged("stored bytes changed")

    instances: Sequence[StoredInstance] = tuple(held.part10)
    with pytest.raises(BlobDamaged):
        ahead.prepare(instances, broken)
    assert prepare_all(ahead, held) == 1
    assert held.reads == [instances[1]]
    with pytest.raises(BlobDamaged):
        ahead.answer(held.job(), broken, NOW, (Wanted(),))
