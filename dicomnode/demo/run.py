"""Node and archive on one machine, on ports that are free, and what became of the studies sent through them."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dicomnode.demo.reading import Reported, findings_in, picture_of
from dicomnode.domain.delivery import DeliveryState
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.job import JobState
from dicomnode.net.scp.archive import Archive, Archived
from dicomnode.net.scu.files import SentFile, send_files
from dicomnode.node import Node
from dicomnode.settings.node import Settings, parse_destination, read_settings
from dicomnode.store import Store
from dicomnode.store.events import LedgerEvent
from dicomnode.store.ledger import JobEntry, RejectionEntry

SENDER = "MODALITY"
_LOOPBACK = "127.0.0.1"
_POLL_S = 0.1
_MOST_STUDIES = 10_000
_OPEN = frozenset({JobState.COLLECTING, JobState.WAITING, JobState.WORKING})
_UNDELIVERED = frozenset({DeliveryState.WAITING, DeliveryState.SENDING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of a study: the objects that the archive received, their content, and the events of the ledger."""

    study: str
    state: JobState
    reason: str
    archived: tuple[Archived, ...]
    findings: tuple[Reported, ...]
    pictures: tuple[Path, ...]
    rejections: tuple[RejectionEntry, ...]
    events: tuple[LedgerEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRun:
    """A running node, and a running archive that it delivers to."""

    settings: Settings
    archive: Archive
    _store: Store

    @property
    def node(self) -> str:
        """Return how the node is called: AET@HOST:PORT."""
        return f"{self.settings.scp.ae_title}@{_LOOPBACK}:{self.settings.scp.port}"

    @property
    def page(self) -> str | None:
        """Return where the node's page is."""
        http = self.settings.http
        return f"http://{_LOOPBACK}:{http.port}/" if http.enabled else None

    def page_of(self, study: str) -> str | None:
        """Return where the page of a study is."""
        return self.page and f"{self.page}studies/{quote(study, safe='')}"

    def send(self, paths: Sequence[Path], progress: Callable[[SentFile, int, int], None]) -> list[SentFile]:
        """Send files and folders to the node, as a modality would."""
        destination = parse_destination(self.node).destination()
        return send_files(destination, paths, calling_ae=SENDER, settings=self.settings.delivery, progress=progress)

    def settle(self, given_up: threading.Event, progress: Callable[[int, int], None]) -> tuple[Outcome, ...]:
        """Wait until every study has its answer in the archive, or none to come; `given_up` ends the waiting."""
        while True:
            newest = self._newest()
            settled = [job for job in newest.values() if self._is_settled(job)]
            progress(len(settled), len(newest))
            if len(settled) == len(newest) or given_up.wait(_POLL_S):
                return tuple(self._outcome(job) for job in settled)

    def _newest(self) -> dict[str, JobEntry]:
        """Return the newest version of each study's answer; the store is this run's own."""
        jobs = self._store.ledger.jobs(tuple(JobState), limit=_MOST_STUDIES)
        return {job.study: job for job in sorted(jobs, key=lambda job: job.version)}

    def _is_settled(self, job: JobEntry) -> bool:
        if job.state in _OPEN:
            return False
        return all(entry.state not in _UNDELIVERED for entry in self._store.ledger.deliveries_of(job.study))

    def _outcome(self, job: JobEntry) -> Outcome:
        archived = self.archive.of_study(job.study)
        pictures = (picture_of(entry.file) for entry in archived)
        return Outcome(
            study=job.study,
            state=job.state,
            reason=job.last_error or "",
            archived=archived,
            findings=tuple(finding for entry in archived for finding in findings_in(entry.file)),
            pictures=tuple(picture for picture in pictures if picture is not None),
            rejections=self._store.ledger.rejections_of(job.study),
            events=self._store.ledger.explain(job.study),
        )


@contextmanager
def running_demo(
    store: Path, kept: Path, *, bundle: Path | None = None, show_patients: bool = False
) -> Iterator[DemoRun]:
    """Run an archive that writes to `kept`, and a node that delivers to it and has its store at `store`.

    `show_patients`: the page, which everybody on this machine can open, names them.

    Raises: ConfigurationError.
    """
    with Archive(kept) as archive:
        settings = _settings(store, archive.peer, bundle, show_patients=show_patients)
        node = Node.build(settings)
        try:
            node.start()
            with Store.open(settings.store, settings.assembly, exclusive=False) as beside:
                yield DemoRun(settings=settings, archive=archive, _store=beside)
        finally:
            node.stop()


def _settings(store: Path, archive: str, bundle: Path | None, *, show_patients: bool) -> Settings:
    """Return a configuration for this machine alone; neither file nor environment has a say in what it names."""
    options: dict[str, Any] = {
        "scp": {"ae_title": "CXRNODE", "bind": _LOOPBACK, "port": free_port(), "tls": {"certificate": None}},
        "store": {"path": store, "minimum_free_bytes": 0},
        "assembly": {"quiet_s": 1.0},
        "delivery": {"destinations": [parse_destination(archive).model_dump()], "default_destinations": None},
        "audit": {"to": "off"},
        "http": {"bind": _LOOPBACK, "port": free_port(), "local_patients": show_patients},
    }
    if bundle is not None:
        options["inference"] = {"bundle": bundle}
    return read_settings(None, options)


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    try:
        with socket.socket() as probe:
            probe.bind((_LOOPBACK, 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ConfigurationError(f"no port of {_LOOPBACK} can be had: {error.strerror}") from error
