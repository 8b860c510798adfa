"""The listening socket: connections are counted, and have to request an association in time.

A thread of its own reads the whole association request of a connection, under one deadline, and only then is an
association made, which costs pynetdicom two threads that poll. The thread stays until the connection has ended, and
clears up behind it.
"""

import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from socketserver import TCPServer
from typing import Any

from pynetdicom import evt
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from dicomnode.certificates import RenewedContext
from dicomnode.net.dimse.associate import AssociateRequest, InvalidPdu, read_request, reject_pdu
from dicomnode.net.dimse.memory_budget import MemoryBudget
from dicomnode.net.dimse.messages import Messages
from dicomnode.net.dimse.pdu import (
    HEADER_BYTES,
    INVALID_PARAMETER,
    LONGEST_REQUEST_BYTES,
    UNEXPECTED,
    UNRECOGNISED,
    Pdu,
    abort_pdu,
    is_reasonable,
    read_header,
)
from dicomnode.net.dimse.refusals import Refusals
from dicomnode.net.dimse.streaming import ObjectStream, StreamedObject
from dicomnode.net.dimse.tls import shake_hands, tls_cause
from dicomnode.net.dimse.transport import BoundedSocket, receive
from dicomnode.net.scp.admission import Admission, AssociateRejection, PeerConnection

log = logging.getLogger(__name__)

_END_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerContext:
    """What all listeners of a node share; `between_polls` is called several times a second.

    `arriving` begins an object that is stored while it comes; without it every object is received whole.
    """

    admission: Admission
    refusals: Refusals
    budget: MemoryBudget
    between_polls: Callable[[], None]
    arriving: Callable[[], StreamedObject] | None = None


class BoundedServer(ThreadedAssociationServer):  # type: ignore[misc]
    """A listener that refuses the connections that its admission does not allow."""

    # A flood of connections must not keep other peers from being accepted.
    request_queue_size = 128
    daemon_threads = True

    context: "ListenerContext"
    tls: RenewedContext | None

    def take(self, context: "ListenerContext", tls: RenewedContext | None) -> None:
        """Set the shared context and the TLS certificate; to be called before the server starts."""
        self.context, self.tls = context, tls
        self._connections: dict[Any, PeerConnection] = {}

    def service_actions(self) -> None:
        """Do what is to be done between two polls of the listening socket."""
        super().service_actions()
        self.context.between_polls()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Accept a new connection; where too many wait for a request, another one is ended."""
        if not self.context.admission.may_connect(client_address[0]):
            self.context.refusals.note("connection-refused", "network", client_address[0])
            return False
        connection, eviction = self.context.admission.connect(client_address[0], request)
        if eviction is not None:
            self.context.refusals.note("connection-refused", eviction.reason, eviction.connection.address)
            eviction.connection.cut()
        self._connections[client_address] = connection
        return True

    def connection_of(self, client_address: Any) -> PeerConnection:
        """Return a connection that was accepted, once."""
        return self._connections.pop(client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 the signature is socketserver's
        """Log that a connection could not be served, where socketserver would print a traceback."""
        connection = self._connections.pop(client_address, None)
        if connection is not None:
            self.context.admission.leave(connection)
        log.error("connection-failed", extra={"peer": client_address[0]})

    def shutdown(self) -> None:
        """Stop accepting and close the listening socket."""
        # Past pynetdicom's own shutdown, which unregisters a server that its start_server() registered.
        TCPServer.shutdown(self)
        self.server_close()


class BoundedHandler(RequestHandler):  # type: ignore[misc]
    """Serves one connection, from its first byte until its socket is closed."""

    server: BoundedServer
    request: Any

    def handle(self) -> None:
        """Read the request, hand it to an association, wait until that has ended, and close the socket."""
        connection = self.server.connection_of(self.client_address)
        try:
            asked = self._read_request(connection)
            if not isinstance(asked, _Objection):
                self._associate(connection, asked)
            elif asked is not _PROBED:
                self._turn_away(asked)
        finally:
            self.server.context.admission.leave(connection)
            self.server.shutdown_request(self.request)

    def _associate(self, connection: PeerConnection, asked: AssociateRequest) -> None:
        association = self._create_association()
        bounded = BoundedSocket.adopting(association.dul.socket, self.ae.limits, self.server.context.refusals)
        bounded.prepare()
        bounded.preloaded, bounded.budget = bytearray(asked.pdu), self.server.context.budget
        if self.server.context.arriving is not None:
            bounded.stream = ObjectStream(self.server.context.arriving)
        association.dul.socket = bounded
        association.connection, association.asked = connection, asked
        association.dimse = Messages(association, bounded.refuse_message)
        bounded.count_unanswered(association)
        association.bind(evt.EVT_DIMSE_RECV, bounded.note_message)
        association.start()
        try:
            association.join()
            association.dul.join(_END_S)
        finally:
            bounded.close()

    def _encrypt(self, connection: PeerConnection, deadline: float) -> None:
        if self.server.tls is not None:
            context = self.server.tls.context()
            # In this order: whoever cuts the connection has to find the socket that is in use.
            connection.wire = self.request = context.wrap_socket(
                self.request, server_side=True, do_handshake_on_connect=False
            )
            shake_hands(self.request, deadline)

    def _read_request(self, connection: PeerConnection) -> "AssociateRequest | _Objection":
        """Return the whole first PDU when it is an association request."""
        deadline = time.monotonic() + self.ae.limits.associate_s
        try:
            self._encrypt(connection, deadline)
            header = receive(self.request, HEADER_BYTES, deadline)
            return _objection_to(header) or _read_body(self.request, header, deadline)
        except TimeoutError:
            return _Objection("request-timeout")
        except ssl.SSLError as error:
            return _Objection("tls", cause=tls_cause(error))
        except OSError:
            return _Objection("connection-lost")

    def _turn_away(self, objection: "_Objection") -> None:
        about = {"cause": objection.cause} if objection.cause else {}
        event = "association-rejected" if objection.rejection is not None else "connection-refused"
        self.server.context.refusals.note(event, objection.reason, self.client_address[0], **about, **objection.titles)
        with contextlib.suppress(OSError):
            if objection.abort is not None:
                self.request.sendall(abort_pdu(objection.abort))
            elif objection.rejection is not None:
                self.request.sendall(reject_pdu(*objection.rejection.value))


@dataclass(frozen=True, slots=True)
class _Objection:
    """Why a peer gets no association: the reason of the A-ABORT that tells it so, or the rejection."""

    reason: str
    abort: int | None = None
    cause: str = ""
    rejection: AssociateRejection | None = None
    titles: Mapping[str, str] = field(default_factory=dict)


# Monitoring connects and closes to see whether the port is open: that is no refusal.
_PROBED = _Objection("nothing-sent")


def _read_body(wire: Any, header: bytearray, deadline: float) -> AssociateRequest | _Objection:
    """Read an association request behind its header. Raises: OSError, of which TimeoutError at the deadline."""
    pdu_type, length = read_header(header)
    body = receive(wire, length, deadline)
    if len(body) < length:
        return _Objection("connection-lost")
    if not is_reasonable(pdu_type, body):
        return _Objection("request-parts", INVALID_PARAMETER)
    try:
        return _checked(read_request(body))
    except InvalidPdu as error:
        return _Objection("request-invalid", INVALID_PARAMETER, cause=str(error))


def _checked(asked: AssociateRequest) -> AssociateRequest | _Objection:
    """Return a request that speaks of DICOM in the only version there is, or why it does not. Source: PS3.8 9.3.4."""
    titles = {"calling_ae": asked.calling_ae, "called_ae": asked.called_ae}
    if not asked.is_version_supported:
        return _Objection("protocol-version", rejection=AssociateRejection.PROTOCOL_VERSION, titles=titles)
    if not asked.is_dicom:
        return _Objection("application-context", rejection=AssociateRejection.APPLICATION_CONTEXT, titles=titles)
    return asked


def _objection_to(header: bytearray) -> _Objection | None:
    if not header:
        return _PROBED
    if len(header) < HEADER_BYTES:
        return _Objection("connection-lost")
    pdu_type, length = read_header(header)
    if pdu_type not in Pdu.__members__.values():
        return _Objection("not-dicom", UNRECOGNISED)
    if pdu_type != Pdu.ASSOCIATE_RQ:
        return _Objection("not-a-request", UNEXPECTED)
    return _Objection("request-length", INVALID_PARAMETER) if length > LONGEST_REQUEST_BYTES else None
