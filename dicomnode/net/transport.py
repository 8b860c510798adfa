"""Bounds that pynetdicom's sockets and server lack: on what a peer may send, for how long, and how often.

pynetdicom 3.0.4 reads as many bytes as a PDU header announces, waits without limit for the rest of a PDU, queues
requests without limit, and counts idle connections as associations. This module takes its place at those four points
and nowhere else.
"""

import contextlib
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from socketserver import TCPServer
from typing import Any

from pynetdicom import _config
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.transport import (
    T_CONNECT,
    AddressInformation,
    AssociationSocket,
    RequestHandler,
    ThreadedAssociationServer,
)

from dicomnode.domain.identifiers import IMPLEMENTATION_CLASS_UID

log = logging.getLogger(__name__)

# Room for an A-ASSOCIATE-RQ of 128 contexts with all their transfer syntaxes, whatever is negotiated for P-DATA.
_SMALLEST_PDU_LIMIT = 262_144
# A peer that keeps to the asynchronous operations window sends one request at a time (PS3.7 D.3.3.3).
_WAITING_REQUESTS = 2
IMPLEMENTATION_VERSION_NAME = "CXRNODE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may cost.

    `pdu_bytes`: the longest PDU; `object_bytes`: the longest message; `associate_s`: how long a peer may take over each
    PDU before the association stands; `pdu_s`: the same afterwards, also for taking what the node sends.
    """

    pdu_bytes: int
    object_bytes: int
    associate_s: float
    pdu_s: float


class BoundedSocket(AssociationSocket):  # type: ignore[misc]
    """A connection that ends when its peer goes over the limits."""

    socket: Any
    limits: Limits
    connect_error: OSError | None = None

    @classmethod
    def adopting(cls, plain: Any, limits: Limits) -> "BoundedSocket":
        """Return a bounded socket in place of `plain`, which pynetdicom made and which is not to be used again."""
        bounded: BoundedSocket = cls.__new__(cls)
        bounded.__dict__.update(plain.__dict__)
        bounded.limits = limits
        return bounded

    def prepare(self) -> None:
        """Set what a connected socket needs: no stall on small PDUs, and no send that waits for ever."""
        if self.socket is not None:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.settimeout(self.limits.pdu_s)

    def connect(self, primitive: T_CONNECT) -> None:
        """Connect to the peer, and keep the error when that fails."""
        try:
            self.socket.settimeout(self.assoc.connection_timeout)
            self.socket.connect(primitive.address_info.as_tuple)
            self.assoc.requestor.address_info = AddressInformation.from_tuple(self.socket.getsockname())
            self.prepare()
            self._is_connected = True
            primitive.result = "Evt2"
        except OSError as error:
            self.connect_error = error
            self.socket.close()
            self.socket = None
            primitive.result = "Evt17"
        finally:
            self.provider_queue.put(primitive)
            self._ready.set()

    def cut(self) -> None:
        """End the connection under whoever is reading from it or writing to it, who then closes the socket."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def _shutdown_socket(self) -> None:
        # pynetdicom's own leaves the descriptor open when the peer was first to close.
        self.cut()
        if self.socket is not None:
            self.socket.close()

    @property
    def ready(self) -> bool:
        """Whether a PDU can be read; not while requests are waiting, so that the peer is held back by TCP."""
        if self.assoc.dimse.msg_queue.qsize() >= _WAITING_REQUESTS:
            return False
        return bool(super().ready)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read `nr_bytes`, or fewer when the peer closes, takes too long, or announces more than it may send.

        The library takes the fewer for a lost connection, and ends the association.
        """
        if nr_bytes > self._pdu_limit or self._message_bytes() > self.limits.object_bytes:
            log.warning(
                "pdu-refused",
                extra={"peer": self.assoc.requestor.address_info.address, "announced_bytes": nr_bytes},
            )
            self.cut()
            return bytearray()
        try:
            return self._read(nr_bytes)
        except OSError:
            self.cut()
            return bytearray()

    @property
    def _pdu_limit(self) -> int:
        return max(self.limits.pdu_bytes, _SMALLEST_PDU_LIMIT)

    def _message_bytes(self) -> int:
        message = self.assoc.dimse.message
        if message is None or message.data_set is None:
            return 0
        return int(message.data_set.tell()) + int(message.encoded_command_set.tell())

    def _read(self, nr_bytes: int) -> bytearray:
        patience_s = self.limits.pdu_s if self.assoc.is_established else self.limits.associate_s
        deadline = time.monotonic() + patience_s
        buffer = bytearray(nr_bytes)
        view = memoryview(buffer)
        position = 0
        try:
            while position < nr_bytes:
                self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
                count = self.socket.recv_into(view[position:])
                if count == 0:
                    return buffer[:position]
                position += count
        finally:
            view.release()
        self.socket.settimeout(self.limits.pdu_s)
        return buffer


class BoundedEntity(ApplicationEntity):  # type: ignore[misc]
    """An application entity whose connections are bounded."""

    limits: Limits

    @property
    def active_associations(self) -> list[Any]:
        """Every association; a connection over which nothing has been asked yet is none, and holds no slot."""
        return [entry for entry in super().active_associations if entry.is_requestor or _has_asked(entry)]

    def _create_socket(self, association: Any, address: Any, tls_args: Any) -> BoundedSocket:
        return BoundedSocket.adopting(super()._create_socket(association, address, tls_args), self.limits)


class BoundedHandler(RequestHandler):  # type: ignore[misc]
    """Makes the association of a new connection, bounded."""

    def _create_association(self) -> Any:
        association = super()._create_association()
        association.dul.socket = BoundedSocket.adopting(association.dul.socket, self.ae.limits)
        association.dul.socket.prepare()
        return association


class BoundedServer(ThreadedAssociationServer):  # type: ignore[misc]
    """A listener that turns away peers with too many connections over which nothing has been asked."""

    pending_per_address: int = 16
    pending_in_all: int = 64
    between_polls: Callable[[], None] | None = None

    def service_actions(self) -> None:
        """Do what is to be done between two polls of the listening socket."""
        super().service_actions()
        if self.between_polls is not None:
            self.between_polls()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 the signature is socketserver's
        """Tell whether a new connection may wait for its association request."""
        waiting = [entry for entry in self.active_associations if not _has_asked(entry)]
        same = sum(entry.requestor.address_info.address == client_address[0] for entry in waiting)
        if len(waiting) < self.pending_in_all and same < self.pending_per_address:
            return True
        log.warning("connection-refused", extra={"peer": client_address[0], "pending": len(waiting)})
        return False

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 the signature is socketserver's
        """Log that a connection could not be served, where socketserver would print a traceback."""
        log.error("connection-failed", extra={"peer": client_address[0]})

    def shutdown(self) -> None:
        """Stop accepting and close the listening socket."""
        # Past pynetdicom's own shutdown, which unregisters a server that its start_server() registered.
        TCPServer.shutdown(self)
        self.server_close()


def new_entity(ae_title: str, limits: Limits) -> BoundedEntity:
    """Return an application entity with the node's own identity, after silencing the library's logs."""
    own_library_logs()
    entity = BoundedEntity(ae_title=ae_title)
    entity.limits = limits
    entity.maximum_pdu_size = limits.pdu_bytes
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.acse_timeout = limits.associate_s
    entity.network_timeout = limits.pdu_s
    return entity


def own_library_logs() -> None:
    """Keep pynetdicom's own messages out of the node's log: they quote data sets, PDUs and exceptions.

    What remains of them is where they were written, which carries nothing of a patient.
    """
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = False
    _config.LOG_RESPONSE_IDENTIFIERS = False
    library = logging.getLogger("pynetdicom")
    if not any(isinstance(handler, _PlaceOnly) for handler in library.handlers):
        library.handlers = [_PlaceOnly(level=logging.WARNING)]
        library.propagate = False


class _PlaceOnly(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        log.info("library-message", extra={"place": f"{record.name}:{record.lineno}", "error": error})


def _has_asked(association: Association) -> bool:
    return association.requestor.primitive is not None
