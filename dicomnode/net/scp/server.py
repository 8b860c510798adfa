"""Verification and Storage SCP: check, hand the raw bytes on, answer. Reports of commitment come in here too.

A data set is never decoded here. 0x0000 is answered only after `Receiver.accept` has returned, that is, after bytes
and row are durable.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO
from typing import Any, Protocol

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.service_class import StorageServiceClass, VerificationServiceClass
from pynetdicom.sop_class import register_uid, uid_to_service_class

from dicomnode.certificates import RenewedContext, ServedCertificate
from dicomnode.dicom.part10 import part10_bytes, read_ref
from dicomnode.domain.errors import ConfigurationError, CxrNodeError, UidMismatch, UnreadableObject
from dicomnode.domain.identifiers import is_valid_uid
from dicomnode.domain.instance import AssociationInfo, InstanceRef
from dicomnode.net.contexts import accepted_contexts, listening_contexts
from dicomnode.net.dimse.memory_budget import MemoryBudget
from dicomnode.net.dimse.refusals import Refusals
from dicomnode.net.dimse.streaming import StreamedObject, Tail, streamed_bytes
from dicomnode.net.dimse.tls import listener_tls
from dicomnode.net.dimse.transport import BoundedEntity, Limits, new_entity
from dicomnode.net.scp.admission import Admission, AssociateRejection, Refusal
from dicomnode.net.scp.listener import BoundedHandler, BoundedServer, ListenerContext
from dicomnode.net.scp.rate_limit import RateLimit
from dicomnode.net.status import EventStatus, StoreStatus, describe, status_for
from dicomnode.settings.node import ScpSettings
from dicomnode.telemetry import where_raised

log = logging.getLogger(__name__)

_POLL_S = 0.1
_ABORT_S = 5.0
_COMMENT_CHARACTERS = 64
_DRAINING = Refusal(rejection=AssociateRejection.CONGESTION, reason="stopping")


class Receiver(Protocol):
    """Where received instances become durable."""

    def accept(
        self, ref: InstanceRef, transfer_syntax: str, part10: Any, association: AssociationInfo, now: datetime
    ) -> object:
        """Make an instance durable before returning. Raises: DiskFull, StoreUnavailable, UidMismatch.

        `part10`: its bytes, or what `arriving` began and is whole by now.
        """

    def association_opened(self, association_id: str, now: datetime) -> None:
        """Record that an association is open and may bring instances."""

    def association_released(self, association_id: str, now: datetime) -> None:
        """Record that an association has ended, by release, abort or a lost connection."""


class StorageScp:
    """The node's listener. `identifiers` names associations; no two may be the same."""

    def __init__(
        self,
        settings: ScpSettings,
        reception: Receiver,
        *,
        clock: Callable[[], datetime],
        identifiers: Callable[[], str],
        reports: Callable[[Any], tuple[int, None]] | None = None,
        alert: Callable[[str, str, str], None] | None = None,
        arriving: Callable[[], StreamedObject] | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the parts; `reports` serves what destinations report by Storage Commitment.

        `arriving` begins an object that is stored while it comes, as large ones then are. `changed` is called when
        there is another image, or a study that may be complete.
        `alert` is told of every peer turned away: its address, its calling AE title if known, and why.
        """
        self._settings = settings
        self._reception = reception
        self._clock = clock
        self._identifiers = identifiers
        self._reports = reports or _refuse_operation
        self._arriving, self._changed = arriving, changed
        self._admission = Admission(settings)
        self._refusals = Refusals(alert=alert)
        per_s = settings.maximum_objects_per_s
        self._object_rate = RateLimit(per_s, per_s) if per_s is not None else None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[Any, AssociationInfo] = {}
        self._accepted = 0
        self._ended: set[str] = set()
        self._servers: list[BoundedServer] = []

    @property
    def associations(self) -> int:
        """The number of open associations."""
        with self._lock:
            return len(self._open)

    @property
    def accepted(self) -> int:
        """How many associations were accepted since the node was built."""
        with self._lock:
            return self._accepted

    @property
    def refused(self) -> Mapping[tuple[str, str], int]:
        """How often peers were turned away since the node was built, by event and reason."""
        return self._refusals.counts

    @property
    def listening(self) -> bool:
        """Whether new associations are accepted."""
        return bool(self._servers)

    @property
    def certificate(self) -> ServedCertificate | None:
        """The certificate that peers are shown, where they come over TLS."""
        return next((server.tls.served() for server in self._servers if server.tls is not None), None)

    def start(self) -> None:
        """Listen in the background.

        Raises: ConfigurationError if the address cannot be listened on, or a certificate cannot be used.
        """
        self._stopping.clear()
        settings = self._settings
        tls = listener_tls(settings.tls, self._clock) if settings.tls.certificate is not None else None
        for position, sop_class in enumerate(settings.also_accept):
            _register(sop_class, position)
        entity = _entity(settings)
        context = ListenerContext(
            admission=self._admission,
            refusals=self._refusals,
            budget=MemoryBudget(settings.maximum_pending_bytes, settings.maximum_associations),
            between_polls=self._sweep,
            arriving=self._arriving,
        )
        for port, encrypted in settings.ports():
            self._listen(entity, port, context, tls if encrypted else None)

    def _listen(self, entity: Any, port: int, context: ListenerContext, tls: RenewedContext | None) -> None:
        settings = self._settings
        try:
            server = entity.make_server(
                (settings.bind, port),
                contexts=listening_contexts(accepted_contexts(settings.also_accept)),
                evt_handlers=self._handlers(),
                server_class=BoundedServer,
                request_handler=BoundedHandler,
            )
        except OSError as error:
            self.stop(drain_s=0)
            raise ConfigurationError(listen_failure(settings.bind, port, error)) from error
        server.take(context, tls)
        self._servers.append(server)
        threading.Thread(target=server.serve_forever, args=(_POLL_S,), name=f"scp-{port}", daemon=True).start()
        about = {"ae_title": settings.ae_title, "address": settings.bind, "port": port, "tls": tls is not None}
        log.info("scp-listening", extra=about)

    def stop(self, drain_s: float = 30.0) -> None:
        """Accept nothing new, let present associations end for up to `drain_s`, then abort what remains."""
        servers, self._servers = self._servers, []
        if not servers:
            return
        self._stopping.set()
        for server in servers:
            server.shutdown()
        deadline = time.monotonic() + drain_s
        while time.monotonic() < deadline and self.associations:
            time.sleep(_POLL_S / 2)
            self._sweep()
        for connection in self._admission.waiting():
            connection.cut()
        _end([association for server in servers for association in server.active_associations])
        self._sweep()

    def _handlers(self) -> list[tuple[Any, Callable[[Any], Any]]]:
        return [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_N_EVENT_REPORT, self._reports),
            (evt.EVT_N_ACTION, _refuse_operation),
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_ESTABLISHED, self._on_established),
            (evt.EVT_RELEASED, self._on_ended),
            (evt.EVT_ABORTED, self._on_ended),
        ]

    def _on_requested(self, event: Any) -> None:
        requestor = event.assoc.requestor
        titles = {"calling_ae": event.assoc.asked.calling_ae, "called_ae": event.assoc.asked.called_ae}
        refusal = _DRAINING if self._stopping.is_set() else self._admission.associate(event.assoc.connection, **titles)
        if refusal is None:
            return
        self._refusals.note("association-rejected", refusal.reason, requestor.address_info.address, **titles)
        event.assoc.acse.send_reject(*refusal.rejection.value)
        # Waits until the rejection is sent; pynetdicom would close the connection before.
        event.assoc.kill()

    def _on_established(self, event: Any) -> None:
        requestor = event.assoc.requestor
        info = AssociationInfo(
            association_id=self._identifiers(),
            calling_ae=event.assoc.asked.calling_ae,
            called_ae=event.assoc.asked.called_ae,
            peer_address=requestor.address_info.address,
        )
        with self._lock:
            self._open[event.assoc] = info
            self._accepted += 1
        log.info("association-opened", extra=_about(info))
        try:
            self._reception.association_opened(info.association_id, self._clock())
        except CxrNodeError as error:
            log.warning("association-not-recorded", extra={**_about(info), "cause": str(error)})

    def _on_ended(self, event: Any) -> None:
        self._close(event.assoc, released=event.assoc.is_released)

    def _close(self, association: Any, *, released: bool) -> None:
        with self._lock:
            info = self._open.pop(association, None)
            if info is not None:
                self._ended.add(info.association_id)
        if info is not None:
            log.info("association-released" if released else "association-aborted", extra=_about(info))
            self._record_ended()

    def _record_ended(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, set()
        for association_id in ended:
            try:
                self._reception.association_released(association_id, self._clock())
            except CxrNodeError as error:
                log.warning("association-not-recorded", extra={"association": association_id, "cause": str(error)})
                with self._lock:
                    self._ended.add(association_id)
            else:
                self._changed()

    def _sweep(self) -> None:
        """Record the end of associations that ended without an event, or whose end could not be recorded before."""
        with self._lock:
            dead = [association for association in self._open if not association.is_alive()]
        for association in dead:
            self._close(association, released=False)
        if self._ended:
            self._record_ended()

    def _on_store(self, event: Any) -> Dataset:
        info = self._open.get(event.assoc)
        data_set = event.request.DataSet
        size_bytes = data_set.getbuffer().nbytes + streamed_bytes(data_set) if data_set else 0
        about = {"association": info.association_id if info else None, "size_bytes": size_bytes}
        if self._object_rate is not None and info is not None:
            self._stopping.wait(self._object_rate.wait_s(info.peer_address))
        try:
            ref = self._receive(event, info)
        except CxrNodeError as error:
            status = status_for(error)
            log.warning("instance-refused", extra={**about, "status": describe(status), "cause": str(error)})
            return _answer(status, str(error))
        except Exception as error:  # noqa: BLE001 whatever fails, the peer gets a status and the listener lives
            # Without its message, which may quote the data set.
            log.error("instance-failed", extra={**about, "raised": where_raised(error)})  # noqa: TRY400
            return _answer(StoreStatus.INTERNAL_ERROR, "internal error")
        log.info("instance-received", extra={**about, "study": ref.study, "instance": ref.sop_instance})
        return _answer(StoreStatus.SUCCESS)

    def _receive(self, event: Any, info: AssociationInfo | None) -> InstanceRef:
        request, context = event.request, event.context
        if info is None or request.DataSet is None:
            raise UnreadableObject("a C-STORE request without association or data set")
        transfer_syntax = str(context.transfer_syntax)
        with _content(request.DataSet, transfer_syntax) as (ref, part10):
            _check_command(ref, str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID), context)
            self._reception.accept(ref, transfer_syntax, part10, info, self._clock())
        self._changed()
        return ref


@contextmanager
def _content(data_set: BytesIO, transfer_syntax: str) -> Iterator[tuple[InstanceRef, bytes | StreamedObject]]:
    """Give the reference of a data set and its Part 10 file, most of which may be stored already.

    Raises: UnreadableObject.
    """
    if not isinstance(data_set, Tail):
        data = data_set.getvalue()
        ref = read_ref(data, transfer_syntax)
        yield (
            ref,
            part10_bytes(data, sop_class=ref.sop_class, sop_instance=ref.sop_instance, transfer_syntax=transfer_syntax),
        )
        return
    try:
        data_set.arriving.write(data_set.getvalue())
        yield data_set.ref, data_set.arriving
    finally:
        data_set.arriving.discard()


def _refuse_operation(_: Any) -> tuple[int, None]:
    return int(EventStatus.UNRECOGNISED_OPERATION), None


def _end(associations: list[Any]) -> None:
    """Abort the established associations, and shut down the other connections."""
    established = [entry for entry in associations if entry.is_established]
    for entry in established:
        entry.abort(block=False)
    for entry in established:
        entry.join(_ABORT_S / len(established))
    for entry in associations:
        entry.dul.socket.cut()
    log.info("scp-stopped", extra={"aborted": len(established)})


def _check_command(ref: InstanceRef, sop_class: str, sop_instance: str, context: Any) -> None:
    """Check that command, data set and presentation context speak of the same object.

    Raises: UidMismatch, UnreadableObject.
    """
    if not is_valid_uid(sop_instance):
        raise UnreadableObject("Affected SOP Instance UID is not a valid UID")
    if sop_class != str(context.abstract_syntax):
        raise UidMismatch("Affected SOP Class UID is not that of the presentation context")
    if ref.sop_class != sop_class:
        raise UidMismatch("SOP Class UID of command and data set differ")
    if ref.sop_instance != sop_instance:
        raise UidMismatch("SOP Instance UID of command and data set differ")


def _answer(status: StoreStatus, comment: str = "") -> Dataset:
    answer = Dataset()
    answer.Status = int(status)
    if comment:
        answer.ErrorComment = comment[:_COMMENT_CHARACTERS]
    return answer


def _entity(settings: ScpSettings) -> BoundedEntity:
    entity = new_entity(settings.ae_title, _limits(settings))
    # The admission decides, of whose limits those of the library would be another opinion.
    entity.require_called_aet = False
    entity.maximum_associations = 2 * settings.maximum_associations
    entity.dimse_timeout = settings.dimse_timeout_s
    entity.network_timeout = settings.network_timeout_s
    return entity


def _limits(settings: ScpSettings) -> Limits:
    return Limits(
        pdu_bytes=settings.maximum_pdu_bytes,
        object_bytes=settings.maximum_object_bytes,
        associate_s=settings.acse_timeout_s,
        pdu_s=settings.network_timeout_s,
        bytes_per_s=settings.minimum_bytes_per_s,
    )


def _register(sop_class: str, position: int) -> None:
    """Register a configured SOP class as storage with pynetdicom, which aborts for classes it does not know."""
    service = uid_to_service_class(sop_class)
    if service is VerificationServiceClass:
        raise ConfigurationError(f"scp.also_accept: {sop_class} is not a storage SOP class")
    if not issubclass(service, StorageServiceClass):
        register_uid(sop_class, f"ConfiguredStorage{position}", StorageServiceClass)


def listen_failure(bind: str, port: int, error: OSError) -> str:
    """Return why an address cannot be listened on, and what to do about it."""
    where = f"port {port} of {bind}"
    if error.errno == errno.EADDRINUSE:
        remedy = "stop it (`ss -ltnp` names it), or choose another with scp.port"
        return f"{where} is already in use: another node or program listens there; {remedy}"
    if error.errno == errno.EACCES:
        return f"{where} may not be listened on: ports below 1024 need a privilege; choose another with scp.port"
    return f"{where} cannot be listened on: {error.strerror or error}"


def _about(info: AssociationInfo) -> dict[str, str]:
    return {
        "association": info.association_id,
        "calling_ae": info.calling_ae,
        "called_ae": info.called_ae,
        "peer": info.peer_address,
    }
