"""The loop that tells an audit repository what happened: ledger and alerts to records, records to messages."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from dicomnode.audit.message import Patient, Reporter, write_message
from dicomnode.audit.syslog import Sink, syslog_line
from dicomnode.dicom.header import read_header
from dicomnode.domain.audit import Alert, AuditKind, AuditRecord, Disclosure, InstanceTransfer
from dicomnode.domain.delivery import RetryPolicy
from dicomnode.domain.errors import CxrNodeError, Permanent
from dicomnode.loop import Loop

log = logging.getLogger(__name__)

_BATCH = 50
_KINDS_OF_ALERT = 256
_PATIENCE = RetryPolicy(first_delay_s=1.0, max_delay_s=60.0)
_NOBODY = Patient(patient_id="(not stated)", name="")


class Outbox(Protocol):
    """Where records wait until they are told."""

    def begin(self) -> None:
        """Tell from now on, if nothing was told before."""

    def note(self, kind: AuditKind, about: Alert | Disclosure | None, now: datetime) -> None:
        """Record what does not stand in the ledger."""

    def note_each(self, kind: AuditKind, abouts: Sequence[Alert | Disclosure | None], now: datetime) -> None:
        """Record several such things, all or none."""

    def gather(self, now: datetime, *, everything: bool = False) -> int:
        """Make records of what happened since; return of how much."""

    def pending(self, limit: int) -> tuple[AuditRecord, ...]:
        """Return the oldest records that are not told yet."""

    def done(self, number: int) -> None:
        """Forget the records up to this one."""

    def blobs_of(self, study: str) -> tuple[str, ...]:
        """Return a few blobs that belong to a study."""


class AuditTrail:
    """Tells a repository what happened, in order, and again until it is told; nothing else waits for it."""

    def __init__(
        self,
        outbox: Outbox,
        sink: Sink,
        reporter: Reporter,
        *,
        read_blob: Callable[[str], bytes],
        clock: Callable[[], datetime],
        randomness: Callable[[], float],
        host: str,
    ) -> None:
        """`read_blob` returns stored bytes by name; `host` is the node's name in syslog."""
        self._outbox, self._sink, self._reporter = outbox, sink, reporter
        self._read_blob, self._clock, self._randomness, self._host = read_blob, clock, randomness, host
        self._alerts: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()
        self._failures = 0
        self._not_before: datetime | None = None
        self._loop = Loop("audit", self.step, lambda: None, clock=clock, about={"of": "audit"})

    def start(self) -> None:
        """Record that the node begins, and begin to tell.

        Raises: StoreUnavailable.
        """
        self._outbox.begin()
        self._outbox.note(AuditKind.APPLICATION_START, None, self._clock())
        self._loop.start()

    @property
    def running(self) -> bool:
        """Whether its loop is alive."""
        return self._loop.running

    def stop(self) -> None:
        """Record that the node ends, and try once more to tell everything; what cannot be told waits in the store."""
        self._loop.stop()
        try:
            self._note_alerts()
            while self._outbox.gather(self._clock(), everything=True):
                pass
            self._outbox.note(AuditKind.APPLICATION_STOP, None, self._clock())
            while self._tell():
                pass
        except CxrNodeError as error:
            log.warning("audit-incomplete", extra={"cause": str(error)})

    def alert(self, address: str, calling_ae: str, reason: str) -> None:
        """Take note of a peer that was not let in; quick, and bounded whatever a peer does."""
        key = (address, calling_ae, reason)
        with self._lock:
            if key not in self._alerts and len(self._alerts) >= _KINDS_OF_ALERT:
                key = ("various", "", "too many different alerts to name them")
            self._alerts[key] += 1

    def shown(self, visitor: str, address: str, studies: Sequence[str]) -> None:
        """Record that somebody is about to be shown whom studies are of; unless that is recorded, they must not be.

        Raises: StoreUnavailable.
        """
        abouts = [Disclosure(study=study, visitor=visitor, address=address) for study in studies]
        self._outbox.note_each(AuditKind.SHOWN, abouts, self._clock())

    def step(self) -> int:
        """Record what is new and tell a batch; return how many messages were told.

        Raises: StoreUnavailable.
        """
        self._note_alerts()
        gathered = self._outbox.gather(self._clock())
        if self._not_before is not None and self._clock() < self._not_before:
            return 0
        return self._tell() + gathered

    def _note_alerts(self) -> None:
        with self._lock:
            alerts, self._alerts = self._alerts, Counter()
        for (address, calling_ae, reason), times in alerts.items():
            about = Alert(address=address, calling_ae=calling_ae, reason=reason, times=times)
            self._outbox.note(AuditKind.ALERT, about, self._clock())

    def _tell(self) -> int:
        """Tell a batch; after a failure, nothing for a growing while."""
        records = self._outbox.pending(_BATCH)
        if not records:
            return 0
        try:
            self._sink.send([self._line(record) for record in records])
        except CxrNodeError as error:
            self._failures += 1
            delay_s = _PATIENCE.delay_s(self._failures, self._randomness())
            self._not_before = self._clock() + timedelta(seconds=delay_s)
            log.warning("audit-deferred", extra={"cause": str(error), "attempt": self._failures})
            return 0
        self._failures, self._not_before = 0, None
        self._outbox.done(records[-1].number)
        return len(records)

    def _line(self, record: AuditRecord) -> bytes:
        patient = (
            self._patient_of(record.about.study) if isinstance(record.about, InstanceTransfer | Disclosure) else _NOBODY
        )
        xml = write_message(record, self._reporter, patient)
        return syslog_line(xml, number=record.number, at=record.at, host=self._host)

    def _patient_of(self, study: str) -> Patient:
        """Return who a study is of, from an object of it that is still there and can be read."""
        for blob in self._outbox.blobs_of(study):
            try:
                patient = read_header(self._read_blob(blob)).patient
            except Permanent:
                continue
            if patient.patient_id:
                return Patient(patient_id=patient.patient_id, name=patient.name)
        return _NOBODY
