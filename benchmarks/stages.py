"""Where the time of a study goes: every step of its path by itself, one after the other, with nothing beside it."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.images import Images
from benchmarks.send import sink
from dicomnode.analysis.loading import load_pipeline
from dicomnode.analysis.pipeline import Pipeline
from dicomnode.dicom.header import read_radiograph
from dicomnode.dicom.part10 import read_file_head, read_ref
from dicomnode.domain.answer import ResultKind, StudyAnswer, Wanted
from dicomnode.domain.delivery import Accepted, Destination
from dicomnode.domain.instance import AssociationInfo, InstanceRef
from dicomnode.domain.job import Job
from dicomnode.domain.routing import Recipient, Route
from dicomnode.imaging.codecs.process import CodecProcess
from dicomnode.imaging.pixels import render
from dicomnode.net.scu.outgoing import Outgoing
from dicomnode.net.scu.storage import send
from dicomnode.settings.delivery import DeliverySettings
from dicomnode.settings.node import InferenceSettings, Settings
from dicomnode.store import Store
from tests.support.stores import at, claim, open_store

TIMES = 5
Step = Callable[[str], AbstractContextManager[None]]
ROUTE = Route(recipients=(Recipient(name="pacs"),))


def stages(folder: Path, bundle: Path, images: Images) -> dict[str, float]:
    """Return the median milliseconds of each step of a study of one image."""
    found: dict[str, list[float]] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        began = perf_counter()
        yield
        found.setdefault(name, []).append(1000 * (perf_counter() - began))

    codecs = CodecProcess()
    _, pipeline = load_pipeline(Settings(inference=InferenceSettings(bundle=bundle)), codecs)
    codecs.start()
    try:
        with open_store(folder) as store, sink(131_072) as port:
            path = _Path(store=store, pipeline=pipeline, port=port, step=step)
            for number in range(TIMES + 1):
                path.take(images.one(), 100.0 * number)
    finally:
        codecs.stop()
    # The first of each warms up.
    return {name: statistics.median(taken[1:]) for name, taken in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """The steps of a study, as the node's threads do them together."""

    store: Store
    pipeline: Pipeline
    port: int
    step: Step

    def take(self, part10: bytes, now: float) -> None:
        job = self._receive(part10, now)
        answer = self._answer(job, now + 5)
        if len(answer.results) != 2:
            raise ValueError("the image was rejected")
        with self.step("staged"):
            staged = [self.store.blobs.stage(result.part10) for result in answer.results]
        with self.step("outbox"):
            self.store.inbox.finish(job, answer, ROUTE, at(now + 6), staged)
        self._send(now + 7)

    def _receive(self, part10: bytes, now: float) -> Job:
        ref, head = _ref(part10), read_file_head(part10)
        association = AssociationInfo(
            association_id=ref.study, calling_ae="BENCH", called_ae="CXRNODE", peer_address="-"
        )
        with self.step("stored durably"):
            self.store.reception.accept(ref, head.transfer_syntax, part10, association, at(now))
        self.store.reception.association_released(ref.study, at(now))
        return claim(self.store, now + 5)

    def _answer(self, job: Job, now: float) -> StudyAnswer:
        (instance,) = job.instances
        with self.step("read back"):
            part10 = self.store.blobs.read_instance(instance)
        with self.step("decoded, grey scale"):
            frame = render(read_radiograph(part10), self.pipeline.pixels, self.pipeline.codecs)
        with self.step("inference"):
            self.pipeline.predictor.read(frame)
        examination = self.pipeline.examine(instance, part10)
        written = []
        for name, kind in (("report", ResultKind.STRUCTURED_REPORT), ("heatmap", ResultKind.SECONDARY_CAPTURE)):
            with self.step(name):
                wanted = [Wanted(outputs=frozenset({kind}))]
                written.append(self.pipeline.conclude(job, [examination], at(now), wanted))
        return replace(written[0], results=tuple(result for answer in written for result in answer.results))

    def _send(self, now: float) -> None:
        destination = Destination(name="pacs", ae_title="STORESCP", host="127.0.0.1", port=self.port)
        with self.step("sent"):
            deliveries = self.store.outbox.claim("pacs", 10, at(now))
            items = [
                Outgoing(
                    sop_class=delivery.ref.sop_class,
                    transfer_syntax=delivery.transfer_syntax,
                    read=partial(self.store.outbox.read, delivery),
                )
                for delivery in deliveries
            ]
            outcomes = send(destination, items, calling_ae="BENCH", settings=DeliverySettings())
        if outcomes != [Accepted()] * len(deliveries):
            raise ConnectionError("the sink refused")


def _ref(part10: bytes) -> InstanceRef:
    head = read_file_head(part10)
    return read_ref(part10[head.offset :], head.transfer_syntax)
