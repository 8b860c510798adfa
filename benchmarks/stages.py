"""Where the time of a study goes: every step of its path by itself, one after the other, with nothing beside it."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.images import Images
from benchmarks.send import sink
from dicomnode.delivery_settings import DeliverySettings
from dicomnode.domain.instance import AssociationInfo, InstanceRef
from dicomnode.domain.job import Accepted, Destination, ResultKind, Wanted
from dicomnode.domain.routing import Recipient, Route
from dicomnode.imaging.codecs import CODECS
from dicomnode.imaging.pixels import render
from dicomnode.imaging.reader import read
from dicomnode.net.outgoing import Outgoing
from dicomnode.net.part10 import read_file_head, read_ref
from dicomnode.net.scu import send
from dicomnode.node import load_pipeline
from dicomnode.pipeline import Pipeline
from dicomnode.settings import InferenceSettings, Settings
from dicomnode.store import Store
from tests.stores import at, claim, open_store

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

    _, pipeline = load_pipeline(Settings(inference=InferenceSettings(bundle=bundle)))
    CODECS.start()
    try:
        with open_store(folder) as store, sink(131_072) as port:
            for number in range(TIMES + 1):
                _one(store, pipeline, images.one(), 100.0 * number, port, step)
    finally:
        CODECS.stop()
    # The first of each warms up.
    return {name: statistics.median(taken[1:]) for name, taken in found.items()}


def _one(
    store: Store,
    pipeline: Pipeline,
    part10: bytes,
    now: float,
    port: int,
    step: Callable[[str], AbstractContextManager[None]],
) -> None:
    """Take one study through all of it, as the node's threads do between them."""
    ref, head = _ref(part10), read_file_head(part10)
    association = AssociationInfo(association_id=ref.study, calling_ae="BENCH", called_ae="CXRNODE", peer_address="-")
    with step("stored durably"):
        store.reception.accept(ref, head.transfer_syntax, part10, association, at(now))
    store.reception.association_released(ref.study, at(now))
    with step("claimed, read back"):
        job = claim(store, now + 5)
        (instance,) = job.instances
        held = store.blobs.read_instance(instance)
    with step("decoded, grey scale"):
        dataset = read(held)
        frame = render(dataset, ref, pipeline.pixels)
    with step("inference"):
        pipeline.predictor.read(frame)
    examination = pipeline.examine(instance, held)
    report = Wanted(outputs=frozenset({ResultKind.STRUCTURED_REPORT}))
    heatmap = Wanted(outputs=frozenset({ResultKind.SECONDARY_CAPTURE}))
    with step("report"):
        written = pipeline.conclude(job, [examination], at(now + 5), [report])
    with step("heatmap"):
        drawn = pipeline.conclude(job, [examination], at(now + 5), [heatmap])
    answer = replace(written, results=(*written.results, *drawn.results))
    if len(answer.results) != 2:
        raise ValueError("the image was rejected")
    with step("outbox"):
        store.inbox.finish(job, answer, ROUTE, at(now + 6))
    destination = Destination(name="pacs", ae_title="STORESCP", host="127.0.0.1", port=port)
    with step("sent"):
        deliveries = store.outbox.claim("pacs", 10, at(now + 7))
        items = [
            Outgoing(
                sop_class=delivery.ref.sop_class,
                transfer_syntax=delivery.transfer_syntax,
                read=partial(store.outbox.read, delivery),
            )
            for delivery in deliveries
        ]
        outcomes = send(destination, items, calling_ae="BENCH", settings=DeliverySettings())
    if outcomes != [Accepted()] * len(deliveries):
        raise ConnectionError("the sink refused")


def _ref(part10: bytes) -> InstanceRef:
    head = read_file_head(part10)
    return read_ref(part10[head.offset :], head.transfer_syntax)
