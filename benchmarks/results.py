"""Writing results: heatmap, report and outbox of one 10 MB radiograph, against decoding and reading that image."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

from benchmarks.bench import Bench, seconds
from benchmarks.images import Images
from benchmarks.studies import Bare, image_of
from benchmarks.table import Row
from dicomnode.dicom.header import header_of
from dicomnode.domain.answer import ResultInstance, StudyAnswer
from dicomnode.domain.job import Job
from dicomnode.domain.routing import Recipient, Route
from dicomnode.results.context import SourceContext
from dicomnode.results.inputs import ImageResultInputs, ReportInputs
from dicomnode.results.sc import write_heatmap
from dicomnode.results.sr import write_report
from dicomnode.settings.node import default_bundle
from dicomnode.store import Store
from tests.support.assessments import NOW, assessment, equipment, frame, identity
from tests.support.stores import accept, at, claim, open_store

PRESENT = {"Mass": 0.7, "Effusion": 0.4, "Nodule": 0.5}
ROUNDS = 8


def measure(bench: Bench) -> Iterator[Row]:
    part10 = Images.uncompressed().one()
    dataset = image_of(part10)
    source = SourceContext.of(header_of(dataset))
    bare = Bare(default_bundle())
    radiograph = frame(source.ref, bare.frame(part10).pixels)
    assessed = assessment(source.ref, PRESENT, abnormality=0.8)
    shared = {"equipment": equipment(), "identity": identity(source.ref.study), "now": NOW}

    def heatmap() -> ResultInstance:
        return write_heatmap(ImageResultInputs(source=source, frame=radiograph, assessment=assessed, **shared))

    def report() -> ResultInstance:
        sources = {source.ref.sop_instance: source}
        return write_report(
            ReportInputs(sources=sources, assessments=[assessed], rejections=(), predecessors=(), **shared)
        )

    with open_store(bench.folder / "store") as store:
        steps = {
            "Secondary Capture": _timed(heatmap),
            "Structured Report": _timed(report),
            "outbox: both durable and queued": _outbox(store, (heatmap(), report())),
            "bare": lambda: 1000 * bare.seconds(part10),
        }
        taken = bench.interleaved(steps, "ms", rounds=ROUNDS)
    for name in list(steps)[:-1]:
        yield Row(what=name, ours=taken[name], peer="bare decode and inference", theirs=taken["bare"])
    bench.note(f"The Secondary Capture has {len(heatmap().part10) / 1e6:.1f} MB, uncompressed.")


def _timed(work: Callable[[], object]) -> Callable[[], float]:
    return lambda: 1000 * seconds(work)


def _outbox(store: Store, results: tuple[ResultInstance, ...]) -> Callable[[], float]:
    """Return a contender that finishes the job of one study with results of other bytes each time."""
    numbers = count(1)
    route = Route(recipients=(Recipient(name="pacs"),))

    def measure() -> float:
        number = next(numbers)
        study = f"1.{number}"
        accept(store, study, over=study)
        store.reception.association_released(study, at(10 * number))
        job = claim(store, 10 * number + 5)
        answer = _answer(job, results, number)
        return 1000 * seconds(lambda: store.inbox.finish(job, answer, route, at(10 * number + 6)))

    return measure


def _answer(job: Job, results: tuple[ResultInstance, ...], number: int) -> StudyAnswer:
    images = tuple(instance.ref.sop_instance for instance in job.instances)
    renewed = tuple(
        replace(
            result,
            ref=replace(result.ref, study=job.study, sop_instance=f"{result.ref.sop_instance[:40]}.{number}"),
            part10=result.part10 + number.to_bytes(4, "little"),
            derived_from=images,
        )
        for result in results
    )
    return StudyAnswer(results=renewed, rejections=(), analysed=images)
