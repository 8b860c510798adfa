"""Bounds that pynetdicom's sockets lack: on what a peer may send, for how long, and how much of it is kept.

pynetdicom 3.0.4 reads as many bytes as a PDU header announces, waits without limit for the rest of a PDU or a message,
and queues requests without limit. This module takes its place at those points and nowhere else.
"""

import contextlib
import logging
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from pynetdicom import _config
from pynetdicom.ae import ApplicationEntity
from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

from dicomnode.domain.identifiers import IMPLEMENTATION_CLASS_UID
from dicomnode.net.dimse.associate import InvalidPdu, Rejected, aborted_pdu, accepted_pdu, read_rejection
from dicomnode.net.dimse.memory_budget import MemoryBudget
from dicomnode.net.dimse.messages import Messages, failure_of, refuse
from dicomnode.net.dimse.pdu import HEADER_BYTES, UNKNOWN_PDU, Pdu, is_reasonable, longest, read_header
from dicomnode.net.dimse.refusals import Refusals
from dicomnode.net.dimse.streaming import ObjectStream, streamed_bytes
from dicomnode.net.dimse.tls import shake_hands

log = logging.getLogger(__name__)

# One is being answered while the next waits: a peer that keeps to the asynchronous operations window sends one at a
# time (PS3.7 D.3.3.3).
_UNANSWERED_REQUESTS = 2
# Command sets have a dozen short elements; what comes with any request but C-STORE is a short list.
_LARGEST_COMMAND_BYTES = 65_536
_LARGEST_INFORMATION_BYTES = 4_194_304
IMPLEMENTATION_VERSION_NAME = "CXRNODE"

# What the library would refuse, or its threads die of, for one unknown item or reserved value.
_REWRITTEN = frozenset({Pdu.ASSOCIATE_AC, Pdu.ASSOCIATE_RJ, Pdu.ABORT})

_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
"""Where the system has it: Linux."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may cost.

    `pdu_bytes`: the longest P-DATA; `object_bytes`: the longest message; `associate_s`: how long a peer may take until
    it has asked for an association; `pdu_s`: over each PDU afterwards, also for taking what the node sends;
    `bytes_per_s`: how fast a message has to come in after its first `pdu_s`.
    """

    pdu_bytes: int
    object_bytes: int
    associate_s: float
    pdu_s: float
    bytes_per_s: int = 1


class BoundedSocket(AssociationSocket):  # type: ignore[misc]
    """A connection that ends when its peer goes over the limits.

    `preloaded` is what was already read of it, and comes first; `budget` is shared by all connections of a listener.
    `rejected` is the answer to the node's own request where that is a rejection, `invalid` says what is wrong with it.
    """

    socket: Any
    limits: Limits
    refusals: Refusals
    connect_error: OSError | None
    read_error: OSError | None
    preloaded: bytearray
    budget: MemoryBudget | None
    stream: ObjectStream | None
    rejected: Rejected | None
    invalid: str

    @classmethod
    def adopting(cls, plain: Any, limits: Limits, refusals: Refusals | None = None) -> "BoundedSocket":
        """Return a bounded socket in place of `plain`, which pynetdicom made and which is not to be used again."""
        bounded: BoundedSocket = cls.__new__(cls)
        bounded.__dict__.update(plain.__dict__)
        bounded.limits = limits
        bounded.refusals = refusals or Refusals()
        bounded.connect_error = bounded.read_error = None
        bounded.preloaded = bytearray()
        bounded.budget = bounded.stream = None
        bounded.rejected, bounded.invalid = None, ""
        bounded._body_of = None
        bounded._is_over = False
        bounded._pdu_deadline = 0.0
        bounded._message_began = None
        bounded._unanswered = deque()
        return bounded

    _body_of: int | None
    _is_over: bool
    _pdu_deadline: float
    _message_began: float | None
    _unanswered: deque[int]

    def prepare(self) -> None:
        """Set what a connected socket needs: no stall on small PDUs, and no send that waits for ever."""
        if self.socket is not None:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.settimeout(self.limits.pdu_s)

    def connect(self, primitive: T_CONNECT) -> None:
        """Connect to the peer, and keep the error when that fails."""
        try:
            self.socket.settimeout(self.assoc.connection_timeout)
            deadline = time.monotonic() + self.assoc.connection_timeout
            self.socket.connect(primitive.address_info.as_tuple)
            if self.tls_args:
                context, hostname = self.tls_args
                self.socket = context.wrap_socket(self.socket, server_hostname=hostname, do_handshake_on_connect=False)
                shake_hands(self.socket, deadline)
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
        """End the connection; the thread that reads from it or writes to it then closes the socket."""
        wire = self.socket
        if wire is not None:
            with contextlib.suppress(OSError):
                # Past SSLSocket's own, which would let a writer on another thread go on without encryption.
                socket.socket.shutdown(wire, socket.SHUT_RDWR)

    def _shutdown_socket(self) -> None:
        # pynetdicom's own leaves the descriptor open when the peer was first to close.
        self.cut()
        if self.socket is not None:
            self.socket.close()
        if self.stream is not None:
            self.stream.end()
        budget, self.budget = self.budget, None
        if budget is not None:
            budget.release(self)

    @property
    def ready(self) -> bool:
        """Whether a PDU can be read; while requests wait none is read, so that TCP flow control slows the peer down."""
        waiting = max(self.assoc.dimse.msg_queue.qsize(), len(self._unanswered))
        if waiting >= _UNANSWERED_REQUESTS:
            return False
        if self.preloaded:
            return True
        # What is diverted is no event for the library; it is told of the first PDU that is not.
        while super().ready:
            if self.stream is None or not self._divert(self.stream):
                return True
        return False

    def _divert(self, stream: ObjectStream) -> bool:
        """Take the next PDU past the library, if it is a fragment amid a large object; if not, it is read next."""
        if not stream.wants(self.assoc):
            return False
        header = self.recv(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            self._is_over = True
        elif header[0] == Pdu.P_DATA:
            length = read_header(header)[1]
            body = self.recv(length)
            self._is_over = len(body) < length
            if not self._is_over and stream.take(self.assoc.dimse.message, body):
                self.assoc.dul._idle_timer.restart()  # noqa: SLF001 the library does so for what it reads itself
                return True
            header += body
        self.preloaded = header
        return False

    def count_unanswered(self, association: Any) -> None:
        """Have the requests of an association that a peer opened counted, until each has been served."""
        serve = association._serve_request  # noqa: SLF001 the library has no event for a request that was served

        def serve_and_count(message: Any, context_id: int) -> None:
            try:
                context = association._accepted_cx.get(context_id)  # noqa: SLF001 by identifier
                # The library aborts for a context that was not accepted, and takes no notice of responses.
                failure = failure_of(message, context) if context is not None and message.is_request else None
                if failure is None:
                    serve(message, context_id)
                else:
                    refuse(association, message, context_id, failure)
            finally:
                # Requests to cancel are not counted, and the library serves those beyond the tenth.
                with contextlib.suppress(IndexError):
                    self._unanswered.popleft()
                self._hold(0)

        association._serve_request = serve_and_count  # noqa: SLF001

    def note_message(self, event: Any) -> None:
        """Note that a message is complete; called before it is queued or served."""
        if type(event.message).__name__ != "C_CANCEL_RQ":
            self._unanswered.append(self._message_bytes())

    def recv(self, nr_bytes: int) -> bytearray:
        """Read `nr_bytes`, or fewer when the peer closes, takes too long, or sends what it may not.

        The library takes the fewer for a lost connection, and ends the association.
        """
        if self._is_over:
            # What is left in the socket's buffer follows a PDU that was refused: it is no header.
            return bytearray()
        if self.preloaded:
            taken, self.preloaded = self.preloaded[:nr_bytes], self.preloaded[nr_bytes:]
            return taken
        try:
            return self._recv_body(nr_bytes) if self._body_of is not None else self._recv_header()
        except OSError as error:
            self.read_error = error
            self.cut()
            return bytearray()

    def _recv_header(self) -> bytearray:
        self._pdu_deadline = time.monotonic() + self.limits.pdu_s
        header = receive(self.socket, HEADER_BYTES, self._pdu_deadline)
        if len(header) < HEADER_BYTES:
            return header
        if _QUICKACK is not None:
            # Many peers write a PDU in two pieces and leave Nagle's algorithm on: the second waits until the first is
            # acknowledged, which the system would put off by 40 ms. It forgets, so it is told each time.
            self.socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        pdu_type, length = read_header(header)
        reason = self._objection(pdu_type, length)
        if reason is not None:
            return self._refuse(reason, length)
        if pdu_type in _REWRITTEN:
            return self._rewritten(pdu_type, length)
        # The library asks for no body of a type that it does not know.
        self._body_of = pdu_type if pdu_type in Pdu.__members__.values() else None
        return header

    def _rewritten(self, pdu_type: int, length: int) -> bytearray:
        """Read a PDU that opens or ends an association, and return its header as the library is to read it."""
        body = receive(self.socket, length, self._pdu_deadline)
        self.socket.settimeout(self.limits.pdu_s)
        if len(body) < length:
            return bytearray()
        if not is_reasonable(pdu_type, body):
            return self._refuse("parts", length)
        try:
            self.preloaded = bytearray(self._as_the_library_reads(pdu_type, body))
        except InvalidPdu as error:
            self.invalid = str(error)
            self._note("invalid", length, cause=self.invalid)
            self._is_over = True
            # The library answers what it does not know with an A-ABORT, and ends the association.
            return bytearray(UNKNOWN_PDU)
        header, self.preloaded = self.preloaded[:HEADER_BYTES], self.preloaded[HEADER_BYTES:]
        self._body_of = None
        return header

    def _as_the_library_reads(self, pdu_type: int, body: bytearray) -> bytes:
        if pdu_type == Pdu.ASSOCIATE_AC:
            return accepted_pdu(body)
        if pdu_type == Pdu.ABORT:
            return aborted_pdu(body)
        self.rejected = read_rejection(body)
        return self.rejected.pdu()

    def _recv_body(self, nr_bytes: int) -> bytearray:
        pdu_type, self._body_of = self._body_of or 0, None
        body = receive(self.socket, nr_bytes, self._pdu_deadline)
        self.socket.settimeout(self.limits.pdu_s)
        if not is_reasonable(pdu_type, body):
            return self._refuse("parts", nr_bytes)
        return body

    def _objection(self, pdu_type: int, length: int) -> str | None:
        """Say why a PDU that is announced is not to be read, if so."""
        if length > longest(pdu_type, self.limits.pdu_bytes):
            return "length"
        if pdu_type != Pdu.P_DATA:
            return None
        if self._is_too_slow():
            return "too-slow"
        if not self._may_grow():
            return "object-size"
        return None if self._hold(length) else "memory"

    def _is_too_slow(self) -> bool:
        now = time.monotonic()
        if self.assoc.dimse.message is None:
            self._message_began = None
            return False
        if self._message_began is None:
            self._message_began = now
        allowed_s = self.limits.pdu_s + self._message_bytes() / self.limits.bytes_per_s
        return now - self._message_began > allowed_s

    def _may_grow(self) -> bool:
        message = self.assoc.dimse.message
        if message is None:
            return True
        is_object = type(message).__name__ in ("C_STORE_RQ", "DIMSEMessage")
        most = self.limits.object_bytes if is_object else min(self.limits.object_bytes, _LARGEST_INFORMATION_BYTES)
        return self._message_bytes() <= most and message.encoded_command_set.tell() <= _LARGEST_COMMAND_BYTES

    def _hold(self, more: int) -> bool:
        budget = self.budget
        if budget is None:
            return True
        return budget.hold(self, self._message_bytes() + sum(self._unanswered) + more)

    def _refuse(self, reason: str, length: int) -> bytearray:
        self._note(reason, length)
        self.cut()
        return bytearray()

    def refuse_message(self, reason: str) -> None:
        """Note that a message of the peer's ends the association."""
        self._note(reason)

    def _note(self, reason: str, length: int | None = None, **about: str) -> None:
        peer = self.assoc.acceptor if self.assoc.is_requestor else self.assoc.requestor
        announced = {"announced_bytes": length} if length is not None else {}
        self.refusals.note("pdu-refused", reason, peer.address_info.address, **announced, **about)

    def _message_bytes(self) -> int:
        message = self.assoc.dimse.message
        if message is None or message.data_set is None:
            return 0
        diverted = streamed_bytes(message.data_set)
        return diverted + int(message.data_set.tell()) + int(message.encoded_command_set.tell())


def receive(wire: socket.socket, count: int, deadline: float) -> bytearray:
    """Read `count` bytes, or fewer when the peer closes; `deadline` is on the monotonic clock, for all of them.

    Raises: OSError, of which TimeoutError at the deadline.
    """
    buffer = bytearray(count)
    position = 0
    with memoryview(buffer) as view:
        while position < count:
            wire.settimeout(max(deadline - time.monotonic(), 0.001))
            got = wire.recv_into(view[position:])
            if got == 0:
                break
            position += got
    return buffer if position == count else buffer[:position]


class BoundedEntity(ApplicationEntity):  # type: ignore[misc]
    """An application entity whose connections are bounded."""

    limits: Limits

    def _create_socket(self, association: Any, address: Any, tls_args: Any) -> BoundedSocket:
        bounded = BoundedSocket.adopting(super()._create_socket(association, address, tls_args), self.limits)
        association.dimse = Messages(association, bounded.refuse_message)
        return bounded


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
