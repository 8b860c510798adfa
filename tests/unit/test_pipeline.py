"""A study's instances in, result instances and rejections out: which results, of which identity, and why not."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicomnode.analysis.pipeline import Pipeline
from dicomnode.bundle.manifest import Manifest
from dicomnode.bundle.reader import open_bundle
from dicomnode.dicom.reader import read
from dicomnode.domain.answer import RejectionReason, ResultKind, Stage, StudyAnswer, Subject, Wanted
from dicomnode.domain.errors import BlobDamaged
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Job
from dicomnode.inference.predictor import Predictor
from dicomnode.settings.node import ResultSettings
from tests.support.bundles import ORIENTATIONS
from tests.support.make import CANARY_ACCESSION, CANARY_ID, build, encode, ref_of
from tests.support.pipelines import make_pipeline, stored_instance

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STUDY = "1.2.826.7"


def pipeline(folder: Path, *, results: ResultSettings | None = None, **bundle: float) -> Pipeline:
    return make_pipeline(folder / "bundle", results=results, **bundle)


def answer(
    to: Pipeline, datasets: Sequence[Dataset], now: datetime = NOW, wanted: Sequence[Wanted] = (Wanted(),)
) -> StudyAnswer:
    files = {encode(dataset): dataset for dataset in datasets}
    held = {stored_instance(dataset, part10, now): part10 for part10, dataset in files.items()}
    job = Job(job_id=1, study=STUDY, version=1, attempts=1, instances=tuple(held))
    return to.answer(job, held.__getitem__, now, wanted)


def image(seed: int = 1, **options: object) -> Dataset:
    return build("dx", seed=seed, study_uid=STUDY, **options)


def uids(given: StudyAnswer) -> list[str]:
    return [result.ref.sop_instance for result in given.results]


def test_every_frontal_gets_a_heatmap_and_the_study_one_report(tmp_path: Path) -> None:
    given = answer(pipeline(tmp_path), [image(1), image(2)])
    kinds = [result.kind for result in given.results]
    assert kinds == [ResultKind.STRUCTURED_REPORT, ResultKind.SECONDARY_CAPTURE, ResultKind.SECONDARY_CAPTURE]
    assert len(set(uids(given))) == 3
    assert {result.ref.study for result in given.results} == {STUDY}


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    to = pipeline(tmp_path)
    first, second = answer(to, [image()]), answer(to, [image()])
    assert [result.part10 for result in first.results] == [result.part10 for result in second.results]


def test_another_time_gives_the_same_identity(tmp_path: Path) -> None:
    to = pipeline(tmp_path)
    assert uids(answer(to, [image()])) == uids(answer(to, [image()], now=NOW.replace(year=2027)))


def test_another_image_model_or_setting_gives_another_identity(tmp_path: Path) -> None:
    original = uids(answer(pipeline(tmp_path / "a"), [image()]))
    others = [
        uids(answer(pipeline(tmp_path / "a"), [image(2)])),
        uids(answer(pipeline(tmp_path / "b", threshold=0.4), [image()])),
        uids(answer(pipeline(tmp_path / "a", results=ResultSettings(mark="for tests")), [image()])),
        uids(answer(replace(pipeline(tmp_path / "a"), operating_point="sensitivity_95"), [image()])),
    ]
    assert all(set(original).isdisjoint(other) for other in others)


def test_a_model_of_abnormality_alone_answers_and_shows_where(tmp_path: Path) -> None:
    to = pipeline(tmp_path)
    alone = to.manifest.model_dump() | {"labels": [to.manifest.labels[0].model_dump()]}
    (tmp_path / "bundle" / "manifest.json").write_text(Manifest.model_validate(alone).model_dump_json())
    opened = open_bundle(tmp_path / "bundle")
    # The tiny graph has 15 outputs, of which the manifest names the first, so its golden vectors are not replayed.
    predictor = Predictor(opened, threads=1)
    given = answer(replace(to, manifest=opened.manifest, predictor=predictor), [image()])
    report, capture = (dcmread(BytesIO(result.part10)) for result in given.results)
    assert str(report).count("'Probability'") == 1
    assert f"Grad-CAM of: {opened.manifest.labels[0].name}." in capture.DerivationDescription


def test_a_lateral_beside_a_frontal_changes_no_result(tmp_path: Path) -> None:
    to = pipeline(tmp_path)
    alone, beside = answer(to, [image(1)]), answer(to, [image(1), image(2, view="LL")])
    assert uids(alone) == uids(beside)
    assert [rejection.reason for rejection in beside.rejections] == [RejectionReason.LATERAL_VIEW]


def test_pixels_unlike_a_chest_get_no_findings_whatever_the_tags_say(tmp_path: Path) -> None:
    given = answer(pipeline(tmp_path, typicality_threshold=0.0), [image()])
    assert given.results == ()
    assert [rejection.reason for rejection in given.rejections] == [RejectionReason.NOT_CHEST_FRONTAL]


@pytest.mark.parametrize(("beyond", "is_unusual"), [(0.0, True), (1.0, False), (None, False)])
def test_an_image_far_from_most_training_images_gets_findings_that_say_so(
    beyond: float | None, is_unusual: bool, tmp_path: Path
) -> None:
    given = answer(pipeline(tmp_path, unusual_threshold=beyond), [image()])
    assert given.rejections == ()
    assert [one.is_unusual for one in given.summary.images] == [is_unusual]


def test_an_image_that_cannot_be_righted_is_rejected(tmp_path: Path) -> None:
    given = answer(pipeline(tmp_path, orientation=ORIENTATIONS.index("rot90")), [image()])
    assert [rejection.reason for rejection in given.rejections] == [RejectionReason.ORIENTATION]


def test_damaged_pixels_are_a_rejection(tmp_path: Path) -> None:
    dataset = image()
    dataset.PixelData = dataset.PixelData[:100]
    given = answer(pipeline(tmp_path), [dataset])
    assert [rejection.reason for rejection in given.rejections] == [RejectionReason.CORRUPT_PIXELS]


def test_a_damaged_blob_is_an_error_not_a_rejection(tmp_path: Path) -> None:
    def damaged(instance: StoredInstance) -> bytes:
        raise BlobDamaged("stored bytes changed")

    instance = StoredInstance(
        ref=ref_of(image()), transfer_syntax="", blob="", sha256="", size_bytes=0, calling_ae="", received_at=NOW
    )
    job = Job(job_id=1, study=STUDY, version=1, attempts=1, instances=(instance,))
    to = pipeline(tmp_path)
    with pytest.raises(BlobDamaged):
        to.answer(job, damaged, NOW)


def test_a_heatmap_coming_back_is_known_and_begets_no_refusal(tmp_path: Path) -> None:
    to = pipeline(tmp_path, results=ResultSettings(report_rejected=True))
    heatmap = read(answer(to, [image()]).results[1].part10)
    given = answer(to, [heatmap])
    assert given.results == ()
    assert [rejection.reason for rejection in given.rejections] == [RejectionReason.OWN_RESULT]


def test_a_refusal_is_the_same_with_and_without_a_heatmap_that_came_back(tmp_path: Path) -> None:
    to = pipeline(tmp_path, results=ResultSettings(report_rejected=True))
    heatmap = read(answer(to, [image(1)]).results[1].part10)
    lateral = image(2, view="LL")
    assert uids(answer(to, [lateral])) == uids(answer(to, [lateral, heatmap]))
    assert len(uids(answer(to, [lateral]))) == 1


def test_the_summary_says_what_the_report_says(tmp_path: Path) -> None:
    given = answer(pipeline(tmp_path), [image()])
    (assessed,) = given.summary.images
    assert len(assessed.findings) == 14
    assert all(np.isfinite(finding.probability) for finding in assessed.findings)


def test_only_what_is_wanted_is_made(tmp_path: Path) -> None:
    to = pipeline(tmp_path)
    given = answer(to, [image()], wanted=[Wanted(outputs=frozenset({ResultKind.SECONDARY_CAPTURE}))])
    assert [result.kind for result in given.results] == [ResultKind.SECONDARY_CAPTURE]
    assert given.analysed == (given.results[0].derived_from[0],)
    nothing = answer(to, [image()], wanted=[Wanted(outputs=frozenset())])
    assert (nothing.results, len(nothing.analysed), nothing.rejections) == ((), 1, ())


def test_optional_results_are_made_for_who_wants_them_alone(tmp_path: Path) -> None:
    to = pipeline(tmp_path)
    usual, every = answer(to, [image()]), answer(to, [image()], wanted=[Wanted(outputs=frozenset(ResultKind))])
    by_kind = {result.kind: result for result in every.results}
    assert {result.kind for result in usual.results} == {ResultKind.STRUCTURED_REPORT, ResultKind.SECONDARY_CAPTURE}
    assert [by_kind[result.kind] for result in usual.results] == list(usual.results)
    assert len(set(uids(every))) == len(every.results)


def test_a_prefix_makes_a_set_of_results_of_its_own(tmp_path: Path) -> None:
    to = pipeline(tmp_path)
    plain = answer(to, [image()])
    both = answer(to, [image()], wanted=[Wanted(), Wanted(series_description_prefix="AI: ")])
    own = [result for result in both.results if result.prefix == "AI: "]
    assert [result for result in both.results if not result.prefix] == list(plain.results)
    assert [result.kind for result in own] == [result.kind for result in plain.results]
    assert not {result.ref.sop_instance for result in own} & set(uids(plain))
    assert not {result.ref.series for result in own} & {result.ref.series for result in plain.results}
    for result, other in zip(own, plain.results, strict=True):
        described = dcmread(BytesIO(other.part10)).SeriesDescription
        assert dcmread(BytesIO(result.part10)).SeriesDescription == f"AI: {described}"[:64].strip()
    again = answer(to, [image()], wanted=[Wanted(series_description_prefix="AI: ")])
    assert list(again.results) == own


def test_the_answer_says_by_whose_numbers_it_is_found_and_shows_them_nowhere(tmp_path: Path) -> None:
    made = answer(pipeline(tmp_path), [image()])
    assert made.subjects == {Subject(patient_id=CANARY_ID, accession_number=CANARY_ACCESSION)}
    assert CANARY_ID not in repr(made.summary)
    assert "subjects" not in repr(made)


def test_an_answer_tells_how_long_its_stages_took_and_is_the_same_however_long(tmp_path: Path) -> None:
    ticks = iter(range(100))
    timed = replace(pipeline(tmp_path), timer=lambda: float(next(ticks)))
    two = [image(1), image(2)]
    told = answer(timed, two)
    assert told.seconds == {Stage.DECODE: 2.0, Stage.INFER: 2.0, Stage.ENCODE: 1.0}
    assert told == answer(replace(timed, timer=lambda: 0.0), two)


def test_an_image_that_is_rejected_by_its_tags_takes_no_inference(tmp_path: Path) -> None:
    told = answer(pipeline(tmp_path), [image(view="LL")])
    assert set(told.seconds) == {Stage.DECODE, Stage.ENCODE}
