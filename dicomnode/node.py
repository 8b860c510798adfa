"""Composition root: the only place where the node's parts are wired, started and stopped in order."""

import logging
import random
import socket
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from dicomnode.analysis.loading import load_pipeline
from dicomnode.analysis.look_ahead import LookAhead
from dicomnode.analysis.pipeline import Pipeline
from dicomnode.analysis.worker import POLL_S, Worker
from dicomnode.audit.message import Endpoint, Reporter
from dicomnode.audit.syslog import sink_for
from dicomnode.audit.trail import AuditTrail
from dicomnode.bundle.reader import Bundle
from dicomnode.certificates import ServedCertificate
from dicomnode.domain.errors import AddressUnavailable
from dicomnode.domain.identifiers import derive_uid
from dicomnode.imaging.codecs.process import CodecProcess
from dicomnode.loop import Loop
from dicomnode.monitoring.health import Running, exposed_to_others
from dicomnode.monitoring.monitored_node import MonitoredNode, RecentReport
from dicomnode.monitoring.page_address import PageAddress, write_page_address
from dicomnode.monitoring.views import monitoring_pages
from dicomnode.net.scp.server import StorageScp
from dicomnode.net.scu.destinations import Deliveries, Surroundings, deliveries
from dicomnode.results.sr import fallback
from dicomnode.settings.delivery import DestinationSettings, DimseDestination, StowDestination
from dicomnode.settings.node import Settings
from dicomnode.store import Store
from dicomnode.web.app import create_app
from dicomnode.web.context import PageContext
from dicomnode.web.imagery import Gallery
from dicomnode.web.server import WebServer

log = logging.getLogger(__name__)


def utc_now() -> datetime:
    """Return the time; the node's clock, which tests replace."""
    return datetime.now(UTC)


class Node:
    """A running node: one SCP, one worker, one or two loops for each destination, and one store between them."""

    def __init__(
        self,
        *,
        settings: Settings,
        bundle: Bundle,
        codecs: CodecProcess,
        store: Store,
        scp: StorageScp,
        look_ahead: LookAhead,
        worker: Loop,
        deliveries: Deliveries,
        retention: Loop,
        audit: AuditTrail | None,
        web: WebServer | None,
        clock: Callable[[], datetime],
    ) -> None:
        """Take parts that are wired but not started; `Node.build` makes them."""
        self._settings, self._bundle, self._codecs, self._store = settings, bundle, codecs, store
        self._scp, self._look_ahead, self._worker = scp, look_ahead, worker
        self._deliveries, self._clock = deliveries, clock
        self._retention, self._audit, self._web = retention, audit, web

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
        codecs = CodecProcess()
        bundle, pipeline = load_pipeline(settings, codecs)
        store = Store.open(
            settings.store,
            settings.assembly,
            exclusive=True,
            retention=settings.retention,
            audited=settings.audit.to != "off",
        )
        to_destinations = _deliveries(settings, store, clock, randomness)
        audit = _audit_trail(settings, store, clock, randomness)
        look_ahead = LookAhead(pipeline, store.blobs)
        worker = _worker(settings, store, look_ahead, to_destinations.wake, clock)
        scp = _scp(settings, store, worker, to_destinations, audit, clock)
        retention = _retention(store, clock)
        running = _running(scp, worker, to_destinations, retention, audit, lambda: web)
        web = _web_page(settings, store, bundle, pipeline, running, audit, clock) if settings.http.enabled else None
        return cls(
            settings=settings,
            bundle=bundle,
            codecs=codecs,
            store=store,
            scp=scp,
            look_ahead=look_ahead,
            worker=worker,
            deliveries=to_destinations,
            retention=retention,
            audit=audit,
            web=web,
            clock=clock,
        )

    def start(self) -> None:
        """Recover what a former run left open, then start the parts from the end of a study's path to its beginning."""
        self._open_page()
        self._store.inbox.recover(self._clock(), maximum_attempts=self._settings.work.maximum_attempts)
        self._codecs.start()
        if self._audit is not None:
            self._audit.start()
        self._deliveries.start()
        self._retention.start()
        self._worker.start()
        self._scp.start()
        if self._web is not None:
            self._web.start()
        log.info(
            "node-started",
            extra={
                "ae_title": self._settings.scp.ae_title,
                "port": self._settings.scp.port,
                "bundle": f"{self._bundle.identity.name} {self._bundle.identity.version}",
                "bundle_hash": self._bundle.identity.bundle_hash[:12],
                "bundle_path": str(self._bundle.path),
                "destinations": [entry.label for entry in self._settings.delivery.destinations],
                "store": str(Path(self._settings.store.path).resolve()),
                "page": self._web.url if self._web is not None else "off",
            },
        )
        self._warn()

    def _open_page(self) -> None:
        """Open the page's port. If the default port is taken, the node runs without its page."""
        why_not = ""
        try:
            if self._web is not None:
                self._web.open()
        except AddressUnavailable as error:
            if not self._settings.http.has_default_address:
                raise
            log.warning("page-not-served", extra={"cause": str(error)})
            self._web, why_not = None, str(error)
        try:
            page = PageAddress(port=self._web.port if self._web is not None else None, why_not=why_not)
            write_page_address(self._settings.store.path, page)
        except OSError as error:
            log.warning("page-not-noted", extra={"cause": error.strerror})

    def stop(self) -> None:
        """Stop the parts from the beginning of a study's path to its end; each finishes what it is doing."""
        if self._web is not None:
            self._web.stop()
        self._scp.stop()
        self._worker.stop(drain_s=None)  # until the current study is answered
        self._look_ahead.close()
        self._codecs.stop()
        self._deliveries.stop()
        self._retention.stop()
        if self._audit is not None:
            self._audit.stop()
        self._store.close()
        log.info("node-stopped")

    def _warn(self) -> None:
        """Log what an operator may not have meant."""
        if exposure := exposed_to_others(self._settings.store.path):
            log.warning("store-exposed", extra={"cause": exposure})
        http = self._settings.http
        if self._web is not None and not http.is_local and http.certificate is None and not http.proxy_user_header:
            log.warning("page-unencrypted", extra={"page": self._web.url})
        destinations = self._settings.delivery.destinations
        if not destinations:
            log.warning("no-destination", extra={"results_stay_in": str(Path(self._settings.store.path).resolve())})
        admitted = self._settings.scp.calling_ae_titles
        for entry in destinations:
            about = {"destination": entry.label}
            if isinstance(entry, StowDestination) and entry.exposes_secret:
                log.warning("secret-unprotected", extra=about)
            elif isinstance(entry, DimseDestination) and entry.commitment and not _admits(admitted, entry.ae_title):
                log.warning("commitment-reports-not-admitted", extra=about)


def _deliveries(
    settings: Settings, store: Store, clock: Callable[[], datetime], randomness: Callable[[], float]
) -> Deliveries:
    return deliveries(
        settings.delivery.destinations,
        Surroundings(
            outbox=store.outbox,
            commitments=store.commitments,
            settings=settings.delivery,
            calling_ae=settings.scp.ae_title,
            clock=clock,
            randomness=randomness,
            transactions=lambda: derive_uid("transaction", uuid.uuid4().hex),
            fallback=fallback,
        ),
    )


def _worker(
    settings: Settings,
    store: Store,
    look_ahead: LookAhead,
    answered: Callable[[], None],
    clock: Callable[[], datetime],
) -> Loop:
    worker = Worker(
        jobs=store.inbox,
        read=store.blobs.read_instance,
        analysis=look_ahead,
        routing=settings.delivery.routing(),
        settings=settings.work,
        # Results state the hospital's local time, unless the source states a zone of its own.
        clock=lambda: clock().astimezone(),
        answered=answered,
    )
    return Loop("worker", worker.step, worker.next_due, clock=clock, about={"of": "worker"}, poll_s=POLL_S)


def _scp(
    settings: Settings,
    store: Store,
    worker: Loop,
    to_destinations: Deliveries,
    audit: AuditTrail | None,
    clock: Callable[[], datetime],
) -> StorageScp:
    return StorageScp(
        settings.scp,
        store.reception,
        clock=clock,
        identifiers=lambda: uuid.uuid4().hex,
        reports=to_destinations.desk.receive,
        alert=audit.alert if audit is not None else None,
        arriving=store.reception.arriving,
        changed=worker.wake,
    )


def _retention(store: Store, clock: Callable[[], datetime]) -> Loop:
    return Loop(
        "retention",
        lambda: store.retention.step(clock()),
        store.retention.next_due,
        clock=clock,
        about={"of": "retention"},
    )


def _running(
    scp: StorageScp,
    worker: Loop,
    to_destinations: Deliveries,
    retention: Loop,
    audit: AuditTrail | None,
    page: Callable[[], WebServer | None],
) -> Running:
    """Return what the node says of itself while it runs; `page` gives its page, which is made later."""
    loops = (worker, *to_destinations.loops, retention)

    def threads() -> dict[str, bool]:
        audit_trail = {"audit": audit.running} if audit is not None else {}
        return {loop.name: loop.running for loop in loops} | audit_trail

    def certificates() -> dict[str, ServedCertificate]:
        web = page()
        shown = {"listener": scp.certificate, "page": web.certificate if web is not None else None}
        return {of: served for of, served in shown.items() if served is not None}

    return Running(
        threads=threads,
        listening=lambda: scp.listening,
        associations=lambda: scp.associations,
        accepted=lambda: scp.accepted,
        refused=lambda: scp.refused,
        circuit_breakers_open=lambda: {
            name: breaker.state.is_open for name, breaker in to_destinations.breakers.items()
        },
        certificates=certificates,
    )


def _web_page(
    settings: Settings,
    store: Store,
    bundle: Bundle,
    pipeline: Pipeline,
    running: Running,
    audit: AuditTrail | None,
    clock: Callable[[], datetime],
) -> WebServer:
    """Return the server of the page and of the addresses for monitoring."""
    monitored = MonitoredNode(
        settings=settings,
        store=store,
        bundle=bundle,
        operating_point=pipeline.operating_point,
        running=running,
        clock=clock,
    )
    context = PageContext(
        settings=settings,
        store=store,
        bundle=bundle,
        gallery=Gallery(pipeline, store.blobs.read_instance),
        clock=clock,
        record_shown=audit.shown if audit is not None else lambda *_: None,
        quality_alarms=RecentReport(monitored).alarms,
    )
    return WebServer(create_app(context, extra=monitoring_pages(monitored)), settings.http, clock)


def _audit_trail(
    settings: Settings, store: Store, clock: Callable[[], datetime], randomness: Callable[[], float]
) -> AuditTrail | None:
    """Return the audit trail, if one is wanted."""
    sink, host, title = sink_for(settings.audit), socket.gethostname(), settings.scp.ae_title
    if sink is None:
        return None
    reporter = Reporter(
        node=Endpoint(user=title, ae_title=title, address=host),
        source_id=settings.audit.source_id or title,
        enterprise_site_id=settings.audit.enterprise_site_id,
        destinations={entry.label: _endpoint(entry) for entry in settings.delivery.destinations},
    )
    return AuditTrail(
        store.audit, sink, reporter, read_blob=store.blobs.read, clock=clock, randomness=randomness, host=host
    )


def _endpoint(entry: DestinationSettings) -> Endpoint:
    if isinstance(entry, DimseDestination):
        return Endpoint(user=entry.ae_title, ae_title=entry.ae_title, address=entry.host)
    return Endpoint(user=entry.label, ae_title="", address=entry.url)


def _admits(calling_ae_titles: Sequence[str], ae_title: str) -> bool:
    return not calling_ae_titles or ae_title in calling_ae_titles
