"""Composition root: the only place where the node's parts are wired, started and stopped in order."""

import logging
import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from dicomnode.bundle.reader import Bundle, open_bundle
from dicomnode.domain.job import Destination
from dicomnode.inference.operating import choose_operating_point
from dicomnode.inference.predictor import Predictor
from dicomnode.net.scp import StorageScp
from dicomnode.net.sender import Sender
from dicomnode.pipeline import Pipeline
from dicomnode.results.fallback import fallback
from dicomnode.settings import Settings, default_bundle
from dicomnode.store import Store
from dicomnode.worker import Worker

log = logging.getLogger(__name__)


def utc_now() -> datetime:
    """Return the time; the node's clock, which tests replace."""
    return datetime.now(UTC)


def load_pipeline(settings: Settings) -> tuple[Bundle, Pipeline]:
    """Open and verify the bundle, replay its golden vectors, and build the pipeline around it.

    Raises: ConfigurationError, BundleInvalid.
    """
    bundle = open_bundle(settings.inference.bundle or default_bundle())
    operating_point = choose_operating_point(bundle.manifest, settings.inference.operating_point)
    predictor = Predictor(bundle, threads=settings.inference.threads)
    predictor.replay_golden()
    pipeline = Pipeline(
        predictor=predictor,
        manifest=bundle.manifest,
        identity=bundle.identity,
        operating_point=operating_point,
        eligibility=settings.eligibility,
        pixels=settings.pixels,
        results=settings.results,
    )
    return bundle, pipeline


def destinations_of(settings: Settings) -> tuple[Destination, ...]:
    """Return the configured destinations."""
    return tuple(entry.destination() for entry in settings.delivery.destinations)


class Node:
    """A running node: one SCP, one worker, one sender per destination, one store between them."""

    def __init__(
        self,
        *,
        settings: Settings,
        bundle: Bundle,
        store: Store,
        scp: StorageScp,
        worker: Worker,
        senders: tuple[Sender, ...],
        clock: Callable[[], datetime],
    ) -> None:
        """Take parts that are wired but not started; `Node.build` makes them."""
        self._settings, self._bundle, self._store = settings, bundle, store
        self._scp, self._worker, self._senders, self._clock = scp, worker, senders, clock

    @classmethod
    def build(
        cls,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = utc_now,
        randomness: Callable[[], float] = random.random,
    ) -> Self:
        """Wire a node. The model is verified before the store is opened, so a bad bundle touches nothing.

        Raises: ConfigurationError.
        """
        bundle, pipeline = load_pipeline(settings)
        store = Store.open(settings.store, settings.assembly, exclusive=True)
        senders = tuple(
            Sender(
                destination,
                store.outbox,
                settings.delivery,
                calling_ae=settings.scp.ae_title,
                clock=clock,
                randomness=randomness,
                fallback=fallback,
            )
            for destination in destinations_of(settings)
        )

        def wake_senders() -> None:
            for sender in senders:
                sender.wake()

        worker = Worker(
            inbox=store.inbox,
            read=store.blobs.read_instance,
            answer=pipeline.answer,
            destinations=[sender.destination.name for sender in senders],
            settings=settings.work,
            # Results carry the hospital's wall clock, unless the source states a zone of its own.
            clock=lambda: clock().astimezone(),
            answered=wake_senders,
        )
        scp = StorageScp(settings.scp, store.inbox, clock=clock, identifiers=lambda: uuid.uuid4().hex)
        return cls(settings=settings, bundle=bundle, store=store, scp=scp, worker=worker, senders=senders, clock=clock)

    def start(self) -> None:
        """Recover what a former run left open, then start from the end of the path to its beginning."""
        self._store.inbox.recover(self._clock(), maximum_attempts=self._settings.work.maximum_attempts)
        for sender in self._senders:
            sender.start()
        self._worker.start()
        self._scp.start()
        log.info(
            "node-started",
            extra={
                "ae_title": self._settings.scp.ae_title,
                "port": self._settings.scp.port,
                "bundle": f"{self._bundle.identity.name} {self._bundle.identity.version}",
                "bundle_hash": self._bundle.identity.bundle_hash[:12],
                "bundle_path": str(self._bundle.path),
                "destinations": [sender.destination.name for sender in self._senders],
                "store": str(Path(self._settings.store.path).resolve()),
            },
        )
        if not self._senders:
            log.warning("no-destination", extra={"results_stay_in": str(Path(self._settings.store.path).resolve())})

    def stop(self) -> None:
        """Drain from the beginning of the path to its end: associations, the study at hand, the batch at hand."""
        self._scp.stop()
        self._worker.stop()
        for sender in self._senders:
            sender.stop()
        self._store.close()
        log.info("node-stopped")
