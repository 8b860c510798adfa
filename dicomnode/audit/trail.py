"""The audit trail: makes records of the ledger and of alerts, and sends them as messages to an audit repository."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from dicomnode.audit.message import AuditPatient, Reporter, write_message
from dicomnode.audit.syslog import Sink, syslog_line
from dicomnode.dicom.header import read_header
from dicomnode.domain.audit import Alert, AuditKind, AuditRecord, Disclosure, InstanceTransfer
from dicomnode.domain.delivery import RetryPolicy
from dicomnode.domain.errors import CxrNodeError, Permanent
from dicomnode.loop import Loop

log = logging.getLogger(__name__)

_BATCH = 50
_KINDS_OF_ALERT = 256
_RETRY_POLICY = RetryPolicy(first_delay_s=1.0, max_delay_s=60.0)
_NOT_STATED = AuditPatient(patient_id="(not stated)", name="")


class RecordQueue(Protocol):
    """Where audit records wait until the repository has them."""

    def begin(self) -> None:
        """Begin the trail with the next event, unless it has begun."""

    def note(self, kind: AuditKind, about: Alert | Disclosure | None, now: datetime) -> None:
        """Record something that is not in the ledger."""

    def note_each(self, kind: AuditKind, abouts: Sequence[Alert | Disclosure | None], now: datetime) -> None:
        """Record several such things, all or none."""

    def gather(self, now: datetime, *, everything: bool = False) -> int:
        """Make records of new events and return how many events were read."""

    def pending(self, limit: int) -> tuple[AuditRecord, ...]:
        """Return the oldest records that the repository does not have yet."""

    def done(self, number: int) -> None:
        """Remove the records up to this one, which the repository has."""

    def blobs_of(self, study: str) -> tuple[str, ...]:
        """Return a few blobs of a study."""


class AuditTrail:
    """Sends audit messages to a repository in order, each until the repository has it. Nothing else waits for that."""

    def __init__(
        self,
        records: RecordQueue,
        sink: Sink,
        reporter: Reporter,
        *,
        read_blob: Callable[[str], bytes],
        clock: Callable[[], datetime],
        randomness: Callable[[], float],
        host: str,
    ) -> None:
        """`read_blob` returns stored bytes by name; `host` is the node's host name in syslog messages."""
        self._records, self._sink, self._reporter = records, sink, reporter
        self._read_blob, self._clock, self._randomness, self._host = read_blob, clock, randomness, host
        self._alerts: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()
        self._failures = 0
        self._not_before: datetime | None = None
        self._loop = Loop("audit", self.step, lambda: None, clock=clock, about={"of": "audit"})

    def start(self) -> None:
        """Record that the node starts, and start the loop.

        Raises: StoreUnavailable.
        """
        self._records.begin()
        self._records.note(AuditKind.APPLICATION_START, None, self._clock())
        self._loop.start()

    @property
    def running(self) -> bool:
        """Whether its loop runs."""
        return self._loop.running

    def stop(self) -> None:
        """Record that the node stops, and try once more to send everything; what cannot be sent waits in the store."""
        self._loop.stop()
        try:
            self._note_alerts()
            while self._records.gather(self._clock(), everything=True):
                pass
            self._records.note(AuditKind.APPLICATION_STOP, None, self._clock())
            while self._send():
                pass
        except CxrNodeError as error:
            log.warning("audit-incomplete", extra={"cause": str(error)})

    def alert(self, address: str, calling_ae: str, reason: str) -> None:
        """Count a refused peer; records are written by the loop, and their number is bounded whatever peers do."""
        key = (address, calling_ae, reason)
        with self._lock:
            if key not in self._alerts and len(self._alerts) >= _KINDS_OF_ALERT:
                key = ("various", "", "too many different alerts to name them")
            self._alerts[key] += 1

    def shown(self, visitor: str, address: str, studies: Sequence[str]) -> None:
        """Record that a visitor is about to see the patients of studies; the page shows them only if this returns.

        Raises: StoreUnavailable.
        """
        abouts = [Disclosure(study=study, visitor=visitor, address=address) for study in studies]
        self._records.note_each(AuditKind.SHOWN, abouts, self._clock())

    def step(self) -> int:
        """Make records of what is new and send a batch; return how many records were made or sent.

        Raises: StoreUnavailable.
        """
        self._note_alerts()
        gathered = self._records.gather(self._clock())
        if self._not_before is not None and self._clock() < self._not_before:
            return 0
        return self._send() + gathered

    def _note_alerts(self) -> None:
        with self._lock:
            alerts, self._alerts = self._alerts, Counter()
        for (address, calling_ae, reason), times in alerts.items():
            about = Alert(address=address, calling_ae=calling_ae, reason=reason, times=times)
            self._records.note(AuditKind.ALERT, about, self._clock())

    def _send(self) -> int:
        """Send a batch and return its size; after a failure the next one waits, longer each time."""
        records = self._records.pending(_BATCH)
        if not records:
            return 0
        try:
            self._sink.send([self._line(record) for record in records])
        except CxrNodeError as error:
            self._failures += 1
            delay_s = _RETRY_POLICY.delay_s(self._failures, self._randomness())
            self._not_before = self._clock() + timedelta(seconds=delay_s)
            log.warning("audit-deferred", extra={"cause": str(error), "attempt": self._failures})
            return 0
        self._failures, self._not_before = 0, None
        self._records.done(records[-1].number)
        return len(records)

    def _line(self, record: AuditRecord) -> bytes:
        patient = (
            self._patient_of(record.about.study)
            if isinstance(record.about, InstanceTransfer | Disclosure)
            else _NOT_STATED
        )
        xml = write_message(record, self._reporter, patient)
        return syslog_line(xml, number=record.number, at=record.at, host=self._host)

    def _patient_of(self, study: str) -> AuditPatient:
        """Return the patient of a study, read from an object of it that is still stored."""
        for blob in self._records.blobs_of(study):
            try:
                patient = read_header(self._read_blob(blob)).patient
            except Permanent:
                continue
            if patient.patient_id:
                return AuditPatient(patient_id=patient.patient_id, name=patient.name)
        return _NOT_STATED
