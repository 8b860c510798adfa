"""The requestor's side of one association: opening it with a precise cause of failure, and one request at a time."""

import logging
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from types import TracebackType
from typing import Any, Self

from pynetdicom import evt
from pynetdicom.dimse_primitives import C_ECHO, C_STORE, N_ACTION, N_EVENT_REPORT
from pynetdicom.pdu_primitives import A_ABORT, A_P_ABORT

from dicomnode.domain.delivery import Destination
from dicomnode.domain.errors import CxrNodeError, PeerRefused, PeerUnavailable
from dicomnode.net.contexts import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, Proposal, presentation_contexts
from dicomnode.net.dimse.associate import SMALLEST_PEER_PDU_BYTES, Rejected
from dicomnode.net.dimse.tls import requestor_context, tls_cause
from dicomnode.net.dimse.transport import BoundedEntity, BoundedSocket, Limits, new_entity
from dicomnode.settings.delivery import DeliverySettings

log = logging.getLogger(__name__)

# Only responses come this way.
REQUESTOR_PDU_BYTES = 65_536
_OBJECT_BYTES = 1_048_576
_POLL_S = 0.2
_END_S = 1.0
_COMMENT_CHARACTERS = 64
_LINGER_POLL_S = 0.05
# PS3.4 Table J.3-1.
_REQUEST_COMMITMENT = 1

# PS3.8 Table 9-21, by (source, reason).
_REJECTIONS = {
    (1, 1): "without a reason",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title {calling} is not known there",
    (1, 7): "called AE title {called} is not its own",
    (2, 1): "without a reason (ACSE)",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "its limit of associations is reached",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedContext:
    """A presentation context that the peer accepted."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str


class NoContextAccepted(PeerRefused):
    """The peer accepted the association but none of the proposed presentation contexts."""


class NoResponse(PeerUnavailable):
    """The peer took a request and was silent until its time was over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A peer's response: its status, and its Error Comment, which is a stranger's text and belongs in no log."""

    status: int
    comment: str = ""


class RequestedAssociation:
    """An established association; leaving the `with` block releases it, or aborts it after an error."""

    def __init__(self, library: Any, response_timeout_s: float, aborts: list[str]) -> None:
        self._association = library
        self._response_timeout_s = response_timeout_s
        self._aborts = aborts
        self._message_id = 0
        self._is_silent = False
        self.contexts = tuple(
            AcceptedContext(
                context_id=entry.context_id,
                abstract_syntax=str(entry.abstract_syntax),
                transfer_syntax=str(entry.transfer_syntax[0]),
            )
            for entry in library.accepted_contexts
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._association.is_established:
            if error is None:
                self._association.release()
            else:
                self._association.abort()
        _close(self._association)

    def echo(self) -> Response:
        """Send a C-ECHO and return its response.

        Raises: PeerUnavailable.
        """
        request = C_ECHO()
        request.AffectedSOPClassUID = self.contexts[0].abstract_syntax
        return self._exchange(request, self.contexts[0].context_id)

    def store(self, data_set: bytes, sop_instance: str, context: AcceptedContext) -> Response:
        """Send an encoded data set as it is and return the response.

        Raises: PeerUnavailable when the association ends, NoResponse when no response comes.
        """
        request = C_STORE()
        request.AffectedSOPClassUID = context.abstract_syntax
        request.AffectedSOPInstanceUID = sop_instance
        request.Priority = 0
        request.DataSet = BytesIO(data_set)
        return self._exchange(request, context.context_id)

    def request_commitment(self, information: bytes, context: AcceptedContext) -> Response:
        """Send an encoded request for Storage Commitment and return the response. Source: PS3.4 J.3.2.

        A report of the peer's that overtakes its response is served all the same. Raises: PeerUnavailable.
        """
        request = N_ACTION()
        request.RequestedSOPClassUID = STORAGE_COMMITMENT.uid
        request.RequestedSOPInstanceUID = STORAGE_COMMITMENT_INSTANCE
        request.ActionTypeID = _REQUEST_COMMITMENT
        request.ActionInformation = BytesIO(information)
        return self._exchange(request, context.context_id)

    def linger(self, seconds: float, until: threading.Event) -> None:
        """Serve what the peer asks over this association, until something happens, it ends, or time is over."""
        deadline = time.monotonic() + seconds
        while self._association.is_established and time.monotonic() < deadline:
            if until.wait(min(_LINGER_POLL_S, seconds)):
                return

    def _exchange(self, request: Any, context_id: int) -> Response:
        """Send one request and wait for its response.

        pynetdicom's own `send_c_store` decodes and re-encodes data sets; this sends the bytes at hand instead.
        """
        association = self._association
        if not association.is_established:
            raise PeerUnavailable(self._why_ended())
        self._message_id = self._message_id % 65_535 + 1
        request.MessageID = self._message_id
        association._reactor_checkpoint.clear()  # noqa: SLF001 the reactor would take the response otherwise
        try:
            while not association._is_paused and association.is_alive():  # noqa: SLF001
                time.sleep(0.0005)
            association.dimse.send_msg(request, context_id)
            response = self._response()
        finally:
            association._reactor_checkpoint.set()  # noqa: SLF001
        if response is None:
            association.abort()
            raise (NoResponse if self._is_silent else PeerUnavailable)(self._why_ended())
        if cause := _disbelief(request, response):
            association.abort()
            raise PeerUnavailable(cause)
        return Response(status=int(response.Status), comment=_comment(response))

    def _response(self) -> Any:
        """Wait for the response; the time allowed begins when the last byte is on its way."""
        association = self._association
        deadline = time.monotonic() + self._response_timeout_s
        while time.monotonic() < deadline:
            try:
                context_id, message = association.dimse.msg_queue.get(timeout=_POLL_S)
                if message is None or not message.is_request:
                    return message
                if isinstance(message, N_EVENT_REPORT) and message.fault is None:
                    association._serve_request(message, context_id)  # noqa: SLF001 as the reactor would
            except queue.Empty:
                if not association.dul.is_alive():
                    return None
                if not association.dul.to_provider_queue.empty():
                    deadline = time.monotonic() + self._response_timeout_s
        self._is_silent = True
        self._aborts.append(f"no response within {self._response_timeout_s:g} s")
        return None

    def _why_ended(self) -> str:
        if not self._aborts and isinstance(self._association.dul.peek_next_pdu(), A_ABORT):
            return "the peer aborted the association"
        return self._aborts[0] if self._aborts else "the connection was lost"


def _disbelief(request: Any, response: Any) -> str:
    """Say why a message is not the response to a request, or nothing when it is."""
    if type(response) is not type(request) or not response.is_valid_response:
        return "the response is not valid"
    if response.MessageIDBeingRespondedTo != request.MessageID:
        return f"the response is to message {response.MessageIDBeingRespondedTo} instead of {request.MessageID}"
    return ""


def _comment(response: Any) -> str:
    """Return the Error Comment of a response without control characters. Source: PS3.7 C.3, LO of 64 characters."""
    text = str(getattr(response, "ErrorComment", None) or "")[:_COMMENT_CHARACTERS]
    return "".join(character if character.isprintable() else " " for character in text).strip()


def open_association(
    destination: Destination,
    proposals: Sequence[Proposal],
    *,
    calling_ae: str,
    settings: DeliverySettings,
    handlers: Sequence[tuple[Any, Callable[[Any], Any]]] = (),
) -> RequestedAssociation:
    """Open an association; `handlers` serve what the peer asks over it.

    Raises: PeerUnavailable when trying again may help; PeerRefused when the peer rejected it for good;
    ConfigurationError when a certificate or key cannot be read;
    NoContextAccepted when the peer takes none of what is proposed.
    """
    aborts: list[str] = []
    try:
        library = _entity(calling_ae, settings).associate(
            destination.host,
            destination.port,
            contexts=presentation_contexts(proposals),
            ae_title=destination.ae_title,
            max_pdu=REQUESTOR_PDU_BYTES,
            tls_args=(requestor_context(destination.tls), destination.host) if destination.tls else None,
            evt_handlers=[(evt.EVT_ACSE_RECV, _note_abort, [aborts]), *handlers],
        )
    except OSError as error:
        raise PeerUnavailable(_connect_failure(destination, error, settings)) from error
    if not library.is_established:
        _close(library)
        # A peer that aborts or closes at once may end the connection before the library looks for an answer. What
        # ended it then still stands in the library's queue; reading it calls `_note_abort`.
        library.dul.receive_pdu(wait=False)
        raise _failure(library, destination, calling_ae, settings, aborts)
    length = library.acceptor.maximum_length
    if length is not None and 0 < length < SMALLEST_PEER_PDU_BYTES:
        library.abort()
        _close(library)
        raise PeerRefused(f"the peer takes PDUs of {length} bytes only")
    return RequestedAssociation(library, settings.response_timeout_s, aborts)


def _entity(calling_ae: str, settings: DeliverySettings) -> BoundedEntity:
    limits = Limits(
        pdu_bytes=REQUESTOR_PDU_BYTES,
        object_bytes=_OBJECT_BYTES,
        associate_s=settings.response_timeout_s,
        pdu_s=settings.response_timeout_s,
    )
    entity = new_entity(calling_ae, limits)
    entity.connection_timeout = settings.connect_timeout_s
    entity.dimse_timeout = settings.response_timeout_s
    # The association may rest while an object is read or transcoded; every exchange has its own limit.
    entity.network_timeout = None
    return entity


def _close(library: Any) -> None:
    """Close the socket of an association that is over; pynetdicom may end its thread before it comes to that."""
    library.dul.join(_END_S)
    library.dul.socket.close()


def _note_abort(event: Any, aborts: list[str]) -> None:
    if isinstance(event.primitive, A_ABORT):
        aborts.append("the peer aborted the association")
    elif isinstance(event.primitive, A_P_ABORT):
        aborts.append("the peer closed the connection")


def _failure(
    library: Any, destination: Destination, calling_ae: str, settings: DeliverySettings, aborts: list[str]
) -> CxrNodeError:
    bounded: BoundedSocket = library.dul.socket
    # In TLS 1.3 a client learns only after the handshake that its certificate is not accepted.
    tls_error = bounded.read_error if isinstance(bounded.read_error, ssl.SSLError) else None
    if (error := bounded.connect_error or tls_error) is not None:
        return PeerUnavailable(_connect_failure(destination, error, settings))
    if bounded.rejected is not None:
        return _rejection(bounded.rejected, destination, calling_ae)
    answer = library.acceptor.primitive
    if answer is not None and answer.result == 0 and not library.accepted_contexts:
        return NoContextAccepted("no presentation context was accepted")
    if bounded.invalid:
        return PeerUnavailable(f"the answer to the association request is not valid: {bounded.invalid}")
    if aborts:
        return PeerUnavailable(f"{aborts[0]} instead of answering the association request")
    return PeerUnavailable(f"no answer to the association request within {settings.response_timeout_s:g} s")


def _rejection(rejected: Rejected, destination: Destination, calling_ae: str) -> CxrNodeError:
    unknown = f"with reason {rejected.reason} of source {rejected.source}, which the standard does not know"
    template = _REJECTIONS.get((rejected.source, rejected.reason), unknown)
    cause = "association rejected: " + template.format(calling=calling_ae, called=destination.ae_title)
    return PeerRefused(cause) if rejected.is_permanent else PeerUnavailable(cause)


def _connect_failure(destination: Destination, error: OSError, settings: DeliverySettings) -> str:
    where = f"{destination.host}:{destination.port}"
    if isinstance(error, ssl.SSLError):
        return f"no connection to {where}: {tls_cause(error)}"
    if isinstance(error, socket.gaierror):
        return f"unknown host {destination.host}"
    if isinstance(error, ConnectionRefusedError):
        return f"connection to {where} refused: nothing listens there"
    if isinstance(error, TimeoutError):
        return f"no connection to {where} within {settings.connect_timeout_s:g} s"
    return f"no connection to {where}: {error.strerror or type(error).__name__}"
