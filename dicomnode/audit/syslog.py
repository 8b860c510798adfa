"""Transports to an audit repository: a file, syslog over TLS, syslog over UDP. Source: PS3.15 A.6, RFC 5424 to 5426.

RFC 5425 has no acknowledgement. So each batch has a connection of its own, and counts as received when the receiver has
closed it too, which it does after it has read everything.
"""

import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from dicomnode import __version__
from dicomnode.domain.errors import ConfigurationError, PeerUnavailable
from dicomnode.settings.node import AuditSettings

# Facility 10 (security and authorisation), severity 5 (notice). Source: PS3.15 A.6.
_PRIORITY = 10 * 8 + 5
_MESSAGE_ID = "DICOM+RFC3881"
_TIMEOUT_S = 10.0
_TAIL_BYTES = 1 << 20
_RECEIVE_BYTES = 65_536

T = TypeVar("T")


class Sink(Protocol):
    """A transport to a repository."""

    def send(self, lines: Sequence[bytes]) -> None:
        """Send syslog messages; it returns when the repository has all of them, as far as the transport can tell.

        Raises: PeerUnavailable, ConfigurationError.
        """


def syslog_line(xml: bytes, *, number: int, at: datetime, host: str) -> bytes:
    """Return an RFC 5424 message; the same record gives the same bytes, whatever process makes them."""
    moment = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    # RFC 5424 7.3.1: the number of a message by which a receiver sees what is missing, or came twice.
    data = f'[meta sequenceId="{1 + (number - 1) % 2147483647}"][origin software="cxrnode" swVersion="{__version__}"]'
    head = f"<{_PRIORITY}>1 {moment} {host or '-'} cxrnode - {_MESSAGE_ID} {data} "
    return head.encode("ascii", "replace") + b"\xef\xbb\xbf" + xml


class FileSink:
    """Appends messages to a file, one on each line, and syncs it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def send(self, lines: Sequence[bytes]) -> None:
        """Append the messages that the file does not end with: a crash may have come before they were marked sent."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            try:
                _append(descriptor, lines)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise PeerUnavailable(f"the audit file cannot be written: {error.strerror}") from error


def _append(descriptor: int, lines: Sequence[bytes]) -> None:
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
    if tail and not tail.endswith(b"\n"):
        # Power was lost in the middle of a line, which is written again now.
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        os.ftruncate(descriptor, size - torn)
        tail = tail[: len(tail) - torn]
    there = set(tail.splitlines())
    rest = memoryview(b"".join(line + b"\n" for line in lines if line not in there))
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


class TlsSink:
    """Syslog over TLS, RFC 5425: every message with its length before it."""

    def __init__(self, settings: AuditSettings) -> None:
        self._settings = settings

    def send(self, lines: Sequence[bytes]) -> None:
        """Send over a connection of their own, with the certificates as they are in their files now."""
        settings, context = self._settings, self._context()
        try:
            with socket.create_connection((settings.host, settings.port), timeout=_TIMEOUT_S) as plain:
                session = _TlsSession(plain, context, settings.host)
                session.send(b"".join(b"%d %s" % (len(line), line) for line in lines))
                session.end()
        except ssl.SSLCertVerificationError as error:
            raise PeerUnavailable(
                f"the audit repository's certificate is not trusted: {error.verify_message}"
            ) from error
        except OSError as error:
            reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
            raise PeerUnavailable(f"the audit repository did not take the messages: {reason}") from error

    def _context(self) -> ssl.SSLContext:
        settings = self._settings
        try:
            context = ssl.create_default_context(cafile=settings.ca_file and str(settings.ca_file))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if settings.client_certificate is not None:
                context.load_cert_chain(settings.client_certificate, settings.client_key)
        except OSError as error:
            raise ConfigurationError(f"a certificate of [audit] cannot be used: {error.strerror}") from error
        return context


class _TlsSession:
    """A TLS session whose own end is sent before the other's is read.

    In TLS 1.3 a receiver refuses a client's certificate after the client's part of the handshake. `SSLSocket.unwrap`
    takes that alert for the end of the session, so a refused message would count as received.
    """

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> None:
        """Shake hands. Raises: OSError, as the other methods do."""
        self._plain, self._incoming, self._outgoing = plain, ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._exchange(self._session.do_handshake)

    def send(self, data: bytes) -> None:
        """Send everything."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._exchange(partial(self._session.write, rest)) :]

    def end(self) -> None:
        """End the session, and wait until the receiver has ended it too. Source: RFC 5425 4.4.

        Raises: OSError, PeerUnavailable.
        """
        with contextlib.suppress(ssl.SSLWantReadError):
            # What has come already, so that the end below meets nothing that it could mistake for another end.
            self._session.read()
            raise PeerUnavailable("the audit repository speaks where it should listen")
        with contextlib.suppress(ssl.SSLWantReadError):
            self._session.unwrap()
        # An end without a word, yet after all that was sent, is one too: a reset or a timeout is another error.
        with contextlib.suppress(ssl.SSLZeroReturnError, ssl.SSLEOFError):
            while True:
                self._exchange(self._session.read)

    def _exchange(self, step: Callable[[], T]) -> T:
        """Repeat a step of the session until it needs nothing more from the receiver."""
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._flush()
                received = self._plain.recv(_RECEIVE_BYTES)
                self._incoming.write(received) if received else self._incoming.write_eof()
            else:
                self._flush()
                return done

    def _flush(self) -> None:
        self._plain.sendall(self._outgoing.read())


class UdpSink:
    """Syslog over UDP, RFC 5426: one message in each datagram, without any acknowledgement."""

    def __init__(self, settings: AuditSettings) -> None:
        self._settings = settings

    def send(self, lines: Sequence[bytes]) -> None:
        """Send each message."""
        try:
            found = socket.getaddrinfo(self._settings.host, self._settings.port, type=socket.SOCK_DGRAM)
            family, kind, protocol, _, address = found[0]
            with socket.socket(family, kind, protocol) as wire:
                for line in lines:
                    wire.sendto(line, address)
        except OSError as error:
            raise PeerUnavailable(f"the audit messages could not be sent: {error.strerror}") from error


def sink_for(settings: AuditSettings) -> Sink | None:
    """Return the configured transport; None if there is no audit trail."""
    match settings.to:
        case "file":
            return FileSink(settings.file or Path("audit.log"))
        case "tls":
            return TlsSink(settings)
        case "udp":
            return UdpSink(settings)
        case "off":
            return None
